"""What `vljepa bench engines` measures: the protocol that every contender keeps, and its parts.

Invariant: contenders know this file and not each other.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

STEP = "x_encoder + predictor"
ANEW = "x_encoder, whole clip + predictor"  # where a step encodes less: what it would be else

Clips = list[list[np.ndarray]]


class Contender(Protocol):
    """What is measured. `parts`: what it runs, by name; `notes`: what it does not, and why."""

    parts: dict[str, str]  # how each runs, e.g. "fp32, cpu"
    notes: list[str]

    def encode(self, clips: Clips) -> Any:
        """Visual tokens of chunks of uint8 pictures; they may stay on the device."""
        ...

    def predict(self, tokens: Any, *query: np.ndarray) -> np.ndarray:
        """Embeddings `[B, Q, E]` of what `encode` returned; `query`: ids and mask, or nothing.

        Where clips have several chunks, of a list of each clip's tokens.
        """
        ...

    def embed_text(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Embeddings `[B, E]`."""
        ...

    def decode(self, embedding: np.ndarray, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        """Logits `[B, vocabulary]` of one token."""
        ...

    def fetch(self, tokens: Any) -> np.ndarray:
        """What `encode` returned, on the host."""
        ...
