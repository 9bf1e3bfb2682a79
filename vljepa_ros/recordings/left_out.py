"""What recordings do not give, and why.

Invariant: every image and every file that is left out is in a sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable


class LeftOut:
    """Sentences on what was left out, images counted; false where nothing was.

    Reasons that differ only in their numbers are one: that which came first.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()  # of images; by where, and the reason
        self._first: dict[tuple[str, str], str] = {}
        self._said: list[str] = []
        self._episodes: dict[tuple[str, str], set[int]] = {}  # by data set, and the reason
        self._notes: dict[tuple[str, str], str] = {}

    def __bool__(self) -> bool:
        return bool(self._counts or self._said or self._episodes)

    def image(self, where: str, why: str) -> None:
        """One image more is left out."""
        key = where, _kind(why)
        self._counts[key] += 1
        self._first.setdefault(key, why)

    def say(self, sentence: str) -> None:
        """Something other than an image is left out."""
        self._said.append(sentence)

    def episode(self, dataset: str, number: int, why: str) -> None:
        """An episode of a data set is left out. `why`: a sentence."""
        key = dataset, _kind(why)
        self._episodes.setdefault(key, set()).add(number)
        self._first.setdefault(key, why)

    def note(self, where: str, text: str) -> None:
        """Something is odd, and all of it is there."""
        self._notes.setdefault((where, _kind(text)), f"{where}: {text}")

    def add(self, other: LeftOut, only_note: bool = False) -> None:
        """Take over what was left out elsewhere. `only_note`: it counts as nothing."""
        self._notes.update(other._notes)
        if only_note:
            self._notes.update({(text, ""): text for text in other.sentences()})
            return
        self._counts.update(other._counts)
        self._first = {**other._first, **self._first}
        self._said += other._said
        for key, numbers in other._episodes.items():
            self._episodes.setdefault(key, set()).update(numbers)

    def sentences(self) -> list[str]:
        """All that is to be told."""
        images = (
            f"{count} image{'s' * (count > 1)} {key[0]}: {self._first[key]}"
            for key, count in self._counts.items()
        )
        episodes = (
            f"Episode{'s' * (len(numbers) > 1)} {ranges(numbers)} of {key[0]} "
            f"{'are' if len(numbers) > 1 else 'is'} left out: {self._first[key]}"
            for key, numbers in self._episodes.items()
        )
        return [*self._notes.values(), *self._said, *episodes, *images]


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in words: "3", "0 to 4, 9"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(
        str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs
    )


def _kind(text: str) -> str:
    return re.sub(r"\d+", "#", text)
