"""The chunks of one camera's clips: which must be encoded, and the visual tokens of each.

Invariant: a chunk is encoded at most once while clips take it, and only if the gate finds in it
what the chunk encoded before does not show; else that one's tokens stand for it. What stands for a
clip follows from the chunks that were asked for so far, and not from when the encoder ran.
"""

from __future__ import annotations

from collections.abc import Sequence

from vljepa_ros.inference.tensors import Joined, Tensor

from .gate import NoveltyGate
from .window import Clip


class _Encoded:
    """The tokens, float32 `[n, Dv]`, of a chunk that is encoded, or is being."""

    tokens: Tensor


class Chunks:
    """The chunks that the newest clips of one camera take. One that is a whole clip is one, too.

    `gate` compares them, oldest first. A chunk is known by the stamps of its frames.
    """

    def __init__(self, gate: NoveltyGate) -> None:
        self.gate = gate
        self._stands: dict[tuple[int, ...], _Encoded] = {}  # for the chunk of these stamps
        self._last: _Encoded | None = None
        self._clip: tuple[_Encoded, ...] = ()

    def unseen(self, chunks: Sequence[Clip]) -> list[Clip]:
        """Those of a clip's chunks, oldest first, that must be encoded: each is to be `put`."""
        self._stands = {
            stamps: encoded
            for stamps, encoded in self._stands.items()
            if stamps[-1] >= chunks[0].end_ns
        }
        new = []
        for chunk in chunks:
            if chunk.stamps_ns in self._stands:
                continue
            if self._last is None or self.gate.is_new(chunk):
                self.gate.accept(chunk)
                self._last = _Encoded()
                new.append(chunk)
            self._stands[chunk.stamps_ns] = self._last
        return new

    def put(self, chunk: Clip, tokens: Tensor) -> None:
        """The tokens, float32 `[n, Dv]`, of a chunk that was unseen."""
        self._stands[chunk.stamps_ns].tokens = tokens

    def clip(self, chunks: Sequence[Clip]) -> tuple[Tensor, bool]:
        """The visual tokens, float32 `[N, Dv]`, that stand for a clip, once nothing is unseen.

        And whether they are others than the last time.
        """
        before, self._clip = self._clip, tuple(self._stands[c.stamps_ns] for c in chunks)
        parts = [encoded.tokens for encoded in self._clip]
        return parts[0] if len(parts) == 1 else Joined(parts), self._clip != before

    def forget(self) -> None:
        """Have every chunk encoded anew."""
        self.gate.restart()
        self._stands.clear()
        self._last, self._clip = None, ()
