"""The tokens of a user's recordings, made once by an X-encoder that learns nothing.

Invariant: what is kept in a training's folder belongs to the lines and the bundle that its recipe
names; every clip that is cut from it is the one that `Recordings` would cut from the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.tabletop.clips import View, augment

from ..lines import Line, Source
from ..recordings import FINER, Frames, Recordings

VIEWS = 4  # of each picture: as it is, and zoomed, shifted and recoloured a little
ZOOM, SHIFT = (0.92, 1.1), 0.04  # as for clips that are learnt from as pictures
BATCH = 16  # pictures that are encoded at a time
KEPT = "tokens.npz"


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of every picture that the lines need, in `VIEWS` views.

    `of[source]`: float32 `[VIEWS, n, Dv]`, in the order of `Frames.pictures`; where the X-encoder
    makes several of a picture, their mean.
    """

    recordings: Recordings
    of: dict[Source, np.ndarray]

    def clip(self, line: Line, newest: int, view: int = 0) -> np.ndarray:
        """The tokens of the clip of `line` that ends at grid time `newest`, float32 `[T, Dv]`."""
        rows = self.recordings.frames[line.source].row
        return self.of[line.source][view, [rows[k] for k in self.recordings.grid(newest)]]

    def streams(self) -> list[tuple[Source, np.ndarray, np.ndarray]]:
        """The clips that follow each other at the sample rate without a gap.

        (source, seconds `[n]`, tokens float32 `[n, T, Dv]`) of each such stretch.
        """
        found = []
        for source, frames in self.recordings.frames.items():
            times = sorted(k for k in frames.row if k % FINER == 0)
            whole = [k for k in times if all(g in frames.row for g in self.recordings.grid(k))]
            gaps = np.flatnonzero(np.diff(whole) > FINER) + 1
            for stretch in np.split(np.array(whole, int), gaps):
                rows = [[frames.row[g] for g in self.recordings.grid(int(k))] for k in stretch]
                if rows:
                    seconds = stretch / self.recordings.rate
                    found.append((source, seconds, self.of[source][0][np.array(rows)]))
        return found


def keep_tokens(
    model: Runtime, recordings: Recordings, out: Path, seed: int, say: Callable[[str], None]
) -> KeptTokens:
    """Encode the pictures of all lines, or read what an earlier run left in `out`."""
    file = out / KEPT
    sources = list(recordings.frames)
    if not file.is_file():
        count = sum(len(frames.pictures) for frames in recordings.frames.values())
        say(f"encoding {count} pictures in {VIEWS} views, once")
        rng = np.random.default_rng(seed)
        made = [_encoded(model, recordings.frames[source], rng) for source in sources]
        part = out / f".{KEPT}"
        with open(part, "wb") as writing:
            np.savez(writing, *made)
        part.replace(file)
    with np.load(file) as kept:
        return KeptTokens(
            recordings, {source: kept[f"arr_{k}"] for k, source in enumerate(sources)}
        )


def _encoded(model: Runtime, frames: Frames, rng: np.random.Generator) -> np.ndarray:
    """The tokens of one source's pictures, float32 `[VIEWS, n, Dv]`."""
    views = [_encode(model, frames.pictures)]
    for _ in range(VIEWS - 1):
        view = View(np.eye(2) * rng.uniform(*ZOOM), rng.uniform(-SHIFT, SHIFT, 2))
        seed = int(rng.integers(2**31))  # all pictures in one light
        views.append(_encode(model, frames.pictures, partial(_seen, view, seed)))
    return np.stack(views)


def _seen(view: View, seed: int, picture: np.ndarray) -> np.ndarray:
    return augment(view.picture(picture)[None], np.random.default_rng(seed))[0]


def _encode(
    model: Runtime, pictures: Sequence[np.ndarray], seen: Callable[..., np.ndarray] | None = None
) -> np.ndarray:
    rows = []
    for start in range(0, len(pictures), BATCH):
        some = [seen(p) if seen else p for p in pictures[start : start + BATCH]]
        tokens = model.encode_keeping([[picture] for picture in some])
        rows += [np.asarray(one).mean(0) for one in tokens]
    return np.stack(rows)
