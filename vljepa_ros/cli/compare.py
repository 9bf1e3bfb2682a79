"""`vljepa compare`: predicting embeddings against predicting tokens (paper, section 4.5)."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import typer

from .output import console
from .training import DATA, _needs_training

FINISHED = typer.Argument(..., help="The folder of a finished training.")
MADE = typer.Argument(..., help="The JSON file that is made; a PNG with the curves lies beside it.")


def compare(
    run: Path = FINISHED,
    out: Path = MADE,
    samples: int = typer.Option(24576, min=64, help="Questions that each learner sees."),
    folder: Path = DATA,
) -> None:
    """Train VL-JEPA and a token-generating model, twice its size, on a training's X-encoder.

    The work is kept in RUN/comparison-SAMPLES: an interrupted comparison goes on.
    """
    store = _needs_training().store
    from ..training.base import load_checkpoint
    from ..training.comparison import compare as run_comparison
    from ..training.comparison import plot

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = run / f"comparison-{samples}"
    result = run_comparison(load_checkpoint(run), folder or store.default_root(), work, samples)
    out.write_text(json.dumps(result, indent=2) + "\n")
    plot(result, out.with_suffix(".png"))
    console.print(f"{out}, {out.with_suffix('.png')}")
