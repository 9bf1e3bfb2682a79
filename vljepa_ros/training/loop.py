"""How a stage is run, whichever training it belongs to.

Invariant: an interrupted stage goes on where it stopped, from `last.ckpt` in its folder, and draws
other data; a finished one leaves `weights.safetensors` there, whole or not at all. bf16 is used
only where the processor multiplies in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_model, save_model
from torch import nn

from vljepa_ros.model.networks import VLJepa

from .base import WEIGHTS

LAST = "last.ckpt"


def make_trainer(
    folder: Path, steps: int, devices: int = 1, looks: Sequence[Callback] = (), every: int = 0
) -> lightning.Trainer:
    """What trains `steps` steps and keeps its work in `folder`, every 100 steps.

    `looks`: what to do, keeping the work included, `every` so many steps, on held-out data.
    """
    # Dropout stays off and the folder goes on on purpose.
    warnings.filterwarnings("ignore", "Found .* in eval mode|Checkpoint directory .* exists")
    looking: dict[str, Any] = {}
    if looks:
        looking = {"val_check_interval": min(every, steps), "check_val_every_n_epoch": None}
    keep = ModelCheckpoint(
        folder, save_last=True, save_top_k=0, every_n_train_steps=100, enable_version_counter=False
    )
    return lightning.Trainer(
        max_steps=steps, precision=precision(), accelerator="auto", devices=devices,
        strategy="ddp" if devices > 1 else "auto", gradient_clip_val=1.0,
        callbacks=list(looks) or [keep], logger=CSVLogger(folder, name="log"),
        log_every_n_steps=10, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, **looking,
    )  # fmt: skip


def fit(
    trainer: lightning.Trainer, stage: lightning.LightningModule, data: Any, folder: Path,
    held: Any = None,
) -> None:  # fmt: skip
    """Train a stage on `data`, from where it stopped; KeyboardInterrupt where it is stopped."""
    last = folder / LAST
    trainer.fit(stage, data, held, ckpt_path=str(last) if last.exists() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt(f"stopped after {trainer.global_step} of {trainer.max_steps} steps")


def finished(model: VLJepa, folder: Path) -> bool:
    """Whether the stage of a folder is finished; the model then has its weights."""
    if not (folder / WEIGHTS).exists():
        return False
    load_model(model, str(folder / WEIGHTS))
    return True


@rank_zero_only
def save(model: nn.Module, folder: Path) -> None:
    """Keep the weights, whole or not at all: they say that a stage, or all, is finished."""
    part = folder / f".{WEIGHTS}"
    save_model(model, str(part))
    part.replace(folder / WEIGHTS)


def seed_of(seed: int, folder: Path) -> int:
    """The seed of a stage's data: one that goes on draws others, and so does every process."""
    last = folder / LAST
    done = 0
    if last.exists():
        done = int(torch.load(last, map_location="cpu", weights_only=True)["global_step"])
    return seed + 1_000_003 * done + 7919 * rank()


def rank() -> int:
    """The number of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", 0))


def precision() -> Literal["bf16-mixed", "32-true"]:
    """Lightning's name of what a training computes in: bf16, or fp32 where there is none.

    It asks the GPU, and where there is none the CPU. torch takes bf16 everywhere, but on x86 with
    AVX2 alone a product of matrices then lasts fifty times as long as in fp32.
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
