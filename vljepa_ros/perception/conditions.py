"""Conditions in words that are held against every step of a camera: the rule by which they hold.

Invariant: whatever the number of conditions, a step costs one matrix product.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Hashable
from dataclasses import dataclass

import numpy as np

from vljepa_ros.inference.runtime import Runtime


@dataclass(frozen=True)
class Judgement:
    """How a step meets one condition. `score`: cosine, -1..1; it `holds` from its threshold on."""

    key: Hashable
    score: float
    holds: bool


class Conditions:
    """The standing conditions of one camera.

    The worker adds and judges; any thread may remove.
    """

    def __init__(self, model: Runtime) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._rows: dict[Hashable, tuple[np.ndarray, float]] = {}
        self._matrix: np.ndarray | None = None  # the rows' embeddings; None: to be made again

    @property
    def threshold(self) -> float:
        """The bundle's calibrated threshold, for conditions that ask for none."""
        return self._model.bundle.thresholds.watch

    def add(self, key: Hashable, text: str, threshold: float) -> Generator[None, None, None]:
        """Let the condition `text` stand under `key`; `threshold` 0: the bundle's.

        In pieces of one Y-encoder run each. Raises EngineError.
        """
        (row,) = yield from self._model.embed_text_in_pieces([text])
        with self._lock:
            self._rows[key] = (row, threshold or self.threshold)
            self._matrix = None

    def remove(self, key: Hashable) -> None:
        """Let it stand no longer, if it does."""
        with self._lock:
            self._rows.pop(key, None)
            self._matrix = None

    def scores(self, embedding: np.ndarray) -> dict[Hashable, float]:
        """The score of every condition for a step's embedding, float32 `[E]`."""
        with self._lock:
            keys = list(self._rows)
            if not keys:
                return {}
            if self._matrix is None:
                self._matrix = np.stack([row for row, _ in self._rows.values()])
            matrix = self._matrix
        return dict(zip(keys, (matrix @ embedding).tolist(), strict=True))

    def judge(self, embedding: np.ndarray) -> list[Judgement]:
        """How a step's embedding, float32 `[E]`, meets every condition."""
        scores = self.scores(embedding)
        with self._lock:
            thresholds = {key: threshold for key, (_, threshold) in self._rows.items()}
        return [
            Judgement(key, score, score >= thresholds[key])
            for key, score in scores.items()
            if key in thresholds  # else it was removed meanwhile
        ]
