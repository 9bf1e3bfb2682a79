"""`vljepa bundle show`, `vljepa bundle verify` and `vljepa bundle familiarity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from vljepa_ros.console import console, error_line
from vljepa_ros.errors import BundleError, counted

from .usage import Group

if TYPE_CHECKING:
    from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec
    from vljepa_ros.bundle.spec import Bundle

app = typer.Typer(
    cls=Group,
    help="Look at a model bundle, or check it.",
    no_args_is_help=True,
    add_completion=False,
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
    print_facts(_facts(bundle))
    for title, section in (
        ("graphs", {name: _graph(graph) for name, graph in bundle.graphs.items()}),
        ("source", bundle.source),
        ("calibration", bundle.calibration),
        ("evaluation", bundle.evaluation),
    ):
        console.print(f"\n{title}", style="bold")
        print_facts(section) if section else console.print("nothing is said")


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
def familiarity(folder: Path = FOLDER, data: Optional[Path] = DATA) -> None:
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


def _facts(bundle: Bundle) -> dict[str, Any]:
    clip, thresholds, phrases = bundle.clip, bundle.thresholds, bundle.phrases
    taken = "" if clip.chunks == 1 else f", encoded {clip.chunk} at a time"
    return {
        "model_id": bundle.model_id,
        "folder": bundle.path,
        "embedding": counted(bundle.embedding_dim, "number"),
        "clip": f"{counted(clip.frames, 'frame')} of {clip.image_size} x {clip.image_size} pixels, "
        f"{clip.sample_rate:g} a second ({clip.span_ns / 1e9:g} s){taken}",
        "default query": bundle.default_query or "none: it is asked nothing",
        "words": f"of a Y-decoder, at most {counted(bundle.decoder.length, 'token')}"
        if bundle.decoder
        else f"phrases of {phrases.file.name}, from a cosine of {phrases.cosine:g} on"
        if phrases
        else "none of its own",
        "gate": f"{thresholds.gate:g} grey levels are new",
        "change": f"{thresholds.change:g} of Ward cost",
        "watch": f"a condition holds, a match is not weak, from a cosine of {thresholds.watch:g} "
        "on",
        "familiarity": f"known from {bundle.familiarity_threshold:g} on"
        if bundle.familiarity
        else "it cannot tell",
    }


def _graph(graph: GraphSpec) -> dict[str, Any]:
    size = f"{graph.path.stat().st_size / 2**20:.1f} MiB" if graph.path.is_file() else "missing"
    variants = [f"{name}, cosine {one.cosine:g}" for name, one in graph.variants.items()]
    return {
        "file": f"{graph.path.name}, {size}",
        "takes": [_tensor(name, tensor) for name, tensor in graph.inputs.items()],
        "gives": [_tensor(name, tensor) for name, tensor in graph.outputs.items()],
        "open sizes": [f"{name} {low} to {high}" for name, (low, _, high) in graph.profile.items()],
        **({"also as": variants} if variants else {}),
    }


def _tensor(name: str, tensor: TensorSpec) -> str:
    return f"{name} {' x '.join(map(str, tensor.shape))} ({tensor.dtype})"


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Names and what they stand for, in lines; what lies in another is set in below its name."""
    plain = {key: _plain(value) for key, value in facts.items()}
    width = max((len(str(key)) for key, text in plain.items() if text is not None), default=0)
    for key, text in plain.items():
        value = facts[key]
        if text is not None:
            console.print(f"{indent}{key:<{width}}  {text}", hang=len(indent) + width + 2)
        elif isinstance(value, dict):
            console.print(f"{indent}{key}")
            print_facts(value, indent + "  ")
        else:
            console.print(f"{indent}{key}")
            for item in value:
                parts = item.items() if isinstance(item, dict) else ()
                told = ", ".join(f"{name} {_plain(one) or one}" for name, one in parts)
                console.print(f"{indent}  - {told or _plain(item)}", hang=len(indent) + 4)


def _plain(value: Any) -> str | None:
    """A value as people write it; None where it has values of its own."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        parts = [_plain(item) for item in value]
        return None if None in parts else ", ".join(map(str, parts))
    return None if isinstance(value, dict) else str(value)
