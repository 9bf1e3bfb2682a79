"""Questions with four candidates about a stream, from its recorded state.

Invariant: one candidate is true and three are not; the wrong ones are the likeliest to be believed,
answers about the objects of this very scene, where there are enough of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import language, store
from .episode import Episode
from .vocabulary import KINDS, OBJECT_KINDS

CANDIDATES = 4
FIRST, EVERY = 2.0, 1.0  # s; before the first no clip is full
TYPES = ("event", "moving", "colour", "count", "where", "holding")  # those of more than two answers


def choices(episode: Episode) -> list[dict[str, Any]]:
    """What can be asked every second: `at` (s), `type`, `question`, `answer` and `candidates`.

    `at` is the stamp of the newest frame of the clip that is asked about. Deterministic.
    """
    rng = np.random.default_rng(int(episode.meta["seed"]))
    found = []
    for at in np.arange(FIRST, float(episode.stamps[-1]), EVERY):
        shown = store.situation(episode, float(at))
        event = store.current_event(episode, float(at))
        for question, answer, kind in language.questions(shown, event, rng):
            if kind not in TYPES:
                continue
            if kind == "event":
                answer = language.describe(event, shown.objects)
            candidates = [answer, *_wrong(kind, answer, shown.objects, rng)]
            rng.shuffle(candidates)
            found.append(
                {"at": round(float(at), 3), "type": kind, "question": question, "answer": answer,
                 "candidates": candidates}
            )  # fmt: skip
    return found


def _wrong(
    kind: str, answer: str, objects: Sequence[tuple[str, str]], rng: np.random.Generator
) -> list[str]:
    """Three wrong answers: likely ones first, and where there are too few, others of the type."""
    likely = [one for one in _likely(kind, objects) if one != answer]
    others = [one for one in language.ANSWERS.get(kind, ()) if one not in (*likely, answer)]
    drawn = [*rng.permutation(likely), *rng.permutation(others)]
    return [str(one) for one in drawn[: CANDIDATES - 1]]


def _likely(kind: str, objects: Sequence[tuple[str, str]]) -> list[str]:
    """Answers of a type that the objects of a scene suggest."""
    named = [language.object_phrase(pair) for pair in objects]
    if kind == "event":
        return [
            *(language.TEMPLATES[k][0] for k in KINDS if k not in OBJECT_KINDS),
            *(
                language.TEMPLATES[k][0].format(object=name)
                for k, name in itertools.product(OBJECT_KINDS, named)
            ),
        ]
    if kind in ("moving", "holding"):
        return [language.ANSWERS[kind][0], *named]
    if kind == "colour":
        return list(dict.fromkeys(colour for colour, _ in objects))
    return []
