"""Early stop on retrieval: clips that training never sees, found by their text and named by it.

Invariant: a text and a prediction belong together by their meaning, so two wordings or two clips
of one meaning are both right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

MONITOR = "retrieval"


def recall_at_1(
    predicted: np.ndarray, meant: Sequence[str], texts: np.ndarray, meanings: Sequence[str]
) -> dict[str, float]:
    """The share of clips whose nearest text is right, and of texts whose nearest clip is right.

    `predicted` `[N, D]` of clips that mean `meant`; `texts` `[M, D]`, that mean `meanings`, are
    all texts to choose from. Texts that no clip means are not looked for.
    """
    cosines = np.asarray(predicted, np.float64) @ np.asarray(texts, np.float64).T
    of_clip, of_text = np.array(meant), np.array(meanings)
    named = of_text[cosines.argmax(1)] == of_clip
    sought = np.isin(of_text, of_clip)
    found = of_clip[cosines.argmax(0)] == of_text
    return {"video_to_text": float(named.mean()), "text_to_video": float(found[sought].mean())}


def by_query(
    predicted: np.ndarray, queries: Sequence[str], meant: Sequence[str], texts: np.ndarray,
    asked: Sequence[tuple[str, str]],
) -> dict[str, float]:  # fmt: skip
    """`recall_at_1` among clips and texts of one query, in the mean over clips or texts.

    `asked` are the (query, meaning) that the rows of `texts` `[M, D]` belong to.
    """
    sums = {"video_to_text": 0.0, "text_to_video": 0.0}
    clips = wordings = 0
    for query in dict.fromkeys(queries):
        mine = [i for i, q in enumerate(queries) if q == query]
        its = [i for i, (q, _) in enumerate(asked) if q == query]
        said, meanings = [meant[i] for i in mine], [asked[i][1] for i in its]
        found = recall_at_1(predicted[mine], said, texts[its], meanings)
        sought = sum(one in said for one in meanings)
        clips, wordings = clips + len(mine), wordings + sought
        sums["video_to_text"] += found["video_to_text"] * len(mine)
        sums["text_to_video"] += found["text_to_video"] * sought
    return {
        "video_to_text": sums["video_to_text"] / clips,
        "text_to_video": sums["text_to_video"] / wordings,
    }


def stop_on_retrieval(folder: Path, patience: int) -> list[Callback]:
    """Callbacks that keep the best and the last checkpoint and end after `patience` looks in vain.

    The module logs MONITOR in every validation: the higher, the better.
    """
    return [
        ModelCheckpoint(
            folder, "best", monitor=MONITOR, mode="max", save_last=True,
            enable_version_counter=False,
        ),
        EarlyStopping(MONITOR, mode="max", patience=patience),
    ]  # fmt: skip
