"""`vljepa bench cost`: parameters and FLOP of a preset, and how a step's time grows.

Invariant: a time stands beside the peak of the same engine library in the same precision,
measured in turns with it; where nothing was run, there is none.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.progress import Progress

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec
from vljepa_ros.console import console, print_json, print_table
from vljepa_ros.errors import EngineError, VLJepaError
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.engine import Engine

from . import flop
from .engines import progress
from .machine import describe, machine

SMALL = "tabletop"  # the preset that any machine runs in minutes
TURNS, STEPS = 6, 5  # the first turn warms up
# Of the matrix product that stands for the machine's peak: rows and columns, products in a row.
PEAK_SIZE, PEAK_CHAIN = {"cpu": 1024, "gpu": 4096}, 8


def cost(
    preset: str = typer.Option(SMALL, help="tabletop, open-vljepa or paper."),
    frames: str = typer.Option("8,16,32,64", help="Frames of a clip; the first is the usual."),
    sizes: str = typer.Option("", help="Sides of an image; empty: the preset's, and larger ones."),
    cameras: str = typer.Option("1,2,4,8", help="Cameras in one batch."),
    queries: str = typer.Option("1,4,16,32", help="Standing queries."),
    run: bool = typer.Option(
        None, "--run/--count", help="Measure, or only count. Default: measure the small preset."
    ),
    backend: str = typer.Option("onnxruntime-cpu", help="What runs the engines."),
    precision: str = typer.Option("fp32", help="In which precision."),
    threads: int = typer.Option(0, help="Threads per engine on the CPU; 0: the backend's choice."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Parameters, FLOP and step time of a preset with random weights, and how they grow."""
    presets = _presets()
    if preset not in presets:
        raise VLJepaError(f"Unknown preset '{preset}'; use one of {', '.join(presets)}.")
    config = presets[preset]()
    clips = _sizes(frames, "--frames", config.x_encoder_config.tubelet_size)
    side = config.x_encoder_config.crop_size
    patches = config.x_encoder_config.patch_size * config.visual_merge
    larger = (side, side * 4 // 3, side * 3 // 2, side * 2)
    usual = ",".join(str(n) for n in larger if n % patches == 0)
    sides = _sizes(sizes or usual, "--sizes", patches)
    plan = _plan(config, clips, sides, _sizes(cameras, "--cameras"), _sizes(queries, "--queries"))
    report: dict[str, Any] = {
        "preset": preset, "machine": machine(), "parts": _parts(_resized(config, clips[0], side)),
        "growth": {what: {str(size): {"gflop": flop.step(shape, one, asked) / 1e9}
                          for size, (shape, one, asked) in rows.items()}
                   for what, rows in plan.items()},
        "runs": None, "peak_gflop_per_s": None, "peak_of": None,
    }  # fmt: skip
    if preset == SMALL if run is None else run:
        with tempfile.TemporaryDirectory(prefix="vljepa_bench_") as folder, progress() as bar:
            runner = _Runner(Path(folder), backend, precision, threads, bar)
            report |= runner.measure(plan, report["growth"])
    if as_json:
        print_json(report)
    else:
        _print(report)


Shape = tuple[Any, int, int]  # a configuration, cameras, queries
Plan = dict[str, dict[int, Shape]]


def _presets() -> dict[str, Callable[[], Any]]:
    try:
        from vljepa_ros.model.config import PRESETS
    except ImportError as error:
        raise VLJepaError(
            f"vljepa bench cost needs transformers and torch ({error}): pip install "
            "'vljepa_ros[export]'."
        ) from error
    return PRESETS


def _sizes(text: str, option: str, multiple: int = 1) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) and int(word) % multiple == 0 for word in words):
        of = f" multiples of {multiple}," if multiple > 1 else ""
        raise VLJepaError(f"{option} must be numbers,{of} e.g. {8 * multiple}, not '{text}'.")
    return list(dict.fromkeys(int(word) for word in words))


def _resized(config: Any, frames: int, side: int) -> Any:
    changed = copy.deepcopy(config)
    changed.x_encoder_config.frames_per_clip = frames
    changed.x_encoder_config.crop_size = side
    return changed


def _plan(
    config: Any, frames: list[int], sides: list[int], cameras: list[int], queries: list[int]
) -> Plan:
    """What is varied, and the shapes of a step; everything else is as usual."""
    side = config.x_encoder_config.crop_size
    base = _resized(config, frames[0], side)
    return {
        "frames": {n: (_resized(config, n, side), 1, 1) for n in frames},
        "image size": {n: (_resized(config, frames[0], n), 1, 1) for n in sides},
        "cameras": {n: (base, n, 1) for n in cameras},
        "queries": {n: (base, 1, n) for n in queries},
    }


def _parts(config: Any) -> dict[str, dict[str, Any]]:
    """Parameters and FLOP of each network; the networks are not given memory for weights."""
    import torch

    from vljepa_ros.model.networks import VLJepa

    with torch.device("meta"):
        model = VLJepa(config)
    words = config.y_decoder_config.max_position_embeddings // 2 if config.y_decoder_config else 0
    counted = {
        "x_encoder": ("clip", flop.x_encoder(config)),
        "predictor": ("clip and query", flop.predictor(config)),
        "y_encoder": ("text", flop.y_encoder(config)),
        "y_decoder": (f"token after {words}", flop.y_decoder(config, words)),
    }
    return {
        name: {
            "parameters": sum(p.numel() for p in getattr(model, name).parameters()),
            "per": per, "gflop": flop / 1e9,
        }
        for name, (per, flop) in counted.items()
        if getattr(model, name) is not None
    }  # fmt: skip


class _Runner:
    """Exports networks with random weights, and times them in turns with a matrix product."""

    def __init__(
        self, folder: Path, backend: str, precision: str, threads: int, bar: Progress
    ) -> None:
        self._folder = folder
        self._backend, self._precision, self._threads = backend, precision, threads
        self._bar = bar
        self._engines: dict[tuple[int, int], tuple[Engine, Engine]] = {}

    def measure(self, plan: Plan, growth: dict[str, Any]) -> dict[str, Any]:
        """Add times and shares of the peak to `growth`; what is said of the whole run."""
        self._export(plan)
        peak = self._peak()
        durations: dict[tuple[str, int], list[float]] = {}
        fastest = list[float]()
        turns = self._bar.add_task("measuring", total=TURNS)
        for turn in range(TURNS):
            for what, rows in plan.items():
                for size, shape in rows.items():
                    found = self._steps(shape)
                    if turn:
                        durations.setdefault((what, size), []).extend(found)
            if peak is not None:
                fastest.append(peak())
            self._bar.advance(turns)
        self._bar.remove_task(turns)
        most = max(fastest) if fastest else None
        for (what, size), found in durations.items():
            row, median = growth[what][str(size)], float(np.median(found))
            reached = row["gflop"] / median
            row |= {"p50_ms": median * 1e3, "gflop_per_s": reached}
            if most is not None:
                row["share_of_peak"] = reached / most
        encoder = next(iter(self._engines.values()))[0]
        return {
            "runs": f"{encoder.backend} ({encoder.precision})", "peak_gflop_per_s": most,
            "peak_of": f"{PEAK_CHAIN} products of {self._peak_size} x {self._peak_size} matrices",
        }  # fmt: skip

    @property
    def _peak_size(self) -> int:
        return PEAK_SIZE["cpu" if self._backend == "onnxruntime-cpu" else "gpu"]

    def _export(self, plan: Plan) -> None:
        shapes = {_key(shape): shape[0] for rows in plan.values() for shape in rows.values()}
        bar = self._bar.add_task("exporting", total=2 * len(shapes))
        for (frames, side), config in shapes.items():
            place = self._folder / f"{frames}_{side}"
            place.mkdir()
            engines = []
            for spec in _exported(config, place):
                self._bar.update(bar, description=f"{spec.name}: {frames} frames of {side} px")
                spec = _profiled(spec, config, plan)
                engines.append(open_engine(spec, self._backend, self._threads, self._precision))
                self._bar.advance(bar)
            self._engines[frames, side] = (engines[0], engines[1])
        self._bar.remove_task(bar)

    def _steps(self, shape: Shape) -> list[float]:
        """Seconds of each of some steps."""
        config, cameras, queries = shape
        encoder, predictor = self._engines[_key(shape)]
        frames, side = _key(shape)
        random = np.random.default_rng(0)
        clips = random.integers(0, 256, (cameras, frames, side, side, 3), np.uint8)
        ids = random.integers(3, config.predictor_config.vocab_size, (queries, config.query_length))
        mask = np.ones_like(ids)
        durations = []
        for _ in range(STEPS):
            began = time.monotonic()
            tokens = encoder.run_keeping(frames=clips)["visual_tokens"]
            predictor.run(
                visual_tokens=[tokens[row] for row in range(cameras)], query_ids=ids,
                query_mask=mask,
            )  # fmt: skip
            durations.append(time.monotonic() - began)
        return durations

    def _peak(self) -> Callable[[], float] | None:
        """Runs a chain of large matrix products once: GFLOP per second. None: not on this backend.

        Products in a row, with the matrix in the graph, so that nothing large crosses a bus.
        """
        size = self._peak_size
        try:
            engine = open_engine(
                _products(self._folder / "peak.onnx", size), self._backend, self._threads,
                self._precision,
            )  # fmt: skip
        except EngineError as error:
            console.print(f"The peak could not be measured: {error}")
            return None
        rows = np.random.default_rng(0).standard_normal((size, size), np.float32)

        def run() -> float:
            began = time.monotonic()
            engine.run(x=rows)
            return PEAK_CHAIN * 2 * size**3 / (time.monotonic() - began) / 1e9

        run()
        return run


def _key(shape: Shape) -> tuple[int, int]:
    vision = shape[0].x_encoder_config
    return vision.frames_per_clip, vision.crop_size


def _exported(config: Any, folder: Path) -> Iterator[GraphSpec]:
    """The X-encoder's and the predictor's graph, one after the other."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|copyreg")  # the exporter's, at itself

    from vljepa_ros.model.export.bundle import export_graph, predictor_inputs
    from vljepa_ros.model.networks import Predictor, XEncoder

    torch.manual_seed(0)
    vision = config.x_encoder_config
    shape = (2, vision.frames_per_clip, vision.crop_size, vision.crop_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    encoder = XEncoder(config).eval()
    with torch.no_grad():
        tokens = encoder(frames)
    yield export_graph("x_encoder", encoder, {"frames": frames}, folder)[0]
    del encoder
    inputs = predictor_inputs(config, tokens)
    yield export_graph("predictor", Predictor(config).eval(), inputs, folder)[0]


def _profiled(spec: GraphSpec, config: Any, plan: Plan) -> GraphSpec:
    """The graph with the sizes that engines are built for."""
    words = config.query_length
    profile = {"B": (1, 1, max(plan["cameras"])), "Q": (1, 1, max(plan["queries"])),
               "L": (1, words, words)}  # fmt: skip
    open_sizes = {d for t in spec.inputs.values() for d in t.shape if isinstance(d, str)}
    return replace(spec, profile={name: profile[name] for name in open_sizes})


def _products(path: Path, size: int) -> GraphSpec:
    """A graph of products in a row with one matrix that keeps the numbers' size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.random.default_rng(1).standard_normal((size, size), np.float32) * size**-0.5
    names = ["x", *(f"x{k}" for k in range(1, PEAK_CHAIN)), "y"]
    nodes = [
        helper.make_node("MatMul", [before, "matrix"], [after])
        for before, after in itertools.pairwise(names)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (size, size)) for name in ("x", "y")
    ]
    graph = helper.make_graph(
        nodes, "products", ends[:1], ends[1:], [numpy_helper.from_array(matrix, "matrix")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    tensor = TensorSpec("float32", (size, size))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return GraphSpec("products", path, sha256, {"x": tensor}, {"y": tensor})


def _print(report: dict[str, Any]) -> None:
    rows = [
        (name, f"{part['parameters'] / 1e6:.2f}", f"{part['gflop']:.4g}", part["per"])
        for name, part in report["parts"].items()
    ]
    numbers = ("parameters (million)", "GFLOP")
    title = f"Preset {report['preset']}"
    print_table(("network", *numbers, "per"), rows, right=numbers, title=title)
    console.print()
    measured = report["runs"] is not None
    for what, growth in report["growth"].items():
        headings = (what, "GFLOP", *(("p50 (ms)", "GFLOP/s", "of the peak") if measured else ()),
                    "GFLOP ×", *(("time ×",) if measured else ()))  # fmt: skip
        first = next(iter(growth.values()))
        table = []
        for size, row in growth.items():
            cells = [size, f"{row['gflop']:.4g}"]
            if measured:
                share = row.get("share_of_peak")
                cells += [f"{row['p50_ms']:.2f}", f"{row['gflop_per_s']:.0f}",
                          "" if share is None else f"{100 * share:.0f} %"]  # fmt: skip
            cells.append(f"{row['gflop'] / first['gflop']:.2f}")
            if measured:
                cells.append(f"{row['p50_ms'] / first['p50_ms']:.2f}")
            table.append(cells)
        print_table(headings, table, right=headings, title=f"A step by {what}")
        console.print()
    if measured and report["peak_gflop_per_s"] is not None:
        console.print(
            f"The peak, {report['peak_gflop_per_s']:.0f} GFLOP/s, was measured in the same run "
            f"through {report['runs']}: {report['peak_of']}."
        )
    console.print(
        f"Counted: matrix products and convolutions. Random weights. {describe(report['machine'])}."
    )
