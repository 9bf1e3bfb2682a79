"""The event of a clip, named by the nearest of the sentences of all possible events.

Section 1 of docs/results.md.

Invariant: there is one sentence for each event (kind, colour, shape) and nothing else to choose
from; kind and object are read from the same chosen sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.tabletop import language
from vljepa_ros.tabletop.vocabulary import KINDS

from ..baselines import Habits, Pixels
from ..clips import Name, SeenClip
from ..figures import bootstrap


@dataclass(frozen=True)
class Labels:
    """A sentence for every possible event: what each names, and its embedding `[L, E]`."""

    names: list[Name]
    written: np.ndarray

    @classmethod
    def canonical(cls, model: Runtime) -> Labels:
        """In the first training wording."""
        return cls._of(model, language.canonical())

    @classmethod
    def unseen(cls, model: Runtime) -> list[Labels]:
        """In words of no caption of training: one set for each wording."""
        return [
            cls._of(model, language.unseen(choice)) for choice in range(language.UNSEEN_WORDINGS)
        ]

    @classmethod
    def _of(cls, model: Runtime, sentences: Mapping[str, Name]) -> Labels:
        return cls(list(sentences.values()), model.embed_text(list(sentences)))

    def of(self, names: Sequence[Name]) -> np.ndarray:
        """The embeddings of `names`, `[N, E]`."""
        row = {name: i for i, name in enumerate(self.names)}
        return self.written[[row[name] for name in names]]


def same_event(true: Name, named: Name) -> bool:
    """Whether kind and object are right; where the true event has none, the kind is enough."""
    return named[0] == true[0] and (true[1] is None or named == true)


def figures(clips: Sequence[SeenClip], named: Sequence[Sequence[Name]]) -> dict[str, Any]:
    """How often the kind, the object and both were right; `named` holds one or more answers a clip.

    `kind` is the mean over kinds of event, `kind_of_clips` the mean over clips.
    """
    episodes = [clip.episode for clip in clips]
    kinds = [str(clip.name[0]) for clip in clips]
    kind = [np.mean([n[0] == c.name[0] for n in names]) for c, names in zip(clips, named)]
    having = [i for i, clip in enumerate(clips) if clip.name[1] is not None]
    same = {i: np.mean([n[1:] == clips[i].name[1:] for n in named[i]]) for i in having}
    both = [np.mean([same_event(c.name, n) for n in names]) for c, names in zip(clips, named)]
    return {
        "kind": bootstrap.mean(kind, episodes, kinds),
        "kind_of_clips": bootstrap.mean(kind, episodes),
        "object": bootstrap.mean(list(same.values()), [episodes[i] for i in having]),
        "both": bootstrap.mean(both, episodes),
    }


def classify(
    clips: Sequence[SeenClip], canonical: Labels, strange: Sequence[Labels], habits: Habits,
    pixels: Pixels,
) -> dict[str, Any]:  # fmt: skip
    """The figures in training wording, in the `strange` ones, of chance and of the baselines."""
    embeddings = np.stack([clip.embedding for clip in clips])
    names = canonical.names
    training = nearest(embeddings, canonical)
    scores = pixels.scores([clip.picture for clip in clips], names)
    usual: Name = (habits.kind, *habits.object)  # type: ignore[assignment]
    result = {
        "clips": len(clips),
        "labels": len(names),
        "training_wording": figures(clips, [[name] for name in training]),
        "unseen_synonyms": figures(
            clips, list(zip(*(nearest(embeddings, labels) for labels in strange)))
        ),
        "chance": figures(clips, [names] * len(clips)),
        "most_frequent": figures(clips, [[usual]] * len(clips)),
        "pixels": figures(clips, [[names[i]] for i in scores.argmax(1)]),
        "by_kind": by_kind(clips, training),
    }
    new = [i for i, clip in enumerate(clips) if clip.is_held_out]
    if new:
        result["held_out_only"] = {
            "clips": len(new),
            **figures([clips[i] for i in new], [[training[i]] for i in new]),
        }
    return result


def nearest(embeddings: np.ndarray, labels: Labels) -> list[Name]:
    """What the label nearest to each embedding `[N, E]` names."""
    return [labels.names[i] for i in (embeddings @ labels.written.T).argmax(1)]


def by_kind(clips: Sequence[SeenClip], named: Sequence[Name]) -> dict[str, dict[str, Any]]:
    """For each kind its clips, the share named rightly, and what it was most often taken for."""
    table = {}
    for kind in KINDS:
        said = [name[0] for clip, name in zip(clips, named, strict=True) if clip.name[0] == kind]
        wrong = [one for one in said if one != kind]
        if said:
            table[kind] = {
                "clips": len(said),
                "right": 1 - len(wrong) / len(said),
                "taken_for": max(set(wrong), key=wrong.count) if wrong else None,
            }
    return table
