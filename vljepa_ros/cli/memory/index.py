"""`vljepa index`: recordings into a store of moments, without ROS, as fast as the engines run.

Invariant: a run that was cut off is completed by another with the same words.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

from vljepa_ros.bundle.locate import DEFAULT
from vljepa_ros.console import console, notice, print_json
from vljepa_ros.errors import VLJepaError, counted

from ..bars import RecordingBar
from ..records import moment_record, record
from ..times import parse_stamp

if TYPE_CHECKING:
    from vljepa_ros.memory.moment import Moment

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
EXPORT = typer.Option(None, help="Also write the stream as ROS 2 messages into this .mcap file.")


def index(
    recordings: list[Path] = RECORDINGS,
    topic: list[str] = TOPIC,
    camera: list[str] = CAMERA,
    episodes: str = EPISODES,
    store: Optional[Path] = STORE,
    bundle: str = typer.Option(DEFAULT, help="Model bundle: a folder, a name, or a Hub id."),
    backend: str = typer.Option("auto", help="What runs the engines: auto, onnxruntime-cpu, ..."),
    query: list[str] = QUERY,
    robot: str = typer.Option("", help="The robot that recorded them. Default: this host."),
    start: str = START,
    black: int = typer.Option(0, min=0, max=65534, help="The 16-bit value that is black."),
    white: int = typer.Option(65535, min=1, max=65535, help="The 16-bit value that is white."),
    words: bool = typer.Option(True, "--words/--no-words", help="Say each moment in words."),
    export: Optional[Path] = EXPORT,
    as_json: bool = typer.Option(False, "--json", help="Print JSON Lines, one for each moment."),
) -> None:
    """Remember what recordings show: bags, videos and data sets into a store, for vljepa recall."""
    from vljepa_ros.bundle.spec import REQUIRED, load_bundle
    from vljepa_ros.memory.store import Limits, MomentStore, default_store
    from vljepa_ros.perception.settings import Settings
    from vljepa_ros.recordings.bags import BagError
    from vljepa_ros.recordings.indexing import Indexer, IndexingError, find_recordings
    from vljepa_ros.recordings.stream_file import StreamFile, check_stream_file
    from vljepa_ros.recordings.video import VideoError
    from vljepa_ros.words.banks import own_speaker

    from ..models import open_model

    if export:
        check_stream_file(export)
    if white <= black:
        raise IndexingError(f"--white ({white}) must be above --black ({black}).")
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
    with ExitStack() as stack:
        folder = store or default_store()
        kept = MomentStore(folder, loaded.model_id, loaded.embedding_dim, Limits(0, 0, 0))
        stack.callback(kept.close)
        before = len(kept)
        model = open_model(loaded, backend, list(loaded.graphs) if words else REQUIRED)
        stack.callback(model.close)
        file = stack.enter_context(StreamFile(export, model, settings)) if export else None
        bar = stack.enter_context(RecordingBar(sum(one.seconds for one in found)))
        indexer = Indexer(
            model,
            settings,
            kept,
            robot or socket.gethostname(),
            own_speaker(model, notice) if words else None,
            file,
            lambda seconds, moments: bar.show(seconds, f", {counted(moments, 'moment')}"),
            _print_moment if as_json else lambda recording, moment: None,
            levels=(black, white),
        )
        try:
            for one in found:
                try:
                    indexer.index(one)
                except (BagError, VideoError) as error:
                    refused.append(error)
        except KeyboardInterrupt:
            notice("Cut off; what was finished is kept, and the same command does the rest.")
            raise
        new = len(kept) - before
    for problem in indexer.problems():
        notice(problem)
    if as_json:
        summary = record(
            "index: summary", folder=str(folder), moments=indexer.moments, new_moments=new,
            recorded=indexer.done, took=indexer.took(),
            problems=[*indexer.problems(), *map(str, refused)],
        )  # fmt: skip
        print_json(summary, line=True)
    else:
        made, pace = counted(indexer.moments, "moment"), indexer.pace()
        console.print(f"{made}, {new} of them new, in {folder}: {pace}")
        if export:
            console.print(f"stream: {export}")
    _raise(refused)
    if indexer.left_out:
        raise typer.Exit(1)


def _print_moment(recording: Path, moment: Moment) -> None:
    found = moment_record("index: moment", moment, recording=str(recording))
    print_json(found, line=True)


def _raise(refused: list[VLJepaError]) -> None:
    """Say all, the last as the error that the command ends with."""
    for error in refused[:-1]:
        notice(str(error))
    if refused:
        raise refused[-1]
