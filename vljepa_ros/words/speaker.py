"""Who puts embeddings into words, and what comes of it.

Invariant: what a speaker says comes with its own judgement whether it is to be said at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vljepa_ros.inference.runtime import Runtime


@dataclass(frozen=True)
class Said:
    """Words. `confidence`: cosine between them, encoded, and the embedding that they are for.

    `source`: who found them, `decoder`, `phrases` or `vlm`. `doubt`: why they are better left
    unsaid, in a sentence; empty where they are to be said.
    """

    text: str
    confidence: float
    source: str
    doubt: str = ""


class Speaker(Protocol):
    """Puts embeddings into words; called by the owner of the engines."""

    def say(self, embedding: np.ndarray) -> Said:
        """The words for an embedding, float32 `[E]`, of unit length."""


class YDecoder:
    """The bundle's own Y-decoder."""

    def __init__(self, model: Runtime) -> None:
        self._model = model

    def say(self, embedding: np.ndarray) -> Said:
        """What the network decodes."""
        text = self._model.decode(embedding)
        return Said(text, self._model.confidence(text, embedding), "decoder")
