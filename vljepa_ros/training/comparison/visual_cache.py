"""What a frozen X-encoder sees of clips, computed once and kept on disk.

Invariant: batch number i of a folder is the same for everyone who asks, in every process, however
often the filling was interrupted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from vljepa_ros.evaluation.clips import Name, middles, name_of, window
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.clips import ClipDataset

from ..loop import cpu_autocast

TOKENS, TEXTS = "clips.f16", "clips.jsonl"
CHUNK = 32  # clips that are encoded, and kept, at a time


@dataclass(frozen=True)
class Batch:
    """B clips: merged visual tokens fp32 `[B, N, C]` and their questions and answers, clip by clip.

    `samples` are clips with one question each.
    """

    visual: Tensor
    queries: list[str]
    answers: list[str]

    @property
    def samples(self) -> int:
        return len(self.queries)


class VisualCache:
    """The visual tokens of training clips, as the predictor takes them, and their questions."""

    def __init__(self, folder: Path, clips: int, model: VLJepa, seed: int):
        config = model.config
        merge = config.visual_merge**2
        width = config.x_encoder_config.hidden_size
        self.folder, self.clips, self.seed = folder, clips, seed
        self.shape = (clips, config.visual_tokens // merge, width * merge)
        self.texts: list[tuple[list[str], list[str]]] = []

    def fill(self, model: VLJepa, clips: ClipDataset) -> VisualCache:
        """Draw and encode what is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = self.folder / TEXTS
        lines = texts.read_text().splitlines(keepends=True) if texts.exists() else []
        done = len(lines) if len(lines) == self.clips else len(lines) // CHUNK * CHUNK
        texts.write_text("".join(lines[:done]))  # without a chunk that was cut off
        mode: Literal["r+", "w+"] = "r+" if done else "w+"
        kept = np.memmap(self.folder / TOKENS, np.float16, mode, shape=self.shape)
        chunks = range(done // CHUNK, -(-self.clips // CHUNK))
        with texts.open("a") as file:
            for chunk in track(chunks, "frozen X-encoder") if len(chunks) else ():
                first = chunk * CHUNK
                rng = np.random.default_rng([self.seed, chunk])
                drawn = [clips.draw(rng) for _ in range(min(CHUNK, self.clips - first))]
                kept[first : first + len(drawn)] = see(
                    model, np.stack([c["frames"] for c in drawn])
                )
                kept.flush()
                said = [json.dumps([c["queries"], c["answers"]]) + "\n" for c in drawn]
                file.write("".join(said))
                file.flush()
        self.texts = [tuple(json.loads(line)) for line in texts.read_text().splitlines()]
        return self

    def indices(self, step: int, size: int) -> np.ndarray:
        """The clips `[size]` of a batch: all of them once, in one random order a pass."""
        each = self.clips // size
        order = np.random.default_rng([self.seed, step // each]).permutation(self.clips)
        return order[step % each * size :][:size]

    def batch(self, step: int, size: int) -> Batch:
        """Batch number `step` of `size` clips."""
        return self.at(self.indices(step, size))

    def at(self, indices: np.ndarray) -> Batch:
        """Clips by their numbers."""
        kept = np.memmap(self.folder / TOKENS, np.float16, "r", shape=self.shape)
        visual = torch.from_numpy(kept[indices].astype(np.float32))
        texts = [self.texts[i] for i in indices]
        return Batch(
            visual, [q for queries, _ in texts for q in queries],
            [a for _, answers in texts for a in answers],
        )  # fmt: skip

    def answers(self, step: int, size: int) -> list[str]:
        """The answers of batch number `step`; none before the first."""
        if step < 0:
            return []
        return [a for i in self.indices(step, size) for a in self.texts[i][1]]

    def remove(self) -> None:
        """Give the disk back."""
        for name in (TOKENS, TEXTS):
            (self.folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Shown:
    """One held-out clip: its episode's number and what truly happens."""

    episode: int
    name: Name


@dataclass(frozen=True)
class HeldOut:
    """M held-out clips, the middles of events, and their merged visual tokens fp32 `[M, N, C]`."""

    clips: list[Shown]
    visual: Tensor

    def __len__(self) -> int:
        return len(self.clips)


def held_out(model: VLJepa, paths: Sequence[Path], frames: int, each: int, seed: int) -> HeldOut:
    """At most `each` clips of every kind of event from some episodes."""
    found = defaultdict(list)
    for number, path in enumerate(paths):
        episode = store.load_episode(path)
        for event, row in zip(*middles(frames, episode), strict=True):
            found[event.kind].append((number, int(row), name_of(event, episode.object_names)))
    rng = np.random.default_rng(seed)
    chosen = [rows[i] for rows in found.values() for i in rng.permutation(len(rows))[:each]]
    chosen.sort(key=lambda one: one[:2])
    visual = []
    for number, row, _ in chosen:
        episode = store.load_episode(paths[number])
        size = model.config.x_encoder_config.crop_size
        visual.append(see(model, window(episode, row, frames, size)[None]))
    clips = [Shown(number, name) for number, _, name in chosen]
    return HeldOut(clips, torch.from_numpy(np.concatenate(visual)).float())


@torch.inference_mode()
def see(model: VLJepa, frames: np.ndarray) -> np.ndarray:
    """Frames uint8 `[B, T, H, W, 3]` to merged visual tokens fp16 `[B, N, C]`."""
    with cpu_autocast():
        visual = model.x_encoder(torch.from_numpy(frames))
    return model.predictor.merged(visual).half().numpy()
