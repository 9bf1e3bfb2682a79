"""Moments for the tests of the memory, and a store without an index to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import MomentStore

MODEL, DIM = "toy@0123456789ab", 16
SECOND = 10**9
EPOCH = 1_732_453_599_123_456_789  # such stamps are not exact as 64 bit floats


def unit(seed: int, dim: int = DIM) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def moment(
    number: int, camera: str = "front", start_ns: int = 0, end_ns: int = 0, **values: object
) -> Moment:
    """The moment of second `number` after EPOCH; `values` replace what it has."""
    start_ns = start_ns or EPOCH + number * SECOND
    made = Moment(
        robot="r2", camera=camera, query="What is happening?", segment_id=number,
        start_ns=start_ns, end_ns=end_ns or start_ns + SECOND - 1, embedding=unit(number),
        thumbnail=f"jpeg {number}".encode(),
    )  # fmt: skip
    return replace(made, **values)  # type: ignore[arg-type]


def open_store(folder: Path, **values: object) -> MomentStore:
    arguments: dict[str, object] = {"model_id": MODEL, "dim": DIM, **values}
    return MomentStore(folder, **arguments)  # type: ignore[arg-type]


def numbers(moments: Sequence[Moment]) -> list[int]:
    return [found.segment_id for found in moments]


def same(left: Moment | None, right: Moment | None) -> bool:
    """Moments do not compare by value: they hold arrays."""
    if left is None or right is None:
        return left is right
    a, b = dict(vars(left)), dict(vars(right))
    return np.array_equal(a.pop("embedding"), b.pop("embedding")) and a == b
