"""`vljepa bundle show`, `vljepa bundle verify` and `vljepa bundle familiarity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vljepa_ros.console import console, error_line
from vljepa_ros.errors import BundleError

app = typer.Typer(
    help="Look at a model bundle, or check it.", no_args_is_help=True, add_completion=False
)

FOLDER = typer.Argument(..., help="The folder of a bundle of the simulated table.")
DATA = typer.Option(None, help="The folder of the episodes, as of `vljepa data`.")
SOURCE = typer.Argument("tabletop", help="A folder, a shipped bundle's name, or a Hub id.")


@app.command()
def show(source: str = SOURCE) -> None:
    """Print what the bundle is: geometry, graphs, where the weights came from, what they can do."""
    from vljepa_ros.bundle.locate import find_bundle
    from vljepa_ros.bundle.spec import load_bundle

    bundle = load_bundle(find_bundle(source), verify=False)
    clip = bundle.clip
    taken = "" if clip.chunks == 1 else f", encoded {clip.chunk} at a time"
    facts: dict[str, Any] = {
        "model_id": bundle.model_id,
        "folder": bundle.path,
        "embedding": f"{bundle.embedding_dim} numbers",
        "clip": f"{clip.frames} frames of {clip.image_size} px at {clip.sample_rate:g} per second"
        f" ({clip.span_ns / 1e9:g} s){taken}",
        "default query": bundle.default_query or "none: it is asked nothing",
        "decoder": f"at most {bundle.decoder.length} tokens" if bundle.decoder else "none",
        "thresholds": _line(vars(bundle.thresholds)),
        "familiarity": f"known from {bundle.familiarity_threshold:g} on"
        if bundle.familiarity
        else "it cannot tell",
    }
    for name, graph in bundle.graphs.items():
        size = graph.path.stat().st_size / 2**20 if graph.path.is_file() else float("nan")
        facts[name] = f"{graph.path.name}, {size:.1f} MiB: " + _line(
            {key: list(spec.shape) for key, spec in {**graph.inputs, **graph.outputs}.items()}
        )
    _print_facts(facts)
    for title, section in (
        ("source", bundle.source),
        ("calibration", bundle.calibration),
        ("evaluation", bundle.evaluation),
    ):
        console.print(f"\n{title}", style="bold")
        _print_facts(section or {"": "nothing is said"})


@app.command()
def verify(source: str = SOURCE) -> None:
    """Check every file against the manifest; exit code 1 and a line for each problem."""
    from vljepa_ros.bundle.locate import find_bundle
    from vljepa_ros.bundle.spec import load_bundle
    from vljepa_ros.inference.verify import verify_bundle

    folder = find_bundle(source)
    problems = verify_bundle(folder)
    if not problems:
        bundle = load_bundle(folder, verify=False)
        console.print(f"{bundle.model_id} in {folder}: every file is what the manifest says.")
        return
    for problem in problems[:-1]:
        error_line(problem)
    raise BundleError(problems[-1])


@app.command()
def familiarity(folder: Path = FOLDER, data: Path | None = DATA) -> None:
    """Fit what a bundle knows to episodes of the simulated table, and put it into the bundle.

    For a bundle of another world: `vljepa calibrate`, on footage of it.
    """
    from vljepa_ros.bundle.spec import load_bundle
    from vljepa_ros.errors import needing

    with needing("train"):
        from vljepa_ros.inference.familiarity import add_familiarity
        from vljepa_ros.inference.runtime import Runtime
        from vljepa_ros.tabletop.store import default_root
        from vljepa_ros.training.calibrate import calibrate_familiarity
    model = Runtime(load_bundle(folder), "onnxruntime-cpu", parts=("x_encoder",))
    add_familiarity(folder, calibrate_familiarity(model, data or default_root()))
    console.print(f"{load_bundle(folder).model_id} in {folder}")


def _line(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            console.print(f"{indent}{key}")
            _print_facts(value, indent + "  ")
        else:
            console.print(f"{indent}{key:<{width}}  {value}")
