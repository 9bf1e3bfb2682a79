"""Compares an engine with its graph on the CPU, on made-up inputs that look like real ones.

Invariant: the same graph always gets the same inputs, and what they look like is what the graph
gets in use; on white noise a network saturates, and figures say nothing about its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from vljepa_ros.bundle.graphs import GraphSpec, TensorSpec

from ..ort import OrtEngine

if TYPE_CHECKING:
    from ..engine import Engine

IDS = 32  # token ids 1..31, which every vocabulary has
DISTINCT = 2  # different rows in the largest batch: a row's result does not depend on the others
SEED = 4


def least_cosine(engine: Engine, graph: GraphSpec, report: Callable[[str, float], None]) -> float:
    """The least cosine between an engine's outputs and the base graph's, -1..1.

    `graph` is the base graph, which ONNX Runtime runs. Cosines are of vectors along each output's
    last dimension, for the least batch and the largest. `report` is told how far it is.
    """
    base = OrtEngine(graph, precision="fp32")
    try:
        cosines = []
        cases = list(_cases(graph, base))
        for number, (rows, inputs) in enumerate(cases):
            report("comparing with the graph on the CPU", number / len(cases))
            wanted = base.run(**inputs)
            spread = {n: _spread(array, graph.inputs[n], rows) for n, array in inputs.items()}
            given = engine.run(**spread)
            cosines += [
                _cosine(given[name], _spread(array, graph.outputs[name], rows))
                for name, array in wanted.items()
            ]
    finally:
        base.close()
    return min(cosines)


def _cases(
    graph: GraphSpec, base: OrtEngine
) -> Iterator[tuple[dict[str, int], dict[str, np.ndarray]]]:
    """Sizes to run with, and inputs that are to be spread to them: the least, then the largest."""
    for pick, cached in ((0, 0), (2, 1)):
        sizes = {name: bounds[pick] for name, bounds in graph.profile.items()}
        if "S" in sizes:  # the decoder's cache: empty, then as long as usual
            sizes["S"] = graph.profile["S"][cached]
        rows = {name: size for name, size in sizes.items() if name in ("B", "Q")}
        few = {name: min(size, DISTINCT) if name in rows else size for name, size in sizes.items()}
        yield rows, _inputs(graph, base, few)


def _inputs(graph: GraphSpec, base: OrtEngine, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a graph, of the sizes that are given for its open ones."""
    random = np.random.default_rng(SEED)
    shapes = {
        name: tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        for name, spec in graph.inputs.items()
    }
    made = {name: _made(name, shape, random) for name, shape in shapes.items() if name != "past"}
    for name in made:
        mask = made.get(name.replace("ids", "mask"))
        if name.endswith("ids") and mask is not None:
            made[name] *= mask  # padding is the token 0
    if "past" in shapes:
        made["past"] = _past(base, made, shapes["past"])
    return made


def _made(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if name == "frames":
        return moving_discs(shape, random)
    if name.endswith("ids"):
        return random.integers(1, IDS, shape)
    if name.endswith("mask"):  # texts from full length down to a third of it
        words = np.linspace(shape[1], max(1, shape[1] // 3), shape[0]).astype(int)
        return (np.arange(shape[1]) < words[:, None]).astype(np.int64)
    if name == "visual_tokens":  # as a layer norm leaves them, and of one picture, so alike
        tokens = random.normal(size=shape) + random.normal(size=(shape[0], 1, shape[2]))
        deviation = tokens.std(axis=-1, keepdims=True)
        return np.asarray((tokens - tokens.mean(axis=-1, keepdims=True)) / deviation, np.float32)
    vectors = random.normal(size=shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def moving_discs(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Clips, uint8 `[B, T, H, W, 3]`: three coloured discs that move over a shaded ground."""
    clips, count, height, width, _ = shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    made = np.empty(shape, np.uint8)
    for clip in range(clips):
        ground = random.uniform(40, 200, 3) + np.stack([x, y, x + y], -1) * 50
        discs = [
            (random.uniform(0.1, 0.9, 2), random.uniform(-0.03, 0.03, 2),
             random.uniform(0.08, 0.2), random.uniform(0, 255, 3))
            for _ in range(3)
        ]  # fmt: skip
        for frame in range(count):
            picture = ground
            for centre, speed, radius, colour in discs:
                at = centre + speed * frame
                distance = np.hypot(x - at[0], y - at[1])
                inside = np.clip((radius - distance) * 40, 0, 1)[..., None]  # with a soft edge
                picture = picture * (1 - inside) + colour * inside
            made[clip, frame] = picture.clip(0, 255)
    return made


def _past(base: OrtEngine, inputs: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """A decoder's cache, as it is after as many tokens as `shape` has room for."""
    past = np.zeros((*shape[:3], 0, shape[4]), np.float32)
    while past.shape[3] < shape[3]:
        past = base.run(**inputs, past=past)["present"]
    return past


def _spread(array: np.ndarray, spec: TensorSpec, rows: dict[str, int]) -> np.ndarray:
    """Repeat rows, so that the sizes named in `rows` are as large as said."""
    for axis, size in enumerate(spec.shape):
        if isinstance(size, str) and size in rows:
            array = array.take(np.arange(rows[size]) % array.shape[axis], axis)
    return array


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The least cosine of vectors along the last dimension; -1 where a number is not finite."""
    a, b = (rows.reshape(-1, rows.shape[-1]).astype(np.float64) for rows in (one, other))
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.abs(a - b).max(axis=1, initial=0.0) == 0  # also two vectors of nothing but zeros
    cosines = (a * b).sum(1) / np.where(norms > 0, norms, 1.0)
    return float(np.where(same, 1.0, cosines).min(initial=1.0))
