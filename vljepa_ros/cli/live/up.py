"""`vljepa up`: camera, perception, decoder, memory and page in one process, from one YAML file.

Invariant: the nodes are those of the launch file, unchanged, each with its own executor and
thread; what is shown comes over the same topics as anybody else gets it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import typer
from rich.live import Live

from vljepa_ros.console import Output, reader_has_gone
from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.ros.names import checked_namespace
from vljepa_ros.ros.params_file import check_params
from vljepa_ros.ros.process import Signals, Spinner, init_ros, needs_ros, set_fastdds
from vljepa_ros.stamps import clock, to_ns

from .overrides import merged, parsed, refuse_unknown
from .view import CameraView, Said, StreamView

REFRESH = 8.0  # pictures of the terminal view per second
STATUS = 10.0  # seconds between two plain status lines
FLUSH = 1.0  # seconds without news, after the end of a video, until the summary

PORT = typer.Option(
    None, min=0, max=65535, help="Serve the page on this port; 0: one that is free."
)  # fmt: skip
SET = typer.Option(
    None, "--set", metavar="NODE.PARAM=VALUE",
    help="A parameter, e.g. perception.rate=2; again for more.",
)  # fmt: skip


def up(
    params: str = typer.Option("", help="Parameter file; default: the package's own."),
    video: str = typer.Option(
        "", help="Video file, folder of images or camera device to play as the first camera."
    ),
    cameras: str = typer.Option("", help="Names of the cameras, e.g. front,rear."),
    bundle: str = typer.Option("", help="Model bundle: a folder, a shipped name, or a Hub id."),
    backend: str = typer.Option("", help="What runs the engines: auto, onnxruntime-cpu, ..."),
    namespace: str = typer.Option("", help="Namespace of all nodes."),
    loop: bool = typer.Option(False, "--loop", help="Play the video again when it ends."),
    memory: bool = typer.Option(False, "--memory", help="Remember what was seen, on disk."),
    web: bool = typer.Option(False, "--web", help="Serve a page to look at."),
    port: Optional[int] = PORT,
    settings: list[str] = SET,
    log_level: str = typer.Option("warn", help="Of the nodes: debug, info, warn or error."),
    tui: Optional[bool] = typer.Option(
        None, "--tui/--no-tui", help="Live view; by default where stdout is a terminal."
    ),
) -> None:
    """Start perception and decoder, as asked camera, memory and page, and show what is said."""
    set_fastdds()
    signals = Signals()
    stop = threading.Event()
    live = tui is not False and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    names = [name.strip() for name in cameras.split(",") if name.strip()]
    inside = checked_namespace("--namespace", namespace)
    file = Path(params) if params else default_params()
    wanted = {"memory": memory, "web": web or port is not None, "camera": bool(video)}
    started = ["perception", "decoder", *(name for name, asked in wanted.items() if asked)]
    check_params(file, inside, started)
    try:
        import rclpy

        import vljepa_ros.msg  # noqa: F401
    except ImportError as error:
        raise needs_ros("up", error) from error
    model = {key: value for key, value in (("bundle", bundle), ("backend", backend)) if value}
    options: dict[str, dict[str, Any]] = {
        "perception": {**model, **({"cameras": names} if names else {})},
        "decoder": model,
        "memory": {"bundle": bundle} if bundle else {},
        "web": {} if port is None else {"port": port},
        "camera": {"loop": True} if loop else {},
    }
    values = parsed(settings or (), started)
    arguments = ["--ros-args", "--params-file", str(file), "--log-level", log_level]
    if inside:
        arguments += ["-r", f"__ns:={inside}"]
    init_ros(arguments)
    signals.on_stop(stop.set)
    graph = Graph(merged({node: options[node] for node in started}, values))
    try:
        for node in (*graph.models, *graph.pages):
            refuse_unknown(node, values.get(node.get_name(), {}))
        with _screen(live, graph) as console:
            graph.run(video, console, stop, plain=not live)
        if graph.view.savings()[1] or not graph.failure:
            words = graph.view.words(console.room) if live else []  # else they stand above
            for line in (*words, *graph.view.summary()):
                console.print(line)
    finally:
        graph.end()
        rclpy.try_shutdown()
    if graph.failure:
        raise VLJepaError(graph.failure)


def default_params() -> Path:
    """config/perception.yaml: of the installed package, or of the source tree."""
    source = Path(__file__).resolve().parents[3] / "config" / "perception.yaml"
    try:
        from ament_index_python.packages import get_package_share_directory

        return Path(get_package_share_directory("vljepa_ros")) / "config" / "perception.yaml"
    except (ImportError, LookupError):
        return source


class Graph:
    """The nodes of one process, and the view of what they do.

    `values`: parameters, by the nodes that are wanted; the camera's are used by `run`. `failure`:
    why `run` has ended before its time, a sentence.
    """

    def __init__(self, values: Mapping[str, dict[str, Any]]) -> None:
        from vljepa_ros.client.source import Sources
        from vljepa_ros.nodes.decoder import DecoderNode
        from vljepa_ros.nodes.perception.node import PerceptionNode
        from vljepa_ros.ros.listener import ListenerNode

        self._values = values
        self.perception = PerceptionNode(parameter_overrides=_overrides(values["perception"]))
        self.decoder = DecoderNode(parameter_overrides=_overrides(values["decoder"]))
        self.models: list[Any] = [self.perception, self.decoder]
        if "memory" in values:
            from vljepa_ros.nodes.memory.node import MemoryNode

            self.models.append(MemoryNode(parameter_overrides=_overrides(values["memory"])))
        self.pages: list[Any] = []  # that are served, or may be
        if "web" in values:
            from vljepa_ros.web.node import WebNode

            self.pages.append(WebNode(parameter_overrides=_overrides(values["web"])))
        self.failure = ""
        self.cameras = list(self.perception.get_parameter("cameras").value)
        self.view = StreamView({name: CameraView() for name in self.cameras})
        self._news = time.monotonic()
        self._print: Callable[[str], None] = lambda line: None
        self._info: Any = None  # the last ModelInfo
        self._sources = Sources(lambda sentence: None)  # which the perception node says, too
        listener = ListenerNode(
            self._on_info, self._on_embedding, self._on_change, self._on_utterance
        )
        for node in self.models:
            node.owned = True
        self.spinners = [Spinner(node) for node in (listener, *self.models, *self.pages)]

    def run(self, video: str, console: Output, stop: threading.Event, plain: bool) -> None:
        """Until the video has ended, a node that is needed has failed, or `stop` is set.

        `video`: what to play; empty: nothing. `plain`: print a line for what happens, because there
        is no live view.
        """
        if plain:
            self._print = console.print
        while not stop.is_set() and not self._is_up() and not _is_unread(console):
            if self._cannot_start() or self._has_failed():
                return
            stop.wait(0.02)
        for node in self.models:
            node.owned = False  # a transition that fails from now on is told in its log
        for page in self.pages:
            if page.url:
                console.print(f"The page is at {page.url}")
        player = self._play(video) if video and not stop.is_set() else None
        shown = time.monotonic()
        while not stop.wait(1 / REFRESH) and not _is_unread(console):
            self._refresh()
            self._do_without_pages(console)
            if self._has_failed():
                return
            if player is not None and player.finished.is_set() and self._is_done():
                self._explain(console)
                self.failure = player.failure
                return
            if time.monotonic() - shown >= STATUS:
                shown = time.monotonic()
                self._print(self.view.status())

    def _is_up(self) -> bool:
        return all(node.state == "active" for node in self.models) and all(
            page.url or page.failure for page in self.pages
        )

    def _cannot_start(self) -> bool:
        """Whether a model's node cannot; then `failure` says why."""
        for node in self.models:
            if node.failure:
                self.failure = f"{node.get_fully_qualified_name()} cannot start: {node.failure}"
        return bool(self.failure)

    def _has_failed(self) -> bool:
        """Whether a node that is needed does no more; then `failure` says why."""
        for spinner in self.spinners:
            if spinner.failure and spinner.node not in self.pages:
                name = spinner.node.get_fully_qualified_name()
                self.failure = f"{name} has failed: {spinner.failure}; the log above says where."
        return bool(self.failure)

    def _do_without_pages(self, console: Output) -> None:
        """Forget the pages that have ended: they are an extra."""
        failed = {spinner.node for spinner in self.spinners if spinner.failure}
        for page in [page for page in self.pages if page.failure or page in failed]:
            self.pages.remove(page)
            console.print(f"Perception goes on without the page. {page.failure}".strip())

    def end(self) -> None:
        """End the nodes, all at once."""
        threads = [threading.Thread(target=spinner.end) for spinner in self.spinners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _play(self, video: str) -> Any:
        from vljepa_ros.nodes.video import VideoNode

        source = video if video.isdigit() else str(Path(video).absolute())
        values = {"source": source, "camera": self.cameras[0], **self._values["camera"]}
        node = VideoNode(parameter_overrides=_overrides(values))
        node.owned = True
        self.spinners.append(Spinner(node))
        return node

    def _explain(self, console: Output) -> None:
        """Why there was not one step, where a video was played."""
        camera = self.perception.snapshot().get(self.cameras[0])
        info = self._info
        if info is None or camera is None or not camera.received or self.view.savings()[1]:
            return
        console.print(
            f"The video is too short: the model needs {counted(info.clip_frames, 'frame')} in a "
            f"row, {1 / info.sample_rate:g} s from one to the next."
        )

    def _is_done(self) -> bool:
        """Whether nothing is under way after the last frame."""
        if self.decoder.waiting or any(
            camera.waiting for camera in self.perception.snapshot().values()
        ):
            self._news = time.monotonic()
        return time.monotonic() - self._news >= FLUSH

    # -------------------------------------------------------------- the view

    def _on_info(self, message: Any) -> None:
        self._sources.on_info(message)
        shown = self.view.model
        self.view.model = f"{message.model_id} on {message.backend} ({message.precision})"
        self.view.queries = len(message.queries)
        self._info = message
        if self.view.model != shown:  # it comes every second
            self._print(self.view.model)

    def _on_embedding(self, message: Any) -> None:
        camera = self._camera(message)
        if camera is not None and (self._info is None or message.query == self._info.queries[0]):
            camera.step(
                to_ns(message.header.stamp), to_ns(message.window_start), message.change_score
            )

    def _on_change(self, message: Any) -> None:
        camera = self._camera(message)
        if camera is not None:
            at = clock(to_ns(message.segment_start))
            known = self._info.familiarity_threshold if self._info is not None else -1.0
            strange = 0 <= message.familiarity < known
            camera.unfamiliar += strange
            what = "to what the model does not know " if strange else ""
            self._print(f"{at}  {message.camera}: a change {what}({message.change_score:.2f})")

    def _on_utterance(self, message: Any) -> None:
        camera = self._camera(message, words=True)
        if camera is not None:
            said = Said(
                to_ns(message.segment_start), message.camera, message.query, message.text,
                message.confidence, message.source,
            )  # fmt: skip
            self._print(self.view.say(said))

    def _camera(self, message: Any, words: bool = False) -> CameraView | None:
        """The camera that a message is about; None where it is another graph's or node's."""
        self._news = time.monotonic()
        camera = self.view.cameras.get(message.camera)
        if camera is None:
            return None
        taken = self._sources.takes_words(message) if words else self._sources.takes(message)
        return camera if taken else None

    def _refresh(self) -> None:
        """Take over the cameras' counters."""
        for name, camera in self.perception.snapshot().items():
            shown = self.view.cameras[name]
            shown.encodes, shown.reused, shown.changes = (
                camera.encodes, camera.reused, camera.changes,
            )  # fmt: skip
            shown.dropped, shown.age, shown.problem = camera.dropped, camera.age, camera.problem
            shown.rate_in, shown.rate_out = camera.rate_in, camera.rate_out


def _is_unread(console: Output) -> bool:
    """Whether nobody reads the output any more; a line that was not read made it quiet."""
    return console.quiet or reader_has_gone()


def _overrides(values: dict[str, Any]) -> list[Any]:
    from rclpy.parameter import Parameter

    return [Parameter(name, value=value) for name, value in values.items()]


@contextmanager
def _screen(live: bool, graph: Graph) -> Iterator[Output]:
    """The console; where `live`, with the view at its foot and everything logged above it."""
    console = Output()
    if not live:
        yield console
        return
    console.soft_wrap = False  # or what the panels of the view hold is cut
    read, write = os.pipe()
    stderr = os.dup(2)
    os.dup2(write, 2)  # ROS logs from C++, past sys.stderr
    os.close(write)
    screen = Live(
        console=console, get_renderable=graph.view.render, refresh_per_second=REFRESH,
        redirect_stderr=False, transient=True,  # the summary takes its place
    )  # fmt: skip

    def forward() -> None:
        with os.fdopen(read, errors="replace") as lines:
            for line in lines:
                console.print(line.rstrip("\n"))

    forwarder = threading.Thread(target=forward, daemon=True)
    forwarder.start()
    try:
        with screen:
            yield console
    finally:
        os.dup2(stderr, 2)  # closes the pipe's last end
        os.close(stderr)
        forwarder.join(1.0)
