"""From a training of words to a bundle: the one it came from, but for the Y-encoder.

Invariant: all other graphs are copied to the byte, so what they cost on the robot, what engines
were built of them, and when the robot speaks stay.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from vljepa_ros import __version__
from vljepa_ros.bundle.manifest import write_manifest
from vljepa_ros.bundle.spec import PARTS, Bundle, load_bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.text import TextTokenizer
from vljepa_ros.model.export.bundle import export_section
from vljepa_ros.model.export.quantise import CPU
from vljepa_ros.tabletop import store

from ..base import BASE, RECIPE, load_checkpoint, start_of
from ..calibrate import calibrate_watch
from ..release import SENTENCES, judged, read, storages
from .learn import STAGE

PART = "y_encoder"
STAYS = ("onnx_against_torch", "calibration")  # of the evaluation; the rest is to be made again


def is_words(run: Path) -> bool:
    """Whether `run` is the folder of a training of words that started from a bundle."""
    return (run / STAGE / BASE).is_file()


def export_words(
    run: Path, data: Path, out: Path, version: str, video: Path | None, storage: str = "fp16"
) -> dict[str, Any]:
    """Export the training in `run` as the bundle `out`; returns its evaluation.

    `data` holds the streams that the threshold of watches is found on; `video` and `storage` are as
    in `release`. Raises VLJepaError where the training is not finished, or the bundle that it came
    from is `out`, has gone or has changed.
    """
    model, base = load_checkpoint(run), start_of(run / STAGE)
    if out.resolve() == base.path.resolve():
        raise VLJepaError(f"{out} is the bundle that the training started from; give another.")
    streams = store.needed(data, "stream")
    shutil.copytree(base.path, out, ignore=shutil.ignore_patterns(f"{PART}.*"), dirs_exist_ok=True)
    texts = TextTokenizer(out / base.y_encoder.tokenizer.name, base.y_encoder.length)(SENTENCES)
    ids, mask = (torch.from_numpy(array) for array in texts)
    graph, earned = export_section(
        PART, model.y_encoder, {"ids": ids, "mask": mask}, out, {}, storages(storage)[PART]
    )
    manifest = _manifest(base, json.loads((run / RECIPE).read_text()), version)
    manifest["graphs"][PART] = graph
    data_file = out / f"{PART}.data"
    manifest["files"] |= {data_file.name: ""} if data_file.is_file() else {}
    evaluation = manifest["evaluation"]
    evaluation["onnx_against_torch"] = {**evaluation.get("onnx_against_torch", {}), PART: earned}
    write_manifest(out, manifest)
    watches = calibrate_watch(Runtime(load_bundle(out), CPU, parts=PARTS), streams)
    manifest["thresholds"]["watch"] = watches["threshold"]
    evaluation["calibration"] = {**evaluation.get("calibration", {}), "watch": watches}
    write_manifest(out, manifest)
    found = judged(out, video)
    evaluation.update(found)
    write_manifest(out, manifest)
    return {"watches": watches, **found}


def _manifest(base: Bundle, recipe: dict[str, Any], version: str) -> dict[str, Any]:
    """That of the bundle before, without what is no longer true of it."""
    manifest = copy.deepcopy(base.manifest)
    manifest["version"] = version
    manifest["files"].pop(f"{PART}.data", None)
    before = manifest["source"].get("weights", base.model_id)
    manifest["source"] |= {
        "weights": f"{before}; of {base.model_id} that one learnt more words",
        "code": __version__, "read": read(recipe), "recipe": recipe,
    }  # fmt: skip
    manifest["evaluation"] = {
        name: figures for name, figures in manifest.get("evaluation", {}).items() if name in STAYS
    }
    return manifest
