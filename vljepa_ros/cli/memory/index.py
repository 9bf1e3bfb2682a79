"""`vljepa index`: recordings into a store of moments, without ROS, as fast as the engines run.

Invariant: a run that was cut off is completed by another with the same words; whoever makes the
moments, this process alone writes the store.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from vljepa_ros.bundle.locate import DEFAULT
from vljepa_ros.console import console, notice, print_json
from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.workers.choice import engine_threads, open_pool

from ..bars import RecordingBar
from ..records import moment_record, record
from ..times import parse_stamp
from ..usage import RAY

if TYPE_CHECKING:
    from vljepa_ros.bundle.spec import Bundle
    from vljepa_ros.memory.fleet import FleetStore
    from vljepa_ros.memory.moment import Moment
    from vljepa_ros.memory.store import MomentStore
    from vljepa_ros.recordings.indexing.indexer import Indexer
    from vljepa_ros.recordings.indexing.maker import Maker
    from vljepa_ros.recordings.indexing.recording import Recording

    from .making import Opening

RECORDINGS = typer.Argument(
    None,
    help="Bags (folders, .db3, .mcap), videos, folders of images; or LeRobot data sets (folders, "
    "Hub ids).",
)  # fmt: skip
TOPIC = typer.Option(None, help="An image topic of the bags; again for more. Default: all.")
CAMERA = typer.Option(
    None,
    help="The name of its camera. Default: from the topic, or the file. Of a data set: the key of "
    "a camera, or the end of it; again for more.",
)  # fmt: skip
EPISODES = typer.Option("", help="Of a data set: which episodes, e.g. 0:50. Default: all.")
STORE = typer.Option(None, help="The folder of the moments. Default: the robot's own.")
QUERY = typer.Option(None, help="A standing question; again for more. Default: the bundle's.")
START = typer.Option(
    "", help="When a video begins: seconds or ISO 8601. Default: its times are positions in it."
)
WORKERS = typer.Option(
    None, min=1,
    help="Processes that work on the recordings, each on one at a time. On a cluster: actors; "
    "default: one for each of its CPUs.",
)  # fmt: skip
COLLECTION = typer.Option("vljepa", help="The collection on that server.")
API_KEY = "QDRANT_API_KEY"  # environment variable
EXPORT = typer.Option(None, help="Also write the stream as ROS 2 messages into this .mcap file.")


def index(
    recordings: list[Path] = RECORDINGS,
    topic: list[str] = TOPIC,
    camera: list[str] = CAMERA,
    episodes: str = EPISODES,
    store: Optional[Path] = STORE,
    url: str = typer.Option("", help="URL of the fleet's Qdrant server, to remember them there."),
    collection: str = COLLECTION,
    bundle: str = typer.Option(DEFAULT, help="Model bundle: a folder, a name, or a Hub id."),
    backend: str = typer.Option("auto", help="What runs the engines: auto, onnxruntime-cpu, ..."),
    query: list[str] = QUERY,
    robot: str = typer.Option("", help="The robot that recorded them. Default: this host."),
    start: str = START,
    black: int = typer.Option(0, min=0, max=65534, help="The 16-bit value that is black."),
    white: int = typer.Option(65535, min=1, max=65535, help="The 16-bit value that is white."),
    words: bool = typer.Option(True, "--words/--no-words", help="Say each moment in words."),
    workers: Optional[int] = WORKERS,
    ray: Optional[str] = RAY,
    export: Optional[Path] = EXPORT,
    as_json: bool = typer.Option(False, "--json", help="Print JSON Lines, one for each moment."),
) -> None:
    """Remember what recordings show: bags, videos and data sets into a store, for vljepa recall."""
    from vljepa_ros.bundle.spec import load_bundle
    from vljepa_ros.perception.settings import Settings
    from vljepa_ros.recordings.indexing.indexer import Indexer
    from vljepa_ros.recordings.indexing.recording import IndexingError, find_recordings
    from vljepa_ros.recordings.stream_file import check_stream_file

    from .making import Opening

    many = workers is not None or ray is not None
    if export:
        check_stream_file(export)
    for wrong, why in (
        (export and many, "A stream is written by one process: leave out --workers and --ray."),
        (white <= black, f"--white ({white}) must be above --black ({black})."),
        (url and store is not None, "Give one of --store and --url."),
    ):
        if wrong:
            raise IndexingError(why)
    found, refused = find_recordings(
        recordings or [], topic or [], camera or [], parse_stamp("--start", start), episodes
    )
    if not found:
        _raise(refused)
    loaded = load_bundle(bundle)
    settings = Settings(queries=tuple(query or ()))
    settings.check()
    settings.queries_of(loaded)  # or it refuses them
    if words and loaded.decoder is None and loaded.phrases is None:
        notice(f"{loaded.model_id} has neither decoder nor phrases: the moments get no words.")
    opening = Opening(
        bundle, loaded.model_id, backend, 1 if ray is not None else engine_threads(workers or 1),
        words, settings, robot or socket.gethostname(), (black, white),
    )  # fmt: skip
    with ExitStack() as stack:
        kept, where = _open_store(stack, store, url, collection, loaded)
        bar = RecordingBar(sum(one.seconds for one in found))
        indexer = Indexer(
            kept,
            lambda seconds, moments: bar.show(seconds, f", {counted(moments, 'moment')}"),
            _print_moment if as_json else lambda recording, moment: None,
        )
        try:
            if many:
                _by_workers(stack, bar, opening, workers or 0, ray, found, indexer, refused)
            else:
                _alone(stack, bar, opening, loaded, export, found, indexer, refused)
        except KeyboardInterrupt:
            notice("Cut off; what was finished is kept, and the same command does the rest.")
            raise
    problems = indexer.report.problems(loaded.clip.frames, loaded.clip.sample_rate)
    for problem in problems:
        notice(problem)
    if as_json:
        summary = record(
            "index: summary", folder=where, moments=indexer.moments, new_moments=indexer.new,
            recorded=indexer.done, took=indexer.took(),
            problems=[*problems, *map(str, refused)],
        )  # fmt: skip
        print_json(summary, line=True)
    else:
        made, pace = counted(indexer.moments, "moment"), indexer.pace()
        console.print(f"{made}, {indexer.new} of them new, in {where}: {pace}")
        if export:
            console.print(f"stream: {export}")
    _raise(refused)
    if indexer.report.left_out:
        raise typer.Exit(1)


def _open_store(
    stack: ExitStack, store: Path | None, url: str, collection: str, bundle: Bundle
) -> tuple[MomentStore | FleetStore, str]:
    """What the moments are written to, and where that is."""
    if url:
        from vljepa_ros.memory.fleet import FleetStore

        key = os.environ.get(API_KEY, "")
        fleet = FleetStore(url, bundle.model_id, bundle.embedding_dim, collection, key)
        fleet.prepare()
        return fleet, f"{url}, collection '{collection}'"
    from vljepa_ros.memory.store import Limits, MomentStore, default_store

    folder = store or default_store()
    kept = MomentStore(folder, bundle.model_id, bundle.embedding_dim, Limits(0, 0, 0))
    stack.callback(kept.close)
    return kept, str(folder)


def _alone(
    stack: ExitStack, bar: RecordingBar, opening: Opening, bundle: Bundle, export: Path | None,
    found: Sequence[Recording], indexer: Indexer, refused: list[VLJepaError],
) -> None:  # fmt: skip
    """One recording after the other, in this process."""
    from vljepa_ros.recordings.bags import BagError
    from vljepa_ros.recordings.stream_file import StreamFile
    from vljepa_ros.recordings.video import VideoError

    maker = _maker(stack, opening, bundle)
    if export:
        maker.file = stack.enter_context(StreamFile(export, maker.model, opening.settings))
    stack.enter_context(bar)
    for one in found:
        try:
            indexer.index(one, maker)
        except (BagError, VideoError) as error:
            refused.append(error)


def _maker(stack: ExitStack, opening: Opening, bundle: Bundle) -> Maker:
    from vljepa_ros.bundle.spec import REQUIRED
    from vljepa_ros.recordings.indexing.maker import Maker
    from vljepa_ros.words.banks import own_speaker

    from ..models import open_model

    words = opening.words
    model = open_model(bundle, opening.backend, list(bundle.graphs) if words else REQUIRED)
    stack.callback(model.close)
    speaker = own_speaker(model, notice) if words else None
    return Maker(model, opening.settings, opening.robot, speaker, levels=opening.levels)


def _by_workers(
    stack: ExitStack, bar: RecordingBar, opening: Opening, workers: int, ray: str | None,
    found: Sequence[Recording], indexer: Indexer, refused: list[VLJepaError],
) -> None:  # fmt: skip
    """Several recordings at a time, each by one worker; kept in their order."""
    from vljepa_ros.workers.pool import LostError, in_order

    pool = open_pool(opening, workers, ray, opening.backend)
    stack.callback(pool.close)
    stack.enter_context(bar)
    for recording, made in in_order(pool, found, indexer.ahead, notice):
        if isinstance(made, LostError):
            refused.append(made)
            continue
        indexer.take(recording, made)
        if made.refused:
            refused.append(VLJepaError(made.refused))


def _print_moment(recording: Path, moment: Moment) -> None:
    found = moment_record("index: moment", moment, recording=str(recording))
    print_json(found, line=True)


def _raise(refused: list[VLJepaError]) -> None:
    """Say all, the last as the error that the command ends with."""
    for error in refused[:-1]:
        notice(str(error))
    if refused:
        raise refused[-1]
