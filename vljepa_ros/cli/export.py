"""`vljepa export`: a bundle of a finished training."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

from .output import console
from .training import DATA, _needs_training

FINISHED = typer.Argument(..., help="The folder of a finished training.")
MADE = typer.Argument(..., help="The folder of the bundle that is made.")
STREAM = typer.Option(None, help="A held-out stream to judge the bundle on.")


def export(
    run: Path = FINISHED,
    out: Path = MADE,
    version: str = typer.Option("1.0.0", help="The bundle's version."),
    folder: Path = DATA,
    video: Path = STREAM,
) -> None:
    """Make a bundle of a training: export, calibrate on held-out episodes, judge."""
    store = _needs_training().store
    from ..training.release import release

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    evaluation = release(run, folder or store.default_root(), out, version, video)
    for name, figures in evaluation.items():
        console.print(f"{name}: {figures}")
