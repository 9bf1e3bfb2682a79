"""`vljepa compare`: predicting embeddings against predicting tokens (paper, section 4.5)."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import typer

from vljepa_ros.console import console
from vljepa_ros.errors import needing

from .train import DATA

MODEL = typer.Argument(..., help="A bundle (folder, name or Hub id) or a finished training.")
MADE = typer.Argument(..., help="The JSON file that is made; a PNG with the curves lies beside it.")


def compare(
    model: str = MODEL,
    out: Path = MADE,
    samples: int = typer.Option(24576, min=64, help="Questions that each learner sees."),
    folder: Path = DATA,
) -> None:
    """Train VL-JEPA and a token-generating model, twice its size, on a model's X-encoder.

    The work is kept beside OUT.json, in OUT-SAMPLES: an interrupted comparison goes on.
    """
    with needing("train"):
        from vljepa_ros.evaluation.plots import token_comparison
        from vljepa_ros.tabletop import store
        from vljepa_ros.training.base import load_base
        from vljepa_ros.training.comparison.compare import compare as run_comparison

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = out.with_name(f"{out.stem}-{samples}")
    result = run_comparison(load_base(model).model, folder or store.default_root(), work, samples)
    out.write_text(json.dumps(result, indent=2) + "\n")
    token_comparison(result, out.with_suffix(".png"))
    console.print(f"{out}, {out.with_suffix('.png')}")
