"""What the decoder says of a clip, by CIDEr-D and by the event that it names.

Section 4 of docs/results.md.

Invariant: the references of a clip are all the training wordings of its true event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.tabletop import language

from ..baselines import Habits, Pixels
from ..clips import SeenClip, wordings
from ..figures import bootstrap
from ..figures.cider import Cider
from .classification import figures as named_figures

BATCH = 256  # embeddings per run of the Y-decoder


def decode(model: Runtime, embeddings: np.ndarray) -> list[str]:
    """The words of each embedding `[N, E]`."""
    return [
        text
        for start in range(0, len(embeddings), BATCH)
        for text in model.decode_all(embeddings[start : start + BATCH])
    ]


def describe(
    model: Runtime, clips: Sequence[SeenClip], habits: Habits, pixels: Pixels
) -> dict[str, Any]:
    """The figures of the decoded text, of the baselines, and of the true canonical sentence.

    The last says how high CIDEr-D can be here: no sentence is like all the references at once.
    """
    names = list(language.canonical().values())
    scores = pixels.scores([clip.picture for clip in clips], names)
    cider = Cider([wordings(clip.name) for clip in clips])
    # Chance: the sentence of another clip of the same split.
    shuffled = np.random.default_rng(0).permutation(len(clips))
    texts = {
        "bundle": decode(model, np.stack([clip.embedding for clip in clips])),
        "chance": [clips[i].caption for i in shuffled],
        "most_frequent": [wordings(habits.name)[0]] * len(clips),
        "pixels": [wordings(names[i])[0] for i in scores.argmax(1)],
        "truth": [clip.caption for clip in clips],
    }
    return {"clips": len(clips), **{w: _judge(said, clips, cider) for w, said in texts.items()}}


def _judge(texts: Sequence[str], clips: Sequence[SeenClip], cider: Cider) -> dict[str, Any]:
    scores = [cider.score(text, wordings(c.name)) for text, c in zip(texts, clips, strict=True)]
    named = named_figures(clips, [[language.name_event(text)] for text in texts])
    return {"cider": bootstrap.mean(scores, [clip.episode for clip in clips]), **named}
