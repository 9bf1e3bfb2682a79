"""`vljepa calibrate`: a bundle for the robot's own camera, from footage without labels.

Invariant: the bundle that is given stays as it is; the one that is written appears whole, or not.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from vljepa_ros.console import console, notice, print_table
from vljepa_ros.errors import VLJepaError

from .paths import PICTURES, checked_output
from .times import finite

if TYPE_CHECKING:
    from vljepa_ros.bundle.spec import Bundle
    from vljepa_ros.inference.runtime import Runtime
    from vljepa_ros.recordings.calibration import Footage, Run, Source

ENOUGH = 600.0  # seconds of a data set
BUNDLE = typer.Argument(..., help="A folder, a shipped bundle's name, or a Hub id.")
SOURCES = typer.Argument(
    None,
    help="Bags (folders, .db3, .mcap), videos, folders of images, LeRobot data sets (folders, Hub "
    "ids).",
)  # fmt: skip
OUT = typer.Option(..., "--out", help="The folder of the calibrated bundle; it must not exist.")
TOPIC = typer.Option(None, help="An image topic of the bags, or with --live; again for more.")
CAMERA = typer.Option("", help="Of a data set: the camera's key, or the end of it.")
RATE = typer.Option(
    None, "--changes-per-minute", min=0.01, callback=finite,
    help="The rate of changes that is wanted; else right of the knee of the rate's curve.",
)  # fmt: skip
LIVE = typer.Option(
    None, "--live", min=20.0, callback=finite,
    help="Look at --topic of the running graph for so many seconds.",
)  # fmt: skip
NEVER = typer.Option(None, help="A file of conditions that do not hold, one a line, for watches.")
PICTURE = typer.Option(
    None, help=f"The timeline that is drawn ({' '.join(PICTURES)}). Default: OUT.png."
)


def calibrate(
    bundle: str = BUNDLE,
    sources: list[Path] = SOURCES,
    out: Path = OUT,
    changes_per_minute: Optional[float] = RATE,
    live: Optional[float] = LIVE,
    topic: list[str] = TOPIC,
    camera: str = CAMERA,
    never: Optional[Path] = NEVER,
    picture: Optional[Path] = PICTURE,
    backend: str = typer.Option("auto", help="What runs the engines: auto, onnxruntime-cpu, ..."),
) -> None:
    """Set a bundle's thresholds, and what is familiar to it, by footage of the robot's camera."""
    from vljepa_ros.bundle.locate import find_bundle
    from vljepa_ros.bundle.spec import REQUIRED, load_bundle
    from vljepa_ros.recordings import calibration

    from .models import open_model

    if picture is not None:
        checked_output(picture, PICTURES, "a picture")
    if out.exists():
        raise VLJepaError(f"{out} is there already; give the calibrated bundle another name.")
    old = load_bundle(find_bundle(bundle))
    conditions = _conditions(never) if never else calibration.NEVER
    footage = [*_recordings(sources or [], topic or [], camera)]
    if live:
        from .live.footage import record

        footage += record(old, topic or [], live)
    if not footage:
        raise VLJepaError("Say what to calibrate on: vljepa calibrate BUNDLE VIDEO... --out OUT.")
    model = open_model(old, backend, REQUIRED)
    try:
        with _Bar() as bar:
            seen = [one for source in footage for one in calibration.observe(model, source, bar)]
            calibration.check(seen)
            before = calibration.run(model, footage, bar)
        found = _find(model, seen, changes_per_minute, conditions)
        found["calibration"] |= {"footage": [source.name for source in footage]}
        new = _write(old, found, out)
    finally:
        model.close()
    model = open_model(new, backend, REQUIRED)
    try:
        with _Bar() as bar:
            after = calibration.run(model, footage, bar)
    finally:
        model.close()
    _report(old, new, before, after, found["calibration"])
    _draw(new, seen, picture or out.parent / f"{out.name}.png")
    console.print(f"{new.model_id} in {out}")


def _recordings(paths: Sequence[Path], topics: Sequence[str], camera: str) -> list[Source]:
    from vljepa_ros.perception.images import FULL_RANGE
    from vljepa_ros.recordings.calibration import Source
    from vljepa_ros.recordings.indexing.recording import find_recordings
    from vljepa_ros.recordings.left_out import LeftOut
    from vljepa_ros.recordings.lerobot.selection import is_meant

    if camera and not any(is_meant(path, True) for path in paths):
        raise VLJepaError("--camera is of a LeRobot data set, and none is given.")
    found = []
    for path in paths:
        if is_meant(path, bool(camera)):
            found += _episodes(path, camera)
            continue
        recordings, refused = find_recordings([path], topics, [])
        if refused:
            raise refused[0]
        (one,) = recordings
        frames = partial(one.frames, LeftOut(), FULL_RANGE)
        found.append(Source(path.name, tuple(one.cameras.values()), frames))
    return found


def _episodes(path: Path, camera: str) -> list[Source]:
    """Episodes of a data set that are whole, spread over it; enough of them."""
    from vljepa_ros.recordings.calibration import Source
    from vljepa_ros.recordings.indexing.recording import camera_in
    from vljepa_ros.recordings.left_out import LeftOut
    from vljepa_ros.recordings.lerobot.dataset import EpisodeError
    from vljepa_ros.recordings.lerobot.pictures import pictures, recorded_frames
    from vljepa_ros.recordings.lerobot.rows import Rows
    from vljepa_ros.recordings.lerobot.selection import (
        choose,
        fetch_episodes,
        open_dataset,
        spread,
    )
    from vljepa_ros.stamps import SECOND_NS

    dataset = open_dataset(path)
    every = choose(dataset, camera)
    some = spread(every, ENOUGH)
    fetch_episodes(some)
    name, found, left_out = camera_in(dataset, every[0].camera), [], LeftOut()
    for episode in some:
        try:
            rows = Rows(episode)
            for _ in pictures(rows):
                pass
        except EpisodeError as error:
            left_out.episode(dataset.name, episode.index, error.reason)
        else:
            frames = partial(recorded_frames, rows, name, SECOND_NS)
            found.append(Source(str(episode), (name,), frames))
    for sentence in (*dataset.problems, *left_out.sentences()):
        notice(sentence)
    if len(some) < len(every):
        notice(f"{len(some)} of the {len(every)} episodes of {dataset.name} are looked at.")
    if not found:
        raise VLJepaError(f"No episode of {dataset.name} can be looked at; give other footage.")
    return found


def _conditions(file: Path) -> tuple[str, ...]:
    from vljepa_ros.perception.texts import checked_texts

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VLJepaError(f"{file} cannot be read: {error}.") from error
    found = checked_texts("condition", [line for line in lines if line.strip()])
    if not found:
        raise VLJepaError(f"{file} holds no conditions; write one a line.")
    return found


def _find(
    model: Runtime, seen: Sequence[Footage], rate: float | None, never: Sequence[str]
) -> dict[str, Any]:
    """What the footage says: `thresholds`, `familiarity` with its threshold, and `calibration`."""
    from vljepa_ros.inference.familiarity import THRESHOLD
    from vljepa_ros.recordings import calibration

    old, notes = model.bundle, []
    judged = "calibration" in old.evaluation  # its thresholds were found where the truth is known
    change, watch = old.thresholds.change, old.thresholds.watch
    if rate is not None or not judged:
        curve = calibration.change_curve(model, seen)
        change = calibration.at_knee(*curve) if rate is None else calibration.at_rate(*curve, rate)
    if not judged:
        watch = calibration.watch_threshold(model, seen, never)
    else:
        notes.append("watch" + (", change" if rate is None else "") + ": kept, as they were found "
                     "on streams whose truth is known")  # fmt: skip
    fitted, known_from = None, old.familiarity_threshold
    if old.familiarity is not None and not old.calibration.get("familiarity"):
        known_from = calibration.adapted(known_from, seen)
    else:
        fitted, known_from = calibration.fit_familiarity(seen), THRESHOLD
        if fitted is None:
            notes.append("familiarity: too little footage to fit it to; some minutes are needed")
    steps = sum(len(footage.steps) for footage in seen)
    return {
        "thresholds": {
            "gate": calibration.gate_noise(seen), "change": float(f"{change:.4g}"),
            "watch": round(watch, 3),
        },
        "fitted": fitted,
        "known_from": known_from,
        "calibration": {
            "seconds": round(60 * sum(footage.minutes for footage in seen), 1),
            "steps": steps,
            "changes_per_minute": rate if rate is not None else "kept" if judged else "knee",
            **({"familiarity": "of this footage"} if fitted is not None else {}),
            "before": dict(vars(old.thresholds)),
            **({"notes": notes} if notes else {}),
        },
    }  # fmt: skip


def _write(old: Bundle, found: dict[str, Any], out: Path) -> Bundle:
    """A copy of the bundle with what was found; there whole, or not at all."""
    from vljepa_ros.bundle.manifest import read_manifest, write_manifest
    from vljepa_ros.bundle.spec import load_bundle
    from vljepa_ros.inference.familiarity import add_familiarity

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        copy = Path(scratch) / out.name
        shutil.copytree(old.path, copy)
        manifest, _ = read_manifest(copy)
        manifest["thresholds"] |= found["thresholds"]
        manifest["calibration"] = found["calibration"]
        if "thresholds" in manifest.get("source", {}):  # that they were guesses
            manifest["source"]["thresholds"] = "calibrated on footage: see 'calibration'"
        if "familiarity" in manifest:
            manifest["familiarity"]["threshold"] = found["known_from"]
        write_manifest(copy, manifest)
        if found["fitted"] is not None:
            add_familiarity(copy, found["fitted"], found["known_from"])
        load_bundle(copy)
        copy.rename(out)
    return load_bundle(out)


def _report(old: Bundle, new: Bundle, before: Run, after: Run, about: dict[str, Any]) -> None:
    """Before and after, in lines."""
    rows = [(name, _number(one), _number(other)) for name, (one, other) in {
        "gate (grey levels)": (old.thresholds.gate, new.thresholds.gate),
        "change (Ward cost)": (old.thresholds.change, new.thresholds.change),
        "watch (cosine)": (old.thresholds.watch, new.thresholds.watch),
        "familiar from": (old.familiarity_threshold, new.familiarity_threshold),
    }.items()]  # fmt: skip
    rows += [
        ("encodes passed over", f"{before.passed_over:.0%}", f"{after.passed_over:.0%}"),
        ("changes a minute", f"{before.changes_per_minute:.1f}",
         f"{after.changes_per_minute:.1f}"),
        ("not familiar", _share(old, before), _share(new, after)),
    ]  # fmt: skip
    print_table(("", "before", "after"), rows, right=("before", "after"))
    for note in about.get("notes", ()):
        notice(f"{note}.")
    if new.familiarity is not None and after.unfamiliar > 0.5:
        notice("Most of this footage is not what the bundle was made for: it says nothing of it.")


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.4g}"


def _share(bundle: Bundle, run: Run) -> str:
    return "cannot tell" if bundle.familiarity is None else f"{run.unfamiliar:.0%}"


def _draw(bundle: Bundle, seen: Sequence[Footage], picture: Path) -> None:
    try:
        from vljepa_ros.evaluation.footage import draw_footage
    except ImportError as error:
        notice(f"No timeline is drawn without '{error.name}': pip install {error.name}.")
        return
    change = bundle.change
    parts = (bundle.thresholds.change, change.candidate, change.min_segment, change.hysteresis)
    title = f"{bundle.model_id}, calibrated on {', '.join(footage.name for footage in seen)}"
    without_room = draw_footage(title, seen, parts, bundle.familiarity_threshold, picture)
    console.print(f"timeline: {picture}" + (f" ({without_room})" if without_room else ""))


class _Bar:
    """How much footage is done, on stderr."""

    def __init__(self) -> None:
        self._bar = Progress(
            BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True),
            transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)
        self._steps, self._began = 0, time.monotonic()

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, frame: Any) -> None:
        """A frame had its steps."""
        self._steps += 1
        rate = self._steps / max(1e-3, time.monotonic() - self._began)
        self._bar.update(self._task, description=f"{self._steps} steps, {rate:.0f} a second")
