"""The commands of the docs, run as they stand there: they do what the page says that they print.

Each page is a shell of its own, in a folder that has what the page takes for granted. What needs
long, a network, a GPU, a robot or a ROS distribution is marked in the page's source
(`<!-- not run: REASON -->`), and its words are looked at by test_docs_say.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
pytest.importorskip("aiohttp", reason="not installed: pip install aiohttp")
pytest.importorskip("av", reason="not installed: pip install av")

import bags
from bundles import make_bundle
from graph import DEADLINE, domain, noise, wait
from pages import PAGES, ROOT, Command, blocks, words
from terminals import open_terminal
from video_files import write_video

# A busy machine may see late what is there; each command looks for 3 s alone.
CODE = (
    f"from vljepa_ros.cli.live import calls; calls.LOOK = {DEADLINE}; "
    "from vljepa_ros.cli import main; main()"
)
BUILT_IN = ("vljepa", ".", "cd", "export")  # ours among them
LONGEST = 240.0  # seconds of one command, on a machine that has much else to do
SECOND = 1_000_000_000
PYARROW = importlib.util.find_spec("pyarrow") is not None
STREAM = "vljepa up --bundle tabletop --video videos/tabletop.mp4 --loop --memory --web"
# A graph that plays on, which is asked about what it sees just then: numbers, order and words vary.
LINKED = (".venv", ".colcon", "config", "engines", "examples", "scripts", "test", "videos")
LIVE = ("ask", "classify", "watch", "listen", "status")
TO_RUN = [
    command
    for page in PAGES
    for block in blocks(page)
    if not block.mark
    for command in block.commands()
]


class Started:
    """A command that does not end by itself."""

    def __init__(self, command: str, **options: Any) -> None:
        self._shown = bytearray()
        # Filters hand each line on at once where they write to a terminal.
        ours, theirs = open_terminal() if " | " in command else os.pipe()
        self.process = subprocess.Popen(
            ["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
            start_new_session=True, **options,
        )  # fmt: skip
        os.close(theirs)
        threading.Thread(target=self._read, args=[ours], daemon=True).start()

    def _read(self, ours: int) -> None:
        try:
            while data := os.read(ours, 65536):
                self._shown.extend(data)
        except OSError:  # the terminal's other end is closed
            pass
        os.close(ours)

    @property
    def printed(self) -> str:
        return self._shown.decode(errors="replace")

    def until(self, pattern: str) -> None:
        """Until it has printed that."""

        def found() -> bool:
            ended = self.process.poll() is not None
            done = re.search(pattern, self.printed) is not None
            assert done or not ended, f"it has ended:\n{self.printed}"
            return done

        wait(found, f"{pattern} in what it prints", LONGEST)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        try:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGINT)
            return self.process.wait(DEADLINE)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class Shell:
    """Runs commands in a folder of its own; `left` of them are still to come."""

    def __init__(self, folder: Path, cache: Path, left: int) -> None:
        self.folder, self.left = folder, left
        self._stay: dict[str, Started] = {}  # by command
        bin, home = folder.parent / "bin", folder.parent / "home"
        for made in (folder, bin, home):
            made.mkdir()
        program = bin / "vljepa"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{CODE}" "$@"\n')
        program.chmod(0o755)
        self._env = {
            **os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "HOME": str(home),
            "ROS_DOMAIN_ID": str(domain()), "PYTHONUNBUFFERED": "1", "COLUMNS": "80",
            "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(Path.home() / ".config/matplotlib")),
            "VLJEPA_ENGINES": str(home / "engines"),
        }  # fmt: skip
        self._env["XDG_CACHE_HOME"] = str(cache)  # phrases of a bundle are embedded once
        for name in ("VLJEPA_MEMORY", "XDG_DATA_HOME"):
            self._env.pop(name, None)
        for name in LINKED:
            if (ROOT / name).exists():
                (folder / name).symlink_to(ROOT / name)

    def run(self, command: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command that ends."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self._env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def start(self, command: str, **environment: str) -> Started:
        """Start a command that does not end by itself."""
        return Started(command, cwd=self.folder, env={**self._env, **environment})

    def keep(self, command: str) -> Started:
        """Start a command, once, that the next ones need."""
        if command not in self._stay:
            self._stay[command] = self.start(command)
        return self._stay[command]

    def close(self) -> None:
        """End what stays."""
        stay, self._stay = self._stay, {}
        for command, started in stay.items():
            assert started.stop() == 0, f"{command}:\n{started.printed}"


def camera(seconds: int) -> list[np.ndarray]:
    """Pictures of a camera, ten a second: another scene every 5 s, and its noise in each."""
    random = np.random.default_rng(0)
    return [
        np.clip(noise(k // 50).astype(float) + random.normal(0, 3, (48, 64, 3)), 0, 255)
        .astype(np.uint8)
        for k in range(10 * seconds)
    ]  # fmt: skip


def recordings(folder: Path) -> None:
    """The recordings and bundles that pages name without saying where they come from."""
    pictures = camera(40)
    for name in ("shift3", "bags/tuesday"):
        (folder / name).parent.mkdir(exist_ok=True)
        stamped = [("/front/image_raw", SECOND + k * SECOND // 10, pictures[k]) for k in range(70)]
        bags.write_bag(folder / name, stamped)
    shutil.copy(next((folder / "shift3").glob("*.mcap")), folder / "shift4.mcap")
    times = range(0, 100 * len(pictures), 100)
    write_video(folder / "monday.mp4", times, make=pictures.__getitem__)
    if PYARROW:
        from lerobot_sets import H264, Made

        made = Made([len(pictures)], texts=["put the red cube into the box"], codec=H264,
                    picture=lambda episode, frame: pictures[frame])  # fmt: skip
        made.write(folder / "cubes")
    for name in ("BUNDLE", "DIR"):
        make_bundle(folder / name)


@pytest.fixture(scope="module")
def shells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Shell]]:
    """A page's shell; those that talk to the shipped stream share one, in which it plays."""
    made: dict[str, Shell] = {}
    cache = tmp_path_factory.mktemp("cache")
    pages = {command.block.page for command in TO_RUN if verb(command) in LIVE}
    keys = [key_of(command.block.page, pages) for command in TO_RUN]

    def shell(page: Path) -> Shell:
        key = key_of(page, pages)
        if key not in made:
            made[key] = Shell(tmp_path_factory.mktemp("page") / "work", cache, keys.count(key))
            recordings(made[key].folder)
            if key == STREAM:
                plays(made[key].keep(STREAM))
        return made[key]

    yield shell
    for one in made.values():
        one.close()


def key_of(page: Path, live: set[Path]) -> str:
    return STREAM if page in live else page.name


def plays(stream: Started) -> None:
    """Until its nodes are there, and something has changed in it."""
    stream.until(": a change")


def verb(command: Command) -> str:
    words = command.bare.split()
    return words[1] if words[0] == "vljepa" and len(words) > 1 else ""


def is_live(command: Command) -> bool:
    """Whether it asks about the stream, which has gone on since: what is said then varies."""
    return verb(command) in (*LIVE, "recall") and "--store" not in command.bare


def shape(line: str, literal: bool) -> str:
    """A line without its numbers and widths; not `literal`: nor what it says."""
    line = re.sub(r"\d+([.:,]\d+)*", "#", line)
    if not literal:
        line = re.sub(r"[^\W\d_][\w'-]*( [^\W\d_][\w'-]*)*", "w", line)
    return " ".join(line.split())


def agrees(command: Command, out: str, error: str) -> bool:
    """Whether that was printed which the page shows, with what is beside the output or without."""
    return any(_agrees(command, printed) for printed in (out, out + error))


def _agrees(command: Command, printed: str) -> bool:
    """… stands for the rest of it, or of a line."""
    literal = not is_live(command)
    found = [shape(line, literal) for line in printed.splitlines() if line.strip()]
    for shown in filter(str.strip, command.shown or ()):
        if shown == "…":
            return True
        begin = shape(shown.removesuffix("…"), literal)
        if not found or (
            found[0] != begin and not (shown[-1] == "…" and found[0].startswith(begin))
        ):
            return False
        del found[0]
    return not found


def name_of(command: Command) -> str:
    return f"{command.block.page.name}-{command.bare}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("command", TO_RUN, ids=name_of)
def test_it_runs_and_prints_what_the_page_shows(
    command: Command, shells: Callable[[Path], Shell]
) -> None:
    for program, *_ in words(command.bare):
        if "/" not in program and shutil.which(program) is None and program not in BUILT_IN:
            pytest.skip(f"there is no {program}")
    if not PYARROW and (command.block.page.name == "lerobot.md" or " cubes " in command.bare):
        pytest.skip("PyArrow is not installed: pip install pyarrow")
    shell = shells(command.block.page)
    shell.left -= 1
    match verb(command):
        case "up" if command.bare == STREAM:
            plays(shell.keep(STREAM))
        case "up":
            graph = shell.start(command.bare, ROS_DOMAIN_ID=str(domain()))
            try:
                graph.until(r" on [\w-]+ \(\w+\)")  # the model, and what runs it
            finally:
                code = graph.stop()
            assert code == 0, graph.printed
        case "listen":
            listener = shell.start(command.bare)
            try:
                listener.until(r"\bcamera\b")  # whose stream it is
            finally:
                code = listener.stop()
            assert code == 0 or " | " in command.bare, listener.printed  # the filter's code
        case "watch":  # it may take a while until that is true: it watches, and can be stopped
            watcher = shell.start(command.bare)
            try:
                watcher.until(r"\d\.\d\d")
            finally:
                code = watcher.stop()
            last = watcher.printed.splitlines()[-1]
            assert (code == 0) == (last == "now"), watcher.printed
            assert code == 0 or last.startswith("Stopped before '"), watcher.printed
        case _:
            code, out, error = shell.run(command.bare)
            assert code == 0, out + error
            assert "Traceback" not in error
            if command.shown and is_live(command):
                # Of a stream that has just begun, less is remembered than the page shows.
                wait(
                    lambda: agrees(command, *shell.run(command.bare)[1:]),
                    f"more than {out}{error}",
                    LONGEST,
                )
            elif command.shown:
                assert agrees(command, out, error), f"{out}\nand not\n" + "\n".join(command.shown)
    if not shell.left:
        shell.close()
