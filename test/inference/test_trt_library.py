"""Which library, PyCUDA and GPU are here, and the sentence for each that is not."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest
from gpu import FakeGpu, fake_gpu, forget  # noqa: F401, as fixtures

from vljepa_ros.errors import DeviceError, EngineError
from vljepa_ros.inference.trt import cuda, library, priority


@pytest.fixture
def gpu(fake_gpu: FakeGpu) -> FakeGpu:  # noqa: F811
    return fake_gpu


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({"FAKE_TENSORRT_VERSION": "10.2.0.19"}, "tensorrt is 10.2.0.19.*takes 10.3 and later"),
     ({"FAKE_TENSORRT_VERSION": "12.0.0"}, "tensorrt is 12.0.0.*before 12"),
     ({"FAKE_GPU_COUNT": "0"}, "no NVIDIA GPU answers.*no CUDA-capable device")],
)  # fmt: skip
def test_what_is_missing_is_said(gpu: FakeGpu, variables: dict[str, str], reason: str) -> None:
    gpu.again(**variables)
    found = library.missing("tensorrt")
    assert found is not None and re.search(reason, found[0]) and found[1]


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.post12.dev1", "10.16.1.11", "11.1.0"])
def test_these_versions_are_taken(gpu: FakeGpu, version: str) -> None:
    gpu.again(FAKE_TENSORRT_VERSION=version)
    assert library.missing("tensorrt") is None and library.missing("tensorrt_rtx") is None


def test_what_is_not_installed_is_named_with_its_package(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it does not import
    assert library.missing("tensorrt") == ("tensorrt is not installed", library.INSTALL["tensorrt"])
    found = library.missing("tensorrt_rtx")
    assert found is not None and found[0] == "PyCUDA is not installed"
    assert "pip install pycuda" in found[1]
    assert library.library_missing("tensorrt_rtx") is None  # it can build, and not run
    with pytest.raises(EngineError, match="The backend tensorrt is not available: tensorrt is not"):
        library.load("tensorrt")


@pytest.mark.parametrize(
    ("file", "words"),
    [("tensorrt.py", "tensorrt does not import .lib.so.10: cannot open"),
     ("pycuda/driver.py", "PyCUDA does not import .lib.so.10: cannot open")],
)  # fmt: skip
def test_what_is_broken_is_no_traceback(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, words: str
) -> None:
    broken = tmp_path / "broken" / file
    broken.parent.mkdir(parents=True)
    broken.write_text("raise OSError('lib.so.10: cannot open shared object file')")
    if "/" in file:
        (broken.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    forget()
    found = library.missing("tensorrt")
    assert found is not None and re.search(words, found[0])


def test_one_logger_remembers_the_last_error(gpu: FakeGpu) -> None:
    logger = library.logger("tensorrt")
    assert library.logger("tensorrt") is logger and logger.ready
    severity = library.load("tensorrt").ILogger.Severity
    logger.log(severity.ERROR, "Error Code 2:\n  OutOfMemory.")
    logger.log(severity.WARNING, "a warning")
    assert logger.last == "Error Code 2: OutOfMemory"


def test_the_device_is_one_for_the_process(gpu: FakeGpu) -> None:
    device = cuda.device()
    assert cuda.device() is device
    assert (device.name, device.capability, device.integrated) == ("Fake Orin", (8, 7), False)
    with device.current():
        assert len(gpu.fakegpu.threads.stack) == 1
    assert gpu.fakegpu.threads.stack == []
    with pytest.raises(ZeroDivisionError), device.current():
        1 / 0  # noqa: B018
    assert gpu.fakegpu.threads.stack == []


@pytest.mark.parametrize("greatest", [-5, 0])
def test_a_gpu_without_priorities_has_none(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, greatest: int
) -> None:
    monkeypatch.setattr(gpu.fakegpu.Libcuda, "greatest", greatest)
    monkeypatch.setattr(priority.ctypes, "CDLL", lambda name: gpu.fakegpu.Libcuda())
    assert (priority.high_priority_lane() is None) == (greatest == 0)


def test_without_the_driver_s_library_all_have_the_same_priority(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(priority, "_said", set())
    monkeypatch.setattr(priority.ctypes, "CDLL", refuse)
    with caplog.at_level(logging.INFO):
        assert priority.high_priority_lane() is None
        assert priority.high_priority_lane() is None
    assert caplog.text.count("same priority") == 1 and "libcuda.so.1" in caplog.text


def test_an_error_of_the_driver_is_a_device_error(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    libcuda = gpu.fakegpu.Libcuda
    monkeypatch.setattr(libcuda, "cuStreamCreateWithPriority", lambda *_: 2)
    monkeypatch.setattr(priority.ctypes, "CDLL", lambda name: libcuda())
    with pytest.raises(DeviceError, match="cuStreamCreateWithPriority gives CUDA error 2"):
        priority.high_priority_lane()
