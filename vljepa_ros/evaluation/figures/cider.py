"""CIDEr-D (Vedantam et al., arXiv 1411.5726, section 5): how near a sentence is to references.

Own code because the package that has it, pycocoevalcap, brings 100 MB of Java for other metrics.
Invariant: the same numbers as its scorer for texts of lower-case words (n-grams are counted, not
normalised, before they are clipped; the score of a sentence is ten times a cosine).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import exp, log, sqrt

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words; how fast a difference in length is punished

Gram = tuple[str, ...]
Vector = tuple[list[dict[Gram, float]], list[float], int]  # weights and norm by n; words


def words(text: str) -> list[str]:
    """The lower-case words of a text, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def grams(text: str) -> Counter[Gram]:
    """How often each n-gram of 1 to 4 words stands in a text."""
    found = words(text)
    return Counter(
        tuple(found[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(found) - n + 1)
    )


class Cider:
    """Scores sentences; how rare an n-gram is comes from `corpus`, the references of each clip."""

    def __init__(self, corpus: Sequence[Sequence[str]]) -> None:
        seen: Counter[Gram] = Counter()
        counted = lru_cache(maxsize=None)(lambda text: frozenset(grams(text)))
        for references in corpus:
            seen.update(frozenset().union(*(counted(text) for text in references)))
        self._seen = seen
        self._clips = log(len(corpus))
        self._vectors: dict[str, Vector] = {}
        self._scores: dict[tuple[str, tuple[str, ...]], float] = {}

    def score(self, text: str, references: Sequence[str]) -> float:
        """CIDEr-D of `text` against the references of its clip, 0..10."""
        key = (text, tuple(references))
        if key not in self._scores:
            near = [self._similarity(self._vector(text), self._vector(r)) for r in references]
            self._scores[key] = 10 * sum(near) / len(near)
        return self._scores[key]

    def _vector(self, text: str) -> Vector:
        if text not in self._vectors:
            weights: list[dict[Gram, float]] = [{} for _ in range(LONGEST)]
            for gram, count in grams(text).items():
                rarity = self._clips - log(max(1, self._seen[gram]))
                weights[len(gram) - 1][gram] = count * rarity
            norms = [sqrt(sum(w * w for w in part.values())) for part in weights]
            self._vectors[text] = (weights, norms, len(words(text)))
        return self._vectors[text]

    @staticmethod
    def _similarity(said: Vector, meant: Vector) -> float:
        """Mean over n of the clipped cosine, less for a difference in length."""
        total = 0.0
        for a, b, norm_a, norm_b in zip(said[0], meant[0], said[1], meant[1], strict=True):
            if norm_a > 0 and norm_b > 0:
                shared = sum(min(a[gram], b[gram]) * b[gram] for gram in a.keys() & b.keys())
                total += shared / (norm_a * norm_b)
        return total / LONGEST * exp(-((said[2] - meant[2]) ** 2) / (2 * SIGMA**2))
