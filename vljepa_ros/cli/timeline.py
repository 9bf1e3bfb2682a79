"""`vljepa timeline`: a recording, or what a store remembers, as a picture to look at.

Invariant: nothing is changed; a store is opened for reading, while a robot may be writing it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vljepa_ros.bundle.locate import DEFAULT
from vljepa_ros.console import console, notice
from vljepa_ros.errors import VLJepaError, counted

from .paths import PICTURES, checked_output

if TYPE_CHECKING:
    from vljepa_ros.evaluation.tracks import Track

NEWEST = 2000  # moments of a store that are looked at
TRUTH = "by the truth: green right, amber its kind alone, red wrong; grey: something happens"

SOURCE = typer.Argument(
    ..., help="A video, a folder of images, a bag (a folder, .db3, .mcap), or a store of moments."
)
OUT = typer.Argument(..., help=f"The picture that is made ({' '.join(PICTURES)}).")
TOPIC = typer.Option(None, help="An image topic of the bag; again for more. Default: all.")


def timeline(
    source: Path = SOURCE,
    out: Path = OUT,
    bundle: str = typer.Option(DEFAULT, help="Model bundle: a folder, a name, or a Hub id."),
    topic: list[str] = TOPIC,
) -> None:
    """Draw a recording over time: change score, key frames of the changes, what was said of them.

    Of a store: its newest moments. Where a video of the simulated table has its truth beside it,
    colours say which sentences are right.
    """
    from vljepa_ros.memory.about import FILE as ABOUT

    checked_output(out, PICTURES, "a picture")
    try:
        from vljepa_ros.evaluation.timeline import draw
    except ModuleNotFoundError as error:
        raise VLJepaError(
            f"Drawing needs the package {error.name}: pip install {error.name}."
        ) from error
    if (source / ABOUT).is_file():
        if topic:
            raise VLJepaError(f"{source} is a store of moments, and has no --topic.")
        title, tracks = _of_store(source)
    else:
        title, tracks = _of_recording(source, bundle, topic or [])
    judged = any(mark.verdict for track in tracks for mark in track.marks)
    without_room = draw(title, tracks, out, TRUTH if judged else "")
    console.print(f"{title}\n{out}")
    if without_room:
        notice(f"Not all is in the picture: {without_room}.")


def _of_recording(path: Path, bundle: str, topics: list[str]) -> tuple[str, list[Track]]:
    from vljepa_ros.bundle.spec import REQUIRED, load_bundle
    from vljepa_ros.evaluation.tracks import of_recording
    from vljepa_ros.recordings.indexing.recording import find_recordings
    from vljepa_ros.recordings.left_out import LeftOut
    from vljepa_ros.words.banks import own_speaker

    from .bars import RecordingBar
    from .models import open_model

    found, refused = find_recordings([path], topics, [])
    if refused:
        raise refused[0]
    if len(found) > 1:
        raise VLJepaError(
            f"{path} holds {len(found)} episodes; index them, and draw the store: vljepa index "
            f"{path} --store STORE."
        )
    loaded = load_bundle(bundle)
    speaks = loaded.decoder is not None or loaded.phrases is not None
    model = open_model(loaded, "auto", list(loaded.graphs) if speaks else REQUIRED)
    left_out = LeftOut()
    try:
        with RecordingBar(found[0].seconds) as bar:
            speaker = own_speaker(model, notice)
            tracks = of_recording(model, found[0], speaker, left_out, bar.show)
    finally:
        model.close()
    for sentence in left_out.sentences():
        notice(sentence)
    if not tracks:
        clip = loaded.clip
        raise VLJepaError(
            f"{path} is too short: the model needs {counted(clip.frames, 'frame')} in a row, "
            f"{1 / clip.sample_rate:g} s from one to the next."
        )
    changes, said = sum(len(t.marks) for t in tracks), sum(t.said for t in tracks)
    steps = sum(len(t.times) for t in tracks)
    skipped = sum(t.skipped * len(t.times) for t in tracks) / steps
    uniform = round(sum(t.length for t in tracks))
    return (
        f"{loaded.model_id} on {path.name}: {counted(changes, 'change')}, {said} put into words "
        f"(one a second would be {uniform}), {100 * skipped:.0f} % of encodes skipped",
        tracks,
    )


def _of_store(folder: Path) -> tuple[str, list[Track]]:
    from vljepa_ros.evaluation.tracks import of_moments
    from vljepa_ros.memory.store import MomentStore

    with MomentStore(folder, read_only=True) as store:
        moments, count = store.newest(NEWEST), len(store)
        model_id = store.model_id
    if not moments:
        raise VLJepaError(f"There are no moments in {folder} to draw.")
    if count > len(moments):
        notice(f"Of {counted(count, 'moment')} the newest {len(moments):,} are looked at.")
    tracks = of_moments(moments)
    said = sum(track.said for track in tracks)
    return (
        f"{model_id} in {folder.name}: {counted(len(moments), 'moment')}, {said} with words",
        tracks,
    )
