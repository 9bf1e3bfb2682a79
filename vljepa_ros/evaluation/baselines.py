"""What the figures are held against: the training split's habits, and a model of plain pixels.

Invariant: a baseline knows nothing but the clips of the training split that training may use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from vljepa_ros.tabletop import store

from .clips import THUMBNAIL, Name, closed_questions, middles, name_of, window

RARE = 5  # a question asked less often in training is answered by its type


@dataclass
class Habits:
    """How often training saw each event and each answer."""

    names: Counter[Name] = field(default_factory=Counter)
    answers: dict[str, Counter[str]] = field(default_factory=dict)  # by query, and by type

    @property
    def name(self) -> Name:
        """The most frequent event."""
        return self.names.most_common(1)[0][0]

    @property
    def kind(self) -> str:
        """The most frequent kind of event."""
        return _most(self.names, 0)[0]

    @property
    def object(self) -> tuple[str, ...]:
        """The most frequent (colour, shape) that something happens to."""
        return _most(self.names, 1, 2)

    def answer(self, query: str, kind: str) -> str:
        """The most frequent answer to a question, without a look at the clip."""
        known = self.answers.get(query, Counter())
        if known.total() < RARE:
            known = self.answers[kind]
        return known.most_common(1)[0][0]


def _most(names: Counter[Name], *parts: int) -> tuple[str, ...]:
    counts: Counter[tuple[str, ...]] = Counter()
    for name, count in names.items():
        chosen = [name[part] for part in parts]
        if None not in chosen:
            counts[tuple(str(one) for one in chosen)] += count
    return counts.most_common(1)[0][0]


class Pixels:
    """Linear discriminants of 8 by 8 pixel thumbnails: newest picture, and what changed before."""

    def __init__(self, pictures: Sequence[np.ndarray], names: Sequence[Name]) -> None:
        features = np.stack([self.features(picture) for picture in pictures])
        self._kinds = _discriminant(features, [str(name[0]) for name in names])
        having = [i for i, name in enumerate(names) if name[1] is not None]
        self._objects = _discriminant(
            features[having], [" ".join(map(str, names[i][1:])) for i in having]
        )

    @staticmethod
    def features(picture: np.ndarray) -> np.ndarray:
        """Float `[F]` of a thumbnail clip, uint8 `[T, P, P, 3]`."""
        grey = picture.astype(float).mean(-1)
        change = np.abs(np.diff(grey, axis=0))
        return np.concatenate([picture[-1].ravel() / 255, change.ravel() / 64])

    def scores(self, pictures: Sequence[np.ndarray], names: Sequence[Name]) -> np.ndarray:
        """Log-probability of each of `names` for each thumbnail clip, `[N, L]`."""
        features = np.stack([self.features(picture) for picture in pictures])
        kinds, objects = (
            _log_probabilities(self._kinds, features),
            _log_probabilities(self._objects, features),
        )
        unknown = np.full(len(features), -1e3)  # a class that the training clips do not hold
        columns = []
        for kind, colour, shape in names:
            column = kinds.get(str(kind), unknown)
            if colour is not None:
                column = column + objects.get(f"{colour} {shape}", unknown)
            columns.append(column)
        return np.stack(columns, axis=1)


def _discriminant(features: np.ndarray, classes: Sequence[str]) -> LinearDiscriminantAnalysis:
    counts = Counter(classes)
    kept = [i for i, one in enumerate(classes) if counts[one] > 1]  # a class needs a spread
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)
    return model.fit(features[kept], [classes[i] for i in kept])


def _log_probabilities(
    model: LinearDiscriminantAnalysis, features: np.ndarray
) -> dict[str, np.ndarray]:
    columns = model.predict_log_proba(features).T
    return dict(zip(model.classes_.tolist(), np.maximum(columns, -1e3), strict=True))


def learn(frames: int, paths: Sequence[Path], seed: int = 0) -> tuple[Habits, Pixels]:
    """Both baselines, from the clips of `frames` of training episodes."""
    habits, pictures, names = Habits(), list[np.ndarray](), list[Name]()
    for number, path in enumerate(paths):
        episode = store.load_episode(path)
        rng = np.random.default_rng([seed, 1, number])
        for event, row in zip(*middles(frames, episode), strict=True):
            if not store.trainable(episode, event.start, event.end):
                continue
            names.append(name_of(event, episode.object_names))
            pictures.append(window(episode, int(row), frames, THUMBNAIL))
            habits.names[names[-1]] += 1
            for query, answer, kind in closed_questions(episode, int(row), rng):
                for key in (query, kind):
                    habits.answers.setdefault(key, Counter())[answer] += 1
    return habits, Pixels(pictures, names)
