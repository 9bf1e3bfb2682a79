"""From a fine-tuning to a bundle, judged on the clips that were held out.

Invariant: the bundle has the thresholds of the one that it came from, and its evaluation is what
its own graphs earned on clips that were never learnt from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros import __version__
from vljepa_ros.bundle.manifest import read_manifest, write_manifest
from vljepa_ros.bundle.spec import PARTS, load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.export.bundle import export_bundle
from vljepa_ros.model.export.quantise import add_fp8, add_int8

from .base import BASE, KEPT, RECIPE, load_checkpoint
from .finetune import HELD_OUT
from .recordings import meaning
from .release import storages
from .retrieval_stop import by_query

QUANTISED_ON = 128  # held-out clips: they give the range of numbers, and teach nothing


def export_finetuned(
    run: Path, out: Path, version: str, storage: str = "fp16", fp8: bool = False
) -> dict[str, Any]:
    """Export the fine-tuning in `run` as the bundle `out`; returns its evaluation.

    The thresholds are those of the bundle that it came from; the evaluation is on the held-out
    clips, with the graphs of the bundle. `storage` and `fp8` are as in `release`.
    """
    model = load_checkpoint(run)
    about, recipe = json.loads((run / BASE).read_text()), json.loads((run / RECIPE).read_text())
    with np.load(run / HELD_OUT) as kept:
        frames = kept["frames"]
        texts, asked = json.loads(str(kept["texts"])), json.loads(str(kept["asked"]))
    samples = [answer for _, answer in asked]
    samples = (samples * 2)[: max(2, min(4, len(samples)))]
    files = {name: run / name for name in ("tokenizer.json", "y_tokenizer.json")}
    words = TextTokenizer(files["y_tokenizer.json"], model.config.text_length)
    source = {
        **about.get("source", {}),
        "weights": f"{about['from']}, fine-tuned on {recipe['recordings']}",
        "seed": recipe["seed"], "data": f"sha256:{recipe['sha256']}", "code": __version__,
        "recipe": recipe,
    }  # fmt: skip
    manifest = {**{key: about[key] for key in KEPT}, "version": version, "source": source}
    clips = frames[np.arange(max(2, min(4, len(frames)))) % len(frames)]
    export_bundle(model, out, manifest, files, clips, words(samples), storages(storage))
    queries = [query for query, _ in texts[:QUANTISED_ON]]
    add_int8(out, frames[:QUANTISED_ON], queries)
    if fp8:
        add_fp8(out, frames[:QUANTISED_ON], queries)
    evaluation = {"recordings": judge(out, frames, texts, asked)}
    stored, _ = read_manifest(out)
    stored["evaluation"].update(evaluation)
    write_manifest(out, stored)
    return evaluation


def judge(
    bundle: Path, frames: np.ndarray, texts: list[list[str]], asked: list[list[str]]
) -> dict[str, Any]:
    """Recall at 1 on held-out clips, and how often the decoder says the very answer.

    `frames` uint8 `[N, T, S, S, 3]`, `texts` their (query, answer), `asked` all (query, answer).
    """
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", parts=PARTS)
    predicted = np.concatenate([
        model.predict(model.encode(clip[None]), [query])[:, 0]
        for clip, (query, _) in zip(frames, texts, strict=True)
    ])  # fmt: skip
    written = model.embed_text([answer for _, answer in asked])
    said = model.decode_all(predicted)
    model.close()
    found = by_query(
        predicted, [query for query, _ in texts], [meaning(answer) for _, answer in texts],
        written, [(query, meaning(answer)) for query, answer in asked],
    )  # fmt: skip
    right = [meaning(a) == meaning(b) for a, (_, b) in zip(said, texts, strict=True)]
    return {
        "clips": len(frames), "answers": len(asked),
        **{name: round(value, 3) for name, value in found.items()},
        "said_right": round(float(np.mean(right)), 3),
    }  # fmt: skip
