"""Clips for training, cut from the episodes of the simulated table.

Invariant: a clip whose window touches a combination held out for the composition split is never
drawn for training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vljepa_ros.inference.preprocess import prepare

from . import language, store
from .episode import FRAME_RATE, GRIPPER, HAND, Episode
from .store import STRIDE
from .vocabulary import KINDS, STATE_FLAGS

REWORDED = 0.4  # the share of sentences that are said in other words
# Can be answered from one picture.
STILL_QUESTIONS = ("count", "exists", "where", "scene", "colour", "posture")
ASKED = 3  # questions of one clip: the X-encoder's run is what costs
ZOOM, ASPECT, TURN, SHIFT = (0.88, 1.35), 0.08, 0.12, 0.04  # of views: factors, rad, image widths
OFTENER = {"colour": 2.0, "where": 1.5, "moving": 1.5}  # which thing is meant is hard to learn


@dataclass(frozen=True)
class ClipShape:
    """Frames per clip, frames per tubelet, patches per side and pixels per side."""

    frames: int
    tubelet: int
    side: int
    size: int

    @property
    def span(self) -> float:
        """Seconds from the oldest to the newest frame."""
        return (self.frames - 1) * STRIDE / FRAME_RATE


class ClipDataset(IterableDataset):
    """An endless stream of clips, kinds of event balanced, deterministic by seed and worker.

    Of a kind's events those are drawn more often, by the root of how much rarer it is, that follow
    a rarer kind: a reach after a drop is harder to see than one out of the quiet.

    An item is a dict: `frames` uint8 `[T, S, S, 3]`, `queries`, `answers`, `meanings` (lists of
    strings, one per question asked of the clip) and `state` (see `cell_state`).
    """

    def __init__(
        self, root: Path, shape: ClipShape, seed: int, still_images: bool = False,
        asked: int = ASKED,
    ):  # fmt: skip
        self.paths = store.needed(root, "train")
        if still_images:
            self.paths += store.episode_paths(root, "stills")
        self.shape, self.seed, self.still_images, self.asked = shape, seed, still_images, asked
        self.loaded: dict[int, Episode] = {}  # frames stay jpeg: less than 1 MB an episode
        if still_images:
            return
        rows = np.concatenate([self._events(index) for index in range(len(self.paths))])
        self.by_kind = [rows[rows[:, 1] == kind] for kind in range(len(KINDS))]
        self.chances = [_evened(rows[:, 4]) for rows in self.by_kind]
        counts = np.array([len(rows) for rows in self.by_kind], dtype=float)
        weights = np.minimum(counts, 1) * KIND_WEIGHTS
        self.weights = weights / weights.sum()

    def _events(self, index: int) -> np.ndarray:
        """Rows of (episode, kind, start, end, kind before) of events that a clip may end in."""
        with np.load(self.paths[index]) as data:
            kinds, spans = data["event_kind"], data["event_span"]
        before = np.concatenate([[-1], kinds])[: len(kinds)]  # events are kept by their start
        rows = np.column_stack([np.full(len(kinds), index), kinds, spans, before])
        return rows[(spans[:, 1] - spans[:, 0] > 0.25) & (spans[:, 1] > self.shape.span)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield self.draw(rng)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """One clip that ends in an event of a random kind, or one frame of a random scene."""
        if self.still_images:
            episode = self._episode(int(rng.integers(len(self.paths))))
            return self.clip(episode, int(rng.integers(len(episode))), rng)
        while True:
            kind = rng.choice(len(self.weights), p=self.weights)
            row = rng.choice(self.by_kind[kind], p=self.chances[kind])
            episode = self._episode(int(row[0]))
            first, last = row[2:4] + store.NAMED_AFTER
            first = max(first, self.shape.span)
            newest = round(rng.uniform(first, max(first, last - 0.05)) * FRAME_RATE)
            newest = min(newest, len(episode) - 1)
            t = float(episode.stamps[newest])
            if store.trainable(episode, t - self.shape.span, t):
                return self.clip(episode, newest, rng)

    def _episode(self, index: int) -> Episode:
        if index not in self.loaded:
            self.loaded[index] = store.load_episode(self.paths[index])
        return self.loaded[index]

    def clip(self, episode: Episode, newest: int, rng: np.random.Generator) -> dict[str, Any]:
        """The clip whose newest frame is number `newest` of an episode."""
        shape = self.shape
        if self.still_images:
            chosen = np.full(shape.tubelet, newest)
        else:
            chosen = newest - STRIDE * np.arange(shape.frames)[::-1]
        view = View.draw(rng)
        drawn = {
            i: view.picture(prepare(episode.frame(i), shape.size)) for i in set(chosen.tolist())
        }
        frames = augment(np.stack([drawn[i] for i in chosen.tolist()]), rng)
        ends = chosen[shape.tubelet - 1 :: shape.tubelet]
        cells = np.stack([view.cells(episode.cells[i]) for i in ends])
        episode = view.episode(episode)
        asked = self._questions(episode, newest, rng)
        return {
            "frames": frames,
            "queries": [a[0] for a in asked],
            "answers": [a[1] for a in asked],
            "meanings": [a[2] for a in asked],
            "state": cell_state(episode, ends, cells, shape.side),
        }

    def _questions(
        self, episode: Episode, newest: int, rng: np.random.Generator
    ) -> list[tuple[str, str, str]]:
        """`asked` questions of one clip: (query, answer as worded, meaning)."""
        t = float(episode.stamps[newest])
        event = store.current_event(episode, t)
        others = language.questions(store.situation(episode, t), event, rng)[1:]
        if self.still_images:
            return self._drawn([q for q in others if q[2] in STILL_QUESTIONS], self.asked, rng)
        said = language.describe(event, episode.object_names, rng)
        if rng.random() < REWORDED:
            said = language.reword(said, int(rng.integers(language.REWORDED)) + 1)
        what = (language.DEFAULT_QUERY, said, language.describe(event, episode.object_names))
        return [what, *self._drawn(others, self.asked - 1, rng)]

    @staticmethod
    def _drawn(
        found: list[tuple[str, str, str]], count: int, rng: np.random.Generator
    ) -> list[tuple[str, str, str]]:
        """`count` of the (query, answer, type) triples; again only where there are too few."""
        weights = np.array([OFTENER.get(kind, 1.0) for _, _, kind in found])
        picks = rng.choice(len(found), count, replace=len(found) < count, p=weights / weights.sum())
        return [(found[i][0], found[i][1], found[i][1]) for i in picks]


def _evened(groups: np.ndarray) -> np.ndarray:
    """Chances of rows that are in `groups` `[N]`: a group's is in proportion to its size's root."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(sizes[group])
    return weights / weights.sum()


@dataclass(frozen=True)
class View:
    """A mirrored, zoomed, turned and shifted view: other scenes from the same simulation.

    A point of the square image at `uv` (0..1) comes to `linear @ (uv - 0.5) + 0.5 + shift`.
    """

    linear: np.ndarray  # [2, 2]
    shift: np.ndarray  # [2]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> View:
        zoom, aspect = np.exp(rng.uniform(*np.log(ZOOM))), np.exp(rng.uniform(-ASPECT, ASPECT))
        angle = rng.uniform(-TURN, TURN)
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        scale = np.diag([rng.choice((-1, 1)) * zoom * aspect, zoom / aspect])
        reach = SHIFT + 0.3 * max(0.0, zoom - 1)  # a larger picture may be cut elsewhere
        return cls(turned @ scale, rng.uniform(-reach, reach, 2))

    def picture(self, image: np.ndarray) -> np.ndarray:
        """The view of one frame, uint8 `[S, S, 3]`; what lies outside is its border's colour."""
        size = image.shape[:2]
        return cv2.warpAffine(
            image, self._matrix(size[0]), size, flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip

    def episode(self, episode: Episode) -> Episode:
        """The same episode with every place and motion in the image as this view shows it."""
        arrays = dict(episode.arrays)
        for name in ("object_uv", "gripper_uv", "hand_uv"):
            arrays[name] = (arrays[name] - 0.5) @ self.linear.T + 0.5 + self.shift
        for name in ("object_motion", "gripper_motion"):
            arrays[name] = arrays[name] @ self.linear.T
        inside = np.all((arrays["object_uv"] > 0) & (arrays["object_uv"] < 1), axis=-1)
        arrays["object_visible"] = arrays["object_visible"] & inside
        return Episode(arrays, episode.meta)

    def cells(self, grid: np.ndarray) -> np.ndarray:
        """What each cell shows in this view, uint8 `[CELLS, CELLS]` (see `Camera.owners`)."""
        return cv2.warpAffine(grid, self._matrix(len(grid)), grid.shape, flags=cv2.INTER_NEAREST)

    def _matrix(self, size: int) -> np.ndarray:
        """Of the affine map of pixels; pixel i is centred at (i + 0.5) / size."""
        half = np.full(2, 0.5)
        moved = (half + self.shift - self.linear @ (half - 0.5 / size)) * size - 0.5
        return np.column_stack([self.linear, moved])


def augment(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and colour cast of a whole clip; uint8 `[T, S, S, 3]` in and out."""
    gain = rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3)
    table = np.arange(256)[:, None] * gain + rng.uniform(-12, 12)
    table = np.clip(table, 0, 255).astype(np.uint8)
    return np.stack([table[frames[..., c], c] for c in range(3)], axis=-1)


def cell_state(
    episode: Episode, rows: np.ndarray, cells: np.ndarray, side: int
) -> dict[str, np.ndarray]:
    """What each patch of each tubelet shows, float32 or int64 `[tubelets · side², …]`.

    `rows` are the episode's frames that end the tubelets, `cells` `[tubelets, CELLS, CELLS]` their
    grids. `offset` is from the patch's middle to the centre of the object that is seen there, in
    tenths of the image; `motion` is that object's (see `speed`).
    """
    owners = np.stack([pool(grid, side) for grid in cells])
    owners = owners.reshape(len(rows), side * side)
    tubelet, place = np.nonzero((owners > 0) & (owners <= len(episode.objects)))
    thing = owners[tubelet, place].astype(int) - 1
    row, at = rows[tubelet], tubelet * side * side + place
    count = owners.size
    middles = np.stack([place % side, place // side], axis=1) + 0.5
    state: dict[str, np.ndarray] = {
        "objectness": np.zeros(count, np.float32), "shape": np.zeros(count, np.int64),
        "colour": np.zeros(count, np.int64), "offset": np.zeros((count, 2), np.float32),
        "motion": np.zeros((count, 2), np.float32),
        "flags": np.zeros((count, STATE_FLAGS), np.float32),
        "gripper": (owners == GRIPPER).ravel().astype(np.float32),
        "gripper_state": np.zeros((count, 3), np.float32),
        "hand": (owners == HAND).ravel().astype(np.float32),
    }  # fmt: skip
    state["objectness"][at] = 1
    state["shape"][at], state["colour"][at] = episode.objects[thing].T
    offset = episode.object_uv[row, thing] - middles / side
    state["offset"][at] = np.clip(offset * 10, -5, 5)
    state["motion"][at] = speed(episode.object_motion[row, thing])
    bits = episode.object_state[row, thing].astype(int)
    state["flags"][at] = (bits[:, None] >> np.arange(STATE_FLAGS)) & 1
    gripper = np.column_stack([speed(episode.gripper_motion[rows]), episode.gripper_closed[rows]])
    state["gripper_state"][:] = np.repeat(gripper, side * side, axis=0)
    return state


def speed(motion: np.ndarray) -> np.ndarray:
    """Image widths per second on a scale where a fall does not drown a push: asinh of tenths."""
    return np.arcsinh(10 * motion)


def pool(grid: np.ndarray, side: int) -> np.ndarray:
    """The label seen most in each patch (0 only where there is no other), uint8 `[side, side]`."""
    fine = side // math.gcd(side, len(grid))
    block = len(grid) * fine // side
    parts = grid.repeat(fine, axis=0).repeat(fine, axis=1)
    parts = parts.reshape(side, block, side, block).swapaxes(1, 2).reshape(side, side, -1)
    values = np.unique(grid[grid > 0])
    if not len(values):
        return np.zeros((side, side), np.uint8)
    counts = (parts[..., None] == values).sum(axis=2)
    most = values[counts.argmax(axis=-1)]
    return np.where(counts.max(axis=-1) > 0, most, 0).astype(np.uint8)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of clips: stacked arrays, `state` where there is one; texts clip by clip in lists."""
    arrays = {"frames", "state"}
    batch: dict[str, Any] = {
        name: [text for item in items for text in item[name]] for name in items[0].keys() - arrays
    }
    batch["frames"] = torch.from_numpy(np.stack([item["frames"] for item in items]))
    if "state" in items[0]:
        batch["state"] = {
            name: torch.from_numpy(np.stack([item["state"][name] for item in items]))
            for name in items[0]["state"]
        }
    return batch


KIND_WEIGHTS = np.array([0.6 if kind in ("still", "hand", "retreat") else 1.0 for kind in KINDS])
