"""From a finished training to a bundle: exported, quantised, calibrated, judged on a stream.

Invariant: a released bundle's manifest carries the thresholds and the figures that were measured
with this very bundle.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vljepa_ros import __version__
from vljepa_ros.bundle.manifest import MANIFEST, write_manifest
from vljepa_ros.bundle.spec import PARTS, load_bundle
from vljepa_ros.evaluation.tasks.agents import judge_agents
from vljepa_ros.evaluation.tasks.shipped import judge_stream
from vljepa_ros.inference.familiarity import add_familiarity
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.export.bundle import export_bundle
from vljepa_ros.model.export.quantise import CPU, add_fp8, add_int8
from vljepa_ros.perception.settings import Settings
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.clips import ClipDataset
from vljepa_ros.tabletop.episode import DATA_VERSION

from . import train
from .base import load_checkpoint
from .calibrate import calibrate, calibrate_familiarity, calibrate_watch
from .texts import sentence_encoder_folder

log = logging.getLogger(__name__)
QUANTISED_ON = 128  # clips
READ = "captions, questions and answers of the simulated table, in its own and in other words"
GATE = 1.5  # grey levels; noise of a quiet camera stays below 1 in the mean of a block
SENTENCES = ("the gripper picks up the red cube", "no", "a hand passes over the table", "a cup")


def release(
    run: Path, data: Path, out: Path, version: str, video: Path | None, storage: str = "fp16",
    fp8: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Export the training in `run` as the bundle `out` and return its evaluation.

    `data` holds the episodes (splits train and stream); `video` is a held-out stream with its
    ground truth in a JSON file and questions in a JSONL file of the same name, or None. `vljepa
    evaluate` measures the rest. `storage`: how weights are kept, fp16, bf16 or fp32; `fp8`: with
    variants for GPUs that have it.
    """
    model = load_checkpoint(run)
    for split in ("train", "stream"):
        store.needed(data, split)
    sample = ClipDataset(data, train.clip_shape(model.config), seed=1)
    rng = np.random.default_rng(1)
    drawn = [sample.draw(rng) for _ in range(QUANTISED_ON)]
    clips = np.stack([one["frames"] for one in drawn])
    y_tokenizer = sentence_encoder_folder() / "tokenizer.json"
    texts = TextTokenizer(y_tokenizer, model.config.text_length)(SENTENCES)
    recipe = json.loads((run / "recipe.json").read_text())
    export_bundle(
        model, out, _manifest(version, recipe),
        {"tokenizer.json": run / "tokenizer.json", "y_tokenizer.json": y_tokenizer},
        clips[:4], texts, storages(storage),
    )  # fmt: skip
    asked = [str(rng.choice(one["queries"])) for one in drawn]
    log.info("int8, least cosine of an embedding: %s", add_int8(out, clips, asked))
    if fp8:
        log.info("fp8, least cosine of an embedding: %s", add_fp8(out, clips, asked))
    bundle = Runtime(load_bundle(out), CPU, parts=PARTS)
    found = calibrate(bundle, store.needed(data, "stream"))
    watches = calibrate_watch(bundle, store.needed(data, "stream"))
    log.info("calibrated: %s, watches: %s", found, watches)
    add_familiarity(out, calibrate_familiarity(bundle, data))
    _amend(out, found, watches, {"calibration": {**_rounded(found), "watch": watches}})
    evaluation = judged(out, video)
    _amend(out, found, watches, evaluation)
    return evaluation


def judged(out: Path, video: Path | None) -> dict[str, Any]:
    """What the bundle `out` earns on a stream, as `release` is given it."""
    if video is None:
        return {}
    bundle = Runtime(load_bundle(out), CPU, parts=PARTS)
    found = judge_stream(bundle, video, video.with_suffix(".json"), Settings())
    for said in found.pop("spoken"):
        log.info("%(at)6.2f s  said: %(text)s  true: %(truth)s", said)
    return {"shipped_stream": {**found, **judge_agents(bundle, video)}}


def storages(storage: str) -> dict[str, str]:
    """How each graph is kept: the Y-encoder, the largest by far, as int8 where the rest is fp16.

    Of tabletop's that costs a cosine of 0.0005 and saves 11 MB.
    """
    texts = "int8" if storage == "fp16" else storage
    return {**dict.fromkeys(PARTS, storage), "y_encoder": texts}


def read(recipe: dict[str, Any] | None) -> str:
    """What texts the Y-encoder of a training has read, beside those of its sentence encoder."""
    texts = [READ]
    while recipe:
        texts += [recipe["read"]] if "read" in recipe else []
        recipe = recipe.get("before")
    return "; ".join(texts)


def _manifest(version: str, recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "tabletop",
        "version": version,
        "temperature": 0.07,
        "thresholds": {"gate": GATE, "change": 0.5, "watch": 0.5},
        "change": {"candidate": 3, "min_segment": 2, "hysteresis": 0.8},
        "source": {
            "weights": "trained by `vljepa train` on the simulated table; the Y-encoder is "
            "all-MiniLM-L6-v2 (Apache-2.0), tuned on wordings of this world, with a head of ours",
            "licence": "Apache-2.0",
            "seed": recipe["seed"],
            "data": f"tabletop-{DATA_VERSION}",
            "code": __version__,
            "read": read(recipe),
            "recipe": recipe,
        },
    }


def _amend(
    out: Path, found: dict[str, Any], watches: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    """Write the calibrated thresholds and more of the evaluation into the manifest."""
    manifest = yaml.safe_load((out / MANIFEST).read_text())
    manifest["thresholds"]["change"] = round(float(found["threshold"]), 4)
    manifest["thresholds"]["watch"] = watches["threshold"]
    manifest["change"] = {
        "candidate": int(found["candidate"]), "min_segment": int(found["min_segment"]),
        "hysteresis": float(found["hysteresis"]),
    }  # fmt: skip
    manifest["evaluation"].update(evaluation)
    write_manifest(out, manifest)


def _rounded(figures: dict[str, Any]) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in figures.items()}
