"""`vljepa engines`: build TensorRT engines before the robot needs them, look at them, remove them.

Invariant: an engine that `build` reports as compared is exact within the bundle's tolerance.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from vljepa_ros.bundle.locate import DEFAULT
from vljepa_ros.console import console, notice, print_json, print_table
from vljepa_ros.errors import EngineError, counted
from vljepa_ros.stamps import SECOND_NS, clock

from .records import record
from .usage import Group

if TYPE_CHECKING:
    from vljepa_ros.inference.trt.cache import Entry, Listed

app = typer.Typer(
    cls=Group,
    help="Build the GPU's engines ahead, look at those that are built, remove them.",
    no_args_is_help=True,
    add_completion=False,
)
LIBRARIES = ("tensorrt", "tensorrt_rtx")
PART = typer.Option(None, help="Only this graph, e.g. x_encoder; again for more.")
PROFILE = typer.Option(
    None, metavar="SIZE=LEAST:USUAL:MOST",
    help="Other batches than the bundle's, e.g. B=1:1:1 for a robot with one camera; again for Q, "
    "the questions. Nodes then run these engines.",
)  # fmt: skip
INSPECT = typer.Option(None, help="Write what the library made of each graph to this JSON file.")


@app.command()
def build(
    bundle: str = typer.Option(DEFAULT, help="A folder, a shipped bundle's name, or a Hub id."),
    backend: str = typer.Option("auto", help="tensorrt or tensorrt_rtx; auto: what is here."),
    precision: str = typer.Option("auto", help="fp16, bf16, fp32, int8 or fp8; auto: fp16."),
    part: list[str] = PART,
    profile: list[str] = PROFILE,
    any_gpu: bool = typer.Option(
        False, "--any-gpu", help="For every GPU from Ampere on, if a little slower on each."
    ),
    any_version: bool = typer.Option(
        False, "--any-version", help="Also for later versions of the same major (tensorrt)."
    ),
    workspace: int = typer.Option(1024, min=1, help="Memory a layer may use, in MiB."),
    inspect: Optional[Path] = INSPECT,
) -> None:
    """Build the engines of a bundle that are not in the cache, and compare them with the CPU.

    Nodes build what is missing themselves, which takes minutes; this does it before.
    """
    from vljepa_ros.bundle.spec import load_bundle
    from vljepa_ros.inference.engine import PRECISIONS
    from vljepa_ros.inference.trt import build as options
    from vljepa_ros.inference.trt.cuda import missing
    from vljepa_ros.inference.trt.open import prepare

    from .models import BuildProgress

    if precision not in PRECISIONS:
        raise EngineError(f"Unknown precision '{precision}'; use one of {', '.join(PRECISIONS)}.")
    loaded = load_bundle(bundle)
    graphs = _graphs(loaded.graphs, part)
    bounds = _bounds(profile, graphs)
    library = _library(backend)
    no_gpu = missing()
    if no_gpu is not None and inspect is not None:
        raise EngineError(f"--inspect looks at engines on the GPU, and {no_gpu[0]}; {no_gpu[1]}.")
    if no_gpu is not None and library == "tensorrt_rtx" and not any_gpu:
        notice(f"No GPU can be used here ({no_gpu[0]}): engines for any GPU, not compared yet.")
        any_gpu = True
    wanted = [options.ANY_GPU] * any_gpu + [options.ANY_VERSION] * any_version
    inspected = {}
    for graph in graphs:
        own = {size: one for size, one in bounds.items() if size in graph.profile}
        with BuildProgress() as told:
            entry, engine = prepare(
                graph, library, precision, partial(told, graph.name), tuple(wanted), workspace, own
            )
        console.print(_line(entry))
        if engine is not None:
            inspected[graph.name] = json.loads(engine.inspect()) if inspect is not None else None
            engine.close()
    if inspect is not None:
        _write(inspect, json.dumps(inspected, indent=2))


def _graphs(graphs: dict[str, Any], parts: list[str] | None) -> list[Any]:
    for part in parts or ():
        if part not in graphs:
            raise EngineError(f"The bundle has no '{part}'; its graphs are {', '.join(graphs)}.")
    return [graph for name, graph in graphs.items() if not parts or name in parts]


def _library(backend: str) -> str:
    """The library to build with; EngineError where it is not here."""
    from vljepa_ros.inference.trt.library import library_missing, load, missing

    if backend in LIBRARIES:
        load(backend)
        return backend
    if backend != "auto":
        raise EngineError(f"'{backend}' builds no engines; use auto, {' or '.join(LIBRARIES)}.")
    for library in LIBRARIES:
        if missing(library) is None:
            return library
    if library_missing("tensorrt_rtx") is None:  # which builds without a GPU
        return "tensorrt_rtx"
    reasons = [": ".join(missing(library) or ("", "")) for library in LIBRARIES]
    raise EngineError(f"No engine can be built here: {'; '.join(reasons)}.")


def _bounds(profile: list[str] | None, graphs: list[Any]) -> dict[str, tuple[int, int, int]]:
    """What --profile says, by size."""
    bounds = {}
    for one in profile or ():
        found = re.fullmatch(r"(\w+)=(\d+):(\d+):(\d+)", one)
        if found is None:
            raise EngineError(f"--profile takes e.g. B=1:1:4 and not '{one}'.")
        size, least, usual, most = found.groups()
        if not any(size in graph.profile for graph in graphs):
            raise EngineError(f"No graph that is to be built has a size '{size}'.")
        bounds[size] = int(least), int(usual), int(most)
    return bounds


def _line(entry: Entry) -> str:
    key = entry.key
    compared = "not compared" if entry.cosine is None else f"cosine {entry.cosine:.5f}"
    return (
        f"{key.graph}  {key.precision}  {key.library} {key.version}  {key.gpu}  {compared}  "
        f"{entry.size / 2**20:.1f} MiB  built in {entry.build_seconds:g} s  {entry.plan}"
    )


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise EngineError(f"{file} cannot be written: {error.strerror}.") from error


@app.command("list")
def list_engines(
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show every built engine, what it was built for, and what is wrong with it, if anything is."""
    from vljepa_ros.inference.trt.cache import folder, listed

    found = listed()
    if as_json:
        print_json([_record(one) for one in found])
        return
    if not found:
        console.print(f"No engine is built yet in {folder()}: vljepa engines build.")
        return
    headings = ("graph", "precision", "library", "GPU", "cosine", "MiB", "built", "problem")
    print_table(headings, [_row(one) for one in found], right=("cosine", "MiB"))


def _record(one: Listed) -> dict[str, Any]:
    entry, key = one.entry, one.entry.key if one.entry else None
    return record(
        "engines list", file=str(entry.plan if entry else one.sidecar), problem=one.problem,
        graph=key and key.graph, precision=key and key.precision, library=key and key.library,
        version=key and key.version, gpu=key and key.gpu, capability=key and key.capability,
        profile=key and key.profile, options=key and key.options,
        workspace_mib=entry and entry.workspace_mib,
        built=_built_ns(entry) if entry else None, took=entry and entry.build_seconds,
        megabytes=entry and entry.size / 1e6, cosine=entry and entry.cosine,
    )  # fmt: skip


def _built_ns(entry: Entry) -> int:
    return round(datetime.strptime(entry.built_at, "%Y-%m-%dT%H:%M:%S%z").timestamp()) * SECOND_NS


def _row(one: Listed) -> tuple[str, ...]:
    if one.entry is None:
        return (one.sidecar.name, *[""] * 6, one.problem)
    entry, key = one.entry, one.entry.key
    return (
        key.graph, key.precision, f"{key.library} {key.version}", key.gpu,
        "-" if entry.cosine is None else f"{entry.cosine:.5f}", f"{entry.size / 2**20:.1f}",
        clock(_built_ns(entry)).partition(".")[0], one.problem,
    )  # fmt: skip


@app.command()
def clean(
    everything: bool = typer.Option(False, "--all", help="Also engines that can still be used."),
) -> None:
    """Remove engines that are damaged or of another version of their library."""
    from vljepa_ros.inference.trt.cache import clean as clean_cache
    from vljepa_ros.inference.trt.cache import folder

    removed = clean_cache(_useless, everything)
    plans = sum(file.suffix == ".plan" for file in removed)
    files = counted(len(removed), "file")
    console.print(f"{counted(plans, 'engine')} removed ({files}) from {folder()}.")


def _useless(one: Listed) -> bool:
    """Whether an engine is damaged, or of a version of its library that is not the one here."""
    from vljepa_ros.inference.trt.library import library_missing, load

    if one.entry is None or one.problem:
        return True
    key = one.entry.key
    if library_missing(key.library) is not None:
        return False  # it may be kept for another machine
    here = str(load(key.library).__version__)
    return here != key.version and here.split(".")[0] != key.version
