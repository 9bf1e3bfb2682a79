"""Nobody is called, and no process forks: ROS and what the user names are all that is talked to.

What is preloaded sees it in every library, Python or not. A robot's HOME shows the rest: whoever
counts its users keeps their number there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import cv2
from bundles import make_bundle
from graph import domain, noise

SUPPORT = Path(__file__).resolve().parents[1] / "support"
COMPILER = shutil.which("gcc") or shutil.which("cc")
COMMANDS = """
import json, sys
from vljepa_ros.cli import main
for command in json.loads(sys.argv[1]):
    print("vljepa", *command, flush=True)
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
# What tells libraries to be silent: they have to hear it from us.
SILENCERS = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "CI", "TF_BUILD", "JENKINS_URL")
EVERYTHING = """
import importlib, pkgutil
import vljepa_ros
for module in pkgutil.walk_packages(vljepa_ros.__path__, "vljepa_ros."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
ENGINE = """
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
Runtime(load_bundle({bundle!r}), "openvino", 1).close()
import openvino
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("watch") / "watch.so"
    source = str(SUPPORT / "watch.c")
    subprocess.run(
        [str(COMPILER), "-shared", "-fPIC", source, "-o", str(library), "-ldl"], check=True
    )
    return library


class Watched:
    """Processes that are watched, with a HOME of their own."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.home, self._notes = folder / "home", folder / "notes"
        self.home.mkdir()
        self.folder = folder
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if key not in SILENCERS and not key.startswith("XDG_")
        } | {
            "HOME": str(self.home), "LD_PRELOAD": str(library), "WATCHED": str(self._notes),
            "ROS_DOMAIN_ID": str(domain()), "VLJEPA_MEMORY": str(folder / "memory"),
        }  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments], env=self.environment, cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=100)
        assert process.returncode == code, said
        return said

    def notes(self, allowed: Sequence[str] = ()) -> list[str]:
        """What was seen; Python's own second start, with the wheels' libraries, is not."""
        text = self._notes.read_text() if self._notes.exists() else ""
        lines = text.replace("spawn ", "exec ").splitlines()  # as Python does from 3.13 on
        own = ("python", *allowed)
        return [
            line for line in lines
            if not (line.startswith("exec ") and line.rsplit("/", 1)[-1].startswith(own))
        ]  # fmt: skip

    def kept(self) -> set[str]:
        """What lies in HOME, ROS's logs aside."""
        found = (path.relative_to(self.home) for path in self.home.rglob("*"))
        return {str(path) for path in found if path.parts[0] != ".ros"}


@pytest.fixture
def watched(tmp_path: Path, watch: Path) -> Watched:
    return Watched(tmp_path, watch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_bundle(tmp_path_factory.mktemp("quiet") / "tiny"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    for k in range(20):
        cv2.imwrite(str(folder / f"{k}.png"), noise(k // 6)[..., ::-1])
    return str(folder)


def test_the_watch_sees(watched: Watched) -> None:
    """Without this, the tests below would pass with anything."""
    watched.run(
        "-c",
        "import os, socket, subprocess\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "subprocess.run(['/bin/true'])\n"
        "for there in '127.0.0.1', '239.255.0.1', '192.0.2.1':\n"
        "    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((there, 9))\n"
        "try: socket.getaddrinfo('nobody.invalid', 80)\n"
        "except OSError: pass\n",
    )
    assert sorted(watched.notes()) == [
        "connect 192.0.2.1", "exec /bin/true", "fork ", "getaddrinfo nobody.invalid",
    ]  # fmt: skip


def test_nothing_that_is_imported_calls_anybody(watched: Watched) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")
    watched.run("-c", EVERYTHING)
    # matplotlib looks which fonts there are, ctypes where a library lies
    assert watched.notes(allowed=("fc-list", "ldconfig")) == []
    assert {one for one in watched.kept() if "matplotlib" not in one} <= {".cache", ".config"}


def test_openvino_comes_without_its_telemetry(watched: Watched, bundle: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    watched.run("-c", ENGINE.format(bundle=bundle))
    assert watched.notes() == [] and watched.kept() == set()


def test_the_commands(watched: Watched, bundle: str, video: str) -> None:
    commands = [
        ["doctor", "--bundle", bundle],
        ["bundle", "show", bundle],
        ["bundle", "verify", bundle],
        ["engines", "list"],
        ["index", video, "--bundle", bundle, "--store", "store"],
        ["recall", "x", "--bundle", bundle, "--store", "store"],
        ["memory", "show", "--store", "store"],
        ["mcp"],  # stdin is at its end
        ["ask", "what?", "--timeout", "0.1"],  # nobody answers, which ends this in a sentence
    ]
    said = watched.run("-c", COMMANDS, json.dumps(commands), code=1)
    assert "vljepa ask" in said and "Traceback" not in said
    assert watched.notes() == [] and watched.kept() == set()


def test_the_whole_graph(watched: Watched, bundle: str, video: str) -> None:
    command = ["up", "--memory", "--port", "0", "--bundle", bundle, "--video", video]
    said = watched.run("-c", COMMANDS, json.dumps([command]))
    assert "The page is at" in said and " where uniform decoding" in said
    assert watched.notes() == [] and watched.kept() == set()


def test_the_executables(watched: Watched, bundle: str, video: str) -> None:
    began = {
        "perception": ("Active.", "bundle", bundle),
        "decoder": ("Active.", "bundle", bundle),
        "memory": ("Active.", "bundle", bundle),
        "web": ("The page is at", "port", "0"),
        "video": ("Playing", "source", video),
    }
    processes = []
    for name, (_, parameter, value) in began.items():
        given = ["-p", f"{parameter}:={value}"]
        if name in ("perception", "decoder"):
            given += ["-p", "backend:=openvino"]
        module = f"vljepa_ros.nodes.{name}_node"
        processes.append(watched.start("-u", "-m", module, "--ros-args", *given))
    end = time.monotonic() + 60
    for process, (words, _, _) in zip(processes, began.values()):
        assert process.stdout is not None
        said = ""
        while words not in said:
            assert time.monotonic() < end and process.poll() is None, said
            said += process.stdout.readline()
    for process in processes:
        process.terminate()
    for process in processes:
        process.communicate(timeout=30)
    assert watched.notes() == [] and watched.kept() == set()
