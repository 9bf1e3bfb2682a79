"""A first look at a bundle while it is made; `run.evaluate` is the whole table.

Invariant: clips, labels and answers are those of the whole table, so the values are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.runtime.model import VLJepa
from vljepa_ros.training.tabletop import language

from .classification import Labels, by_kind, nearest, same_event
from .clips import see


def name_clips(model: VLJepa, episodes: Sequence[Path]) -> dict[str, Any]:
    """Name the events of all clips by the nearest canonical sentence, and answer all questions."""
    clips = see(model, episodes)
    labels = Labels.canonical(model)
    named = nearest(np.stack([clip.embedding for clip in clips]), labels)
    kinds = {kind: round(one["right"], 3) for kind, one in by_kind(clips, named).items()}
    same = [n[1:] == c.name[1:] for c, n in zip(clips, named) if c.name[1] is not None]
    written = {kind: model.embed_text(options) for kind, options in language.ANSWERS.items()}
    answers: dict[str, list[bool]] = {}
    for asked in (asked for clip in clips for asked in clip.asked):
        chosen = int(np.argmax(written[asked.type] @ asked.embedding))
        right = language.ANSWERS[asked.type][chosen] == asked.answer
        answers.setdefault(asked.type, []).append(right)
    return {
        "clips": len(clips),
        "event_kind_balanced": _mean(list(kinds.values())),
        "event_kind": kinds,
        "object": _mean(same),
        "event_and_object": _mean([same_event(c.name, n) for c, n in zip(clips, named)]),
        "vqa": {kind: _mean(right) for kind, right in sorted(answers.items())},
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 3)
