"""`vljepa up`: the graph in one process, its view and its ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle, with_phrases
from graph import domain, noise, wait
from rich.console import Console
from terminals import open_terminal

from vljepa_ros.cli.live.up import Graph, check_params
from vljepa_ros.cli.live.view import CameraView, Said, StreamView, bar, sparkline
from vljepa_ros.cli.times import parse_stamp
from vljepa_ros.errors import VLJepaError
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.msg import SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.ros import process
from vljepa_ros.ros.process import needs_ros

COMMAND = [sys.executable, "-c", "from vljepa_ros.cli import main; main()", "up"]
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("up") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images: 2 s at the 10 Hz of a folder."""
    folder = tmp_path_factory.mktemp("images")
    for k in range(20):
        cv2.imwrite(str(folder / f"{k}.png"), noise(k // 6)[..., ::-1])
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "ROS_DOMAIN_ID": str(domain()), "TERM": "xterm", "COLUMNS": "80"}


def test_a_video_ends_with_a_summary(bundle: Path, folder: Path) -> None:
    run = subprocess.run(
        [*COMMAND, "--tui", "--bundle", str(bundle), "--video", str(folder), "--cameras", "front"],
        env=environment(), cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert re.search(r"\d+ decodes? where uniform decoding at 1 Hz takes", lines[-1])
    assert any(re.match(r"\S+  front: a change ", line) for line in lines)
    assert len(set(lines)) == len(lines)  # it says nothing twice
    assert "\x1b" not in run.stdout  # no terminal, no control codes


def test_a_bundle_without_decoder_says_its_phrases(tmp_path: Path, folder: Path) -> None:
    bundle = make_bundle(tmp_path / "mute", decoder=False)
    with_phrases(bundle, ["a cube falls", "a ball rolls"])
    run = subprocess.run(
        [*COMMAND, "--no-tui", "--bundle", str(bundle), "--video", str(folder)],
        env={**environment(), "XDG_CACHE_HOME": str(tmp_path)}, cwd=tempfile.gettempdir(),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert re.search(r"a (cube falls|ball rolls)  \(", run.stdout), run.stdout
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("options", "shown", "not_shown"),
    [([], ("\x1b", "Hz in", "said", "What was said"), "camera: a change"),
     (["--no-tui"], ("camera: a change", "uniform decoding"), "What was said")],
)  # fmt: skip
def test_a_terminal_gets_the_live_view_or_lines(
    bundle: Path, folder: Path, options: list[str], shown: tuple[str, ...], not_shown: str
) -> None:
    text = in_terminal(["--bundle", str(bundle), "--video", str(folder), *options])
    for words in shown:
        assert words in text
    assert not_shown not in text


def in_terminal(arguments: list[str]) -> str:
    """What the command shows on a terminal, until it ends well."""
    master, slave = open_terminal()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(), cwd=tempfile.gettempdir(), stdout=slave, stderr=slave, stdin=slave,
    )  # fmt: skip
    os.close(slave)
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 65536):
                shown.extend(data)
        except OSError:  # the terminal's other end is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert process.wait(60) == 0
    reader.join(10)
    return shown.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_summary(bundle: Path, number: int) -> None:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*COMMAND, "--bundle", str(bundle)],
            env=environment(), cwd=tempfile.gettempdir(), stdout=output, stderr=output,
        )  # fmt: skip

        def printed() -> str:
            return os.pread(output.fileno(), 1 << 20, 0).decode()

        wait(lambda: "tiny-1.0.0#" in printed(), "the nodes to be active")
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10.0  # 3 s on a machine that has time
        assert "Traceback" not in printed()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "/no/such/bundle"], " cannot start: No bundle '/no/such/bundle'"),
        (["--params", "/no/such.yaml"], "/no/such.yaml"),
        (["--params", __file__], "is not valid YAML"),
        (["--log-level", "loud"], "'--log-level loud'"),
        (["--namespace", "robot 1"], "--namespace: 'robot 1' is no namespace: write letters"),
        (["--video", "/no/such.mp4"], "/no/such.mp4"),
        (["--set", "perception.rear.rate=2"], "--set perception.rear.rate: there is no such "),
    ],
)
def test_what_is_wrong_is_one_sentence_and_the_last(
    bundle: Path, arguments: list[str], words: str
) -> None:
    run = subprocess.run(
        [*COMMAND, "--bundle", str(bundle), *arguments], env=environment(),
        cwd=tempfile.gettempdir(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=60,
    )  # fmt: skip
    assert run.returncode == 1
    assert words in run.stdout.splitlines()[-1]
    assert run.stdout.count(words.removeprefix(" cannot start: ")) == 1
    assert "Traceback" not in run.stdout
    assert "ros2" not in run.stdout  # its nodes end with it, so no `ros2 lifecycle` helps


def test_settings_reach_the_nodes(bundle: Path, folder: Path) -> None:
    """A change at every step, five times a second, of a camera that has another name."""
    options = [
        "perception.change_threshold=1e-6", "perception.cameras=[rear]", "camera.rate=20",
        "perception.rear.rate=5", "perception.min_segment=1", "decoder.words=none",
    ]  # fmt: skip
    given = [part for option in options for part in ("--set", option)]
    run = subprocess.run(
        [*COMMAND, "--bundle", str(bundle), "--video", str(folder), *given],
        env=environment(), cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert "rear: a change" in run.stdout
    assert "Nothing was said." in run.stdout


def test_a_callback_that_fails_ends_it(bundle: Path) -> None:
    code = (
        "from vljepa_ros.ros.listener import ListenerNode\n"
        "def fail(*_): raise ValueError('broken')\n"
        "from vljepa_ros.cli.live import up\n"
        "up.Graph._on_info = fail\n"
        "from vljepa_ros.cli import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "up", "--bundle", str(bundle)],
        env=environment(), cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("/listener has failed: ValueError: broken;")


def test_what_it_needs_depends_on_where_it_was_installed(tmp_path: Path) -> None:
    error = ModuleNotFoundError("No module named 'rclpy'")
    assert "run scripts/setup once, then `. scripts/env.sh`" in str(needs_ros("up", error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "__file__", str(tmp_path / "vljepa_ros" / "ros" / "process.py"))
        sentence = str(needs_ros("up", error))
    assert "scripts" not in sentence and "workspace" in sentence and "'rclpy'" in sentence


def params(folder: Path, port: int = 0) -> Path:
    """The memory in `folder`, and the page on a port."""
    file = folder / "params.yaml"
    file.write_text(
        f"/**/memory:\n  ros__parameters: {{store: '{folder / 'memory'}'}}\n"
        f"/**/web:\n  ros__parameters: {{port: {port}}}\n"
    )
    return file


def test_memory_and_page_come_up_beside(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [*COMMAND, "--memory", "--web", "--params", str(params(tmp_path)), "--bundle", str(bundle),
         "--video", str(folder)],
        env=environment(), cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "The page is at http://127.0.0.1:" in run.stdout
    with MomentStore(tmp_path / "memory", read_only=True) as store:
        assert len(store) >= 1


def test_perception_goes_on_without_a_page_that_cannot_be_served(
    bundle: Path, folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [*COMMAND, "--port", port, "--bundle", str(bundle), "--video", str(folder)],
            env=environment(), cwd=tempfile.gettempdir(), capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
    assert run.returncode == 0
    assert f"port {port}: something listens there already" in run.stdout
    assert "Perception goes on without the page" in run.stdout
    assert "camera: a change" in run.stdout
    assert "Traceback" not in run.stderr


def test_a_looped_video_is_played_again(bundle: Path, folder: Path) -> None:
    """20 images are 2 s; the 30th embedding comes after them."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*COMMAND, "--no-tui", "--bundle", str(bundle), "--video", str(folder), "--loop"],
            env=environment(), cwd=tempfile.gettempdir(), stdout=output, stderr=output,
        )  # fmt: skip
        changes = re.compile(r"^(\S+)  camera: a change", re.M)

        def seen() -> float:
            """Seconds from the first change to the last."""
            printed = os.pread(output.fileno(), 1 << 20, 0).decode()
            stamps = [parse_stamp("the line's time", at) for at in changes.findall(printed)]
            return (stamps[-1] - stamps[0]) / SECOND if stamps else 0.0

        wait(lambda: seen() > 2.0, "a change after the video's end")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.parametrize("content", ["hello", "perception: {rate: 2.0}", ""])
def test_a_file_without_parameters_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(content)
    with pytest.raises(VLJepaError, match=r"params\.yaml is not a parameter file"):
        check_params(file)


def test_messages_of_another_graph_are_not_shown() -> None:
    """Two graphs in one domain and namespace hear each other."""
    graph = Graph.__new__(Graph)
    graph.view = StreamView({"front": CameraView()})
    graph._queries = []
    graph._print = lambda line: None
    for handler, message in (
        (graph._on_embedding, SemanticEmbedding(camera="other")),
        (graph._on_change, SemanticChange(camera="other")),
        (graph._on_utterance, Utterance(camera="other", text="a cube falls")),
    ):
        handler(message)
    assert graph.view.said == []
    assert list(graph.view.cameras) == ["front"]


def test_the_view_counts_what_was_saved() -> None:
    view = StreamView({"front": CameraView(), "rear": CameraView()}, queries=2)
    for name in view.cameras:
        for k in range(41):
            view.cameras[name].step(100 * SECOND + k * SECOND // 4, 99 * SECOND, 0.5)
    view.cameras["front"].encodes, view.cameras["front"].reused = 30, 10
    view.cameras["rear"].encodes = 40
    view.say(Said(SECOND, "front", "what?", "a cube falls", 0.9))
    assert view.seconds() == pytest.approx(22)
    assert view.savings() == (70, 80, 1, 44)
    assert "the gate saved 12 %" in view.saved()
    assert "98 % saved" in view.saved()
    console = Console(width=60, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(view.render())
    text = console.export_text() + "\n".join(view.words(60))
    assert text.count("a cube falls") == 2
    assert max(len(line) for line in text.splitlines()) <= 60
    assert view.summary()[0].startswith("22.0 s of stream, ")


def test_the_view_counts_what_a_vlm_was_spared() -> None:
    view = StreamView({"front": CameraView()})
    for k in range(41):
        view.cameras["front"].step(100 * SECOND + k * SECOND // 4, 99 * SECOND, 0.5)
    view.say(Said(SECOND, "front", "what?", "a cube falls", 0.9, "decoder"))
    assert "VLM" not in view.saved()
    view.say(Said(2 * SECOND, "front", "what?", "A hand.", 0.9, "vlm"))
    assert view.saved().endswith("82 % saved; a VLM spoke 1 time instead of 11.")
    assert view.words(60)[-2].endswith("vlm")


def test_bar_and_sparkline() -> None:
    assert bar(0.0).plain.count("█") == 0
    assert bar(99.0).plain.count("█") == bar(1.5).plain.count("█")
    assert bar(0.7).plain.index("┃") == bar(1.2).plain.index("┃")
    view = CameraView()
    for k in range(200):
        view.step(k, 0, k / 100)
    line = sparkline(view.scores).plain
    assert len(line) == 56
    assert line[-1] == "█"
