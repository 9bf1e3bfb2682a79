"""What training computes in, by the machine that it runs on.

Invariant: bf16 is used only where the processor multiplies in it. torch takes it everywhere, but on
x86 with AVX2 alone a product of matrices then lasts fifty times as long as in fp32.
"""

from __future__ import annotations

from typing import Literal

import torch


def precision() -> Literal["bf16-mixed", "32-true"]:
    """Lightning's name of what a training computes in: bf16, or fp32 where there is none.

    It asks the GPU, and where there is none the CPU.
    """
    if torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = _cpu_has_bf16()
    return "bf16-mixed" if has_bf16 else "32-true"


def use_threads(count: int) -> None:
    """Let one process compute in so many threads on the CPU."""
    torch.set_num_threads(count)


def cpu_autocast() -> torch.autocast:
    """A context in which the CPU computes in bf16 if it can."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_cpu_has_bf16())


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()  # it has no public name before torch 2.13
