"""The clip for a caption among 500 clips, and the caption for a clip.

Section 2 of docs/results.md.

Invariant: clips that share a caption count as equal: finding any of them is finding it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from ..baselines import Pixels
from ..clips import SeenClip
from ..figures import bootstrap
from .classification import Labels

GALLERY = 500  # clips
RECALLS = (1, 5, 10)


def ranks(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The rank, from 1, of the best candidate that is right for each query.

    `scores` `[Q, N]`, higher is nearer; `same` bool `[Q, N]`. A tie with a wrong one is lost.
    """
    best = np.where(same, scores, -np.inf).max(1, keepdims=True)
    return 1 + ((scores >= best) & ~same).sum(1)


def figures(rank: np.ndarray, episodes: Sequence[int]) -> dict[str, Any]:
    """Recall at 1, 5 and 10, and the median rank."""
    found: dict[str, Any] = {f"r{k}": bootstrap.mean(rank <= k, episodes) for k in RECALLS}
    return {**found, "median_rank": bootstrap.median(rank, episodes)}


def chance(same: np.ndarray) -> dict[str, Any]:
    """What a random order would reach; `same` bool `[Q, N]`."""
    total, right = same.shape[1], same.sum(1).tolist()
    found: dict[str, Any] = {
        f"r{k}": {"value": float(np.mean([1 - comb(total - m, k) / comb(total, k) for m in right]))}
        for k in RECALLS
    }
    ranked = np.random.default_rng(0).random(same.shape)
    return {**found, "median_rank": {"value": float(np.median(ranks(ranked, same)))}}


def retrieve(clips: Sequence[SeenClip], canonical: Labels, pixels: Pixels) -> dict[str, Any]:
    """Both directions over 500 clips drawn from `clips`, of the bundle, of chance and of pixels.

    A query of text to video is the canonical caption of each clip; `distinct` counts each caption
    once. A candidate of video to text is each caption that one of the clips has.
    """
    chosen = np.random.default_rng(0).permutation(len(clips))[:GALLERY]
    gallery = [clips[i] for i in chosen]
    episodes = [clip.episode for clip in gallery]
    captions = [clip.caption for clip in gallery]
    distinct = list(dict.fromkeys(captions))
    first = [captions.index(caption) for caption in distinct]
    names = [gallery[i].name for i in first]
    number = np.array([distinct.index(caption) for caption in captions])
    embeddings = np.stack([clip.embedding for clip in gallery])
    seen = embeddings @ canonical.of(names).T  # [clips, captions]
    plain = pixels.scores([clip.picture for clip in gallery], names)
    same = number[:, None] == number  # [clips, clips]
    own = number[:, None] == np.arange(len(distinct))  # [clips, captions]

    def both(scores: np.ndarray) -> dict[str, Any]:
        found = ranks(scores.T[number], same)
        return {
            "text_to_video": figures(found, episodes),
            "text_to_video_distinct": figures(found[first], [episodes[i] for i in first]),
            "video_to_text": figures(ranks(scores, own), episodes),
        }

    return {
        "clips": len(gallery),
        "captions": len(distinct),
        "bundle": both(seen),
        "chance": {
            "text_to_video": chance(same),
            "text_to_video_distinct": chance(same[first]),
            "video_to_text": chance(own),
        },
        "pixels": both(plain),
    }
