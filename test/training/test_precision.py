"""bf16 is computed in where the processor has it, and nowhere else."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")

from vljepa_ros.training import loop  # noqa: E402


def _machine(monkeypatch: pytest.MonkeyPatch, gpu: bool | None, cpu: bool) -> None:
    """A machine with a GPU or none, each with bf16 or without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu)


@pytest.mark.parametrize(
    ("gpu", "cpu", "wanted"),
    [(None, False, "32-true"), (None, True, "bf16-mixed"),
     (False, True, "32-true"), (True, False, "bf16-mixed")],
)  # fmt: skip
def test_the_processor_that_trains_is_asked(
    monkeypatch: pytest.MonkeyPatch, gpu: bool | None, cpu: bool, wanted: str
) -> None:
    _machine(monkeypatch, gpu, cpu)
    assert loop.precision() == wanted


@pytest.mark.parametrize("cpu", [False, True])
def test_the_cpu_computes_in_what_it_has(monkeypatch: pytest.MonkeyPatch, cpu: bool) -> None:
    _machine(monkeypatch, None, cpu)
    with loop.cpu_autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if cpu else torch.float32)


def test_this_cpu_is_known_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not told.exists():
        pytest.skip("no x86 Linux, whose /proc/cpuinfo tells what the processor has")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    has = "avx512_bf16" in told.read_text().split()
    assert (loop.precision() == "bf16-mixed") == has
