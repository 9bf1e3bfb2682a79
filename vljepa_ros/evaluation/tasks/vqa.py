"""Closed questions, answered by the nearest of all the answers of their type.

Section 3 of docs/results.md.

Invariant: a clip that is asked anything is asked every closed question that fits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.tabletop import language

from ..baselines import Habits
from ..clips import SeenClip
from ..figures import bootstrap


def answer(model: Runtime, clips: Sequence[SeenClip], habits: Habits) -> dict[str, Any]:
    """Accuracy by question type, over all types alike (`types`) and over all questions.

    `most_frequent` is what the question alone gives: the commonest answer of training.
    """
    written = {kind: model.embed_text(options) for kind, options in language.ANSWERS.items()}
    right: dict[str, list[bool]] = {kind: [] for kind in language.ANSWERS}
    usual: dict[str, list[bool]] = {kind: [] for kind in language.ANSWERS}
    episodes: dict[str, list[int]] = {kind: [] for kind in language.ANSWERS}
    for clip in clips:
        for asked in clip.asked:
            chosen = int(np.argmax(written[asked.type] @ asked.embedding))
            right[asked.type].append(language.ANSWERS[asked.type][chosen] == asked.answer)
            usual[asked.type].append(habits.answer(asked.query, asked.type) == asked.answer)
            episodes[asked.type].append(clip.episode)
    kinds = [kind for kind, found in right.items() if found]
    groups = [kind for kind in kinds for _ in right[kind]]
    chances = {kind: 1 / len(language.ANSWERS[kind]) for kind in kinds}

    def flat(by_kind: dict[str, list[Any]]) -> list[Any]:
        return [one for kind in kinds for one in by_kind[kind]]

    return {
        "questions": len(groups),
        "types": {
            "bundle": bootstrap.mean(flat(right), flat(episodes), groups),
            "chance": {"value": float(np.mean(list(chances.values())))},
            "most_frequent": bootstrap.mean(flat(usual), flat(episodes), groups),
        },
        "all_questions": {
            "bundle": bootstrap.mean(flat(right), flat(episodes)),
            "chance": {"value": float(np.mean([chances[kind] for kind in groups]))},
            "most_frequent": bootstrap.mean(flat(usual), flat(episodes)),
        },
        "by_type": {
            kind: {
                "questions": len(right[kind]),
                "bundle": bootstrap.mean(right[kind], episodes[kind]),
                "chance": {"value": chances[kind]},
                "most_frequent": bootstrap.mean(usual[kind], episodes[kind]),
            }
            for kind in kinds
        },
    }
