"""A made-up GPU for tests, in this process (`fake_gpu`) or in another (`environment`)."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FAKES = Path(__file__).resolve().parent / "fakes"
MODULES = (
    "tensorrt", "tensorrt_rtx", "pycuda", "pycuda.driver", "fakegpu", "faketrt", "fakeruntime",
)  # fmt: skip


@dataclass
class FakeGpu:
    """The made-up GPU. `fakegpu`: its module, with memory, streams and counts."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    fakegpu: Any

    def faults(self, *words: str) -> None:
        """What fails from now on; see fakes/README.md."""
        (self.folder / "faults").write_text(" ".join(words))

    @property
    def engines(self) -> Path:
        """The cache of engines."""
        return self.folder / "engines"

    def again(self, **variables: str) -> None:
        """As in a new process, with other FAKE_… variables."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)
        forget()
        self.fakegpu = importlib.import_module("fakegpu")


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The variables of a process that finds the fakes; `folder` keeps its engines and faults."""
    paths = [str(FAKES), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "FAKE_GPU_FAULTS": str(folder / "faults"),
        "VLJEPA_ENGINES": str(folder / "engines"),
        **variables,
    }


def forget() -> None:
    """Make the backend look again, as in a new process."""
    from vljepa_ros.inference.trt import cuda, library

    for name in MODULES:
        sys.modules.pop(name, None)
    cuda._device = None
    library.logger.cache_clear()


@pytest.fixture
def fake_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """The fakes in this process, with an empty cache of engines, until the test ends."""
    before = {name: sys.modules[name] for name in MODULES if name in sys.modules}
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("FAKE_GPU_FAULTS", str(tmp_path / "faults"))
    monkeypatch.setenv("VLJEPA_ENGINES", str(tmp_path / "engines"))
    forget()
    yield FakeGpu(tmp_path, monkeypatch, importlib.import_module("fakegpu"))
    forget()
    sys.modules.update(before)


@pytest.fixture
def quick_builds(fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """The fakes, and engines built in this process: for tests that are not about the child."""
    from vljepa_ros.inference.trt import open as opening
    from vljepa_ros.inference.trt.build import build

    monkeypatch.setattr(opening, "build_in_child", build)
    return fake_gpu


def builders_of(process: int) -> list[int]:
    """The builders of engines among a process's children."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if b"trt.build_process" in command_of(child)]


def command_of(process: int) -> bytes:
    """A process's command line; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""
