"""`vljepa evaluate`: the table of what a bundle can do, as Markdown, JSON and plots."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from vljepa_ros.console import console
from vljepa_ros.errors import needing

from .train import DATA

BUNDLE = typer.Argument("tabletop", help="A folder, a shipped bundle's name, or a Hub id.")
OUT = typer.Option(Path("docs"), help="The folder that results.md, results.json and plots go to.")
COMPARISON = typer.Option(None, help="The JSON of a comparison with a token-generating model.")


def evaluate(
    bundle: str = BUNDLE,
    folder: Path = DATA,
    out: Path = OUT,
    comparison: Path = COMPARISON,
    record: bool = typer.Option(False, help="Write a summary into the bundle's manifest."),
    workers: int = typer.Option(2, min=1, help="Processes that simulate missing episodes."),
) -> None:
    """Measure what a bundle can do on held-out episodes and streams, beside chance and baselines.

    Episodes that are not there yet are simulated first.
    """
    with needing("train"):
        from vljepa_ros.bundle.locate import find_bundle
        from vljepa_ros.evaluation import run
        from vljepa_ros.tabletop import store

    begun = time.monotonic()

    def progress(text: str) -> None:
        console.print(f"{time.monotonic() - begun:6.0f} s  {text}", highlight=False)

    found = find_bundle(bundle)
    beside = None if comparison is None else run.read_comparison(comparison)
    results = run.evaluate(
        found, folder or store.default_root(), workers=workers, progress=progress
    )
    if beside is not None:
        results["comparison"] = beside
    if record:
        progress(f"recorded in the manifest: the bundle is now {run.record(found, results)}")
    for path in run.write(results, out):
        progress(f"written: {path}")
    for one in results["targets"]:
        value = "not measured" if one["value"] is None else f"{one['value']:.3f}"
        mark = "reached    " if one["reached"] else "NOT REACHED"
        console.print(f"{mark}  {one['target']}: {value} ({one['wanted']})", highlight=False)
