"""Moments on their way into the store: kept until it has them.

Invariant: a moment that was given is in the store or waits here, until MOST wait; then the oldest
is lost, and counted. So a full disk costs nothing as long as room is made in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from .moment import Moment

MOST = 1000  # moments that wait


class Keeper(Protocol):
    """What moments are written to: a MomentStore, or a FleetStore."""

    def get(self, id: str) -> Moment | None:
        """What is known of the moment of this id; perhaps without embedding and thumbnail."""
        ...

    def add(self, moments: Sequence[Moment]) -> None:
        """Keep moments; those that are there by their id are replaced. Raises StoreError."""
        ...

    def set_text(self, id: str, text: str, confidence: float) -> bool:
        """Set the words of a moment; False: there is no such moment."""
        ...


class Writer:
    """Between a recorder, whose `keep` and `say` these are, and a store. Of one thread."""

    def __init__(self, store: Keeper) -> None:
        self._store = store
        self._moments: dict[str, Moment] = {}  # by id, oldest first
        self._words: dict[str, tuple[str, float]] = {}  # of moments that the store has
        self.written = 0
        self.lost = 0

    @property
    def waiting(self) -> int:
        """Moments and words that the store does not have yet."""
        return len(self._moments) + len(self._words)

    def keep(self, moment: Moment) -> None:
        """A moment to be written."""
        self._moments[moment.id] = moment
        if len(self._moments) > MOST:
            del self._moments[next(iter(self._moments))]
            self.lost += 1

    def say(self, moment_id: str, text: str, confidence: float) -> None:
        """Words for a moment that was given before."""
        waiting = self._moments.get(moment_id)
        if waiting is not None:
            self._moments[moment_id] = replace(waiting, text=text, confidence=confidence)
        elif len(self._words) < MOST:
            self._words[moment_id] = (text, confidence)
        else:
            self.lost += 1

    def write(self) -> None:
        """Write what waits. StoreError where the store does not take it: then it waits on."""
        if self._moments:
            self._store.add(list(self._moments.values()))
            self.written += len(self._moments)
            self._moments.clear()
        while self._words:
            moment_id, words = next(iter(self._words.items()))
            self._store.set_text(moment_id, *words)  # False: it was pruned meanwhile
            del self._words[moment_id]
