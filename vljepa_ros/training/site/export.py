"""From a site's training to a bundle: the graphs of the one it came from, but for the predictor.

Invariant: X-encoder and Y-encoder are copied to the byte, so what they cost on the robot and what
engines were built of them stay.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from vljepa_ros import __version__
from vljepa_ros.bundle.manifest import write_manifest
from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.model.export.bundle import export_section

from ..base import RECIPE, start_of
from .learn import SITE, load_site

DROPPED = ("query", "decoder", "evaluation", "familiarity", "calibration")  # of the old predictor
COPIED = ("x_encoder", "y_encoder")


def export_site(run: Path, out: Path, version: str, storage: str = "fp16") -> dict[str, Any]:
    """Export the training in `run` as the bundle `out`; returns its evaluation.

    Raises VLJepaError where the training is not finished, or the bundle that it came from has gone
    or changed.
    """
    predictor = load_site(run)
    told, recipe = (json.loads((run / name).read_text()) for name in (SITE, RECIPE))
    base = start_of(run)
    out.mkdir(parents=True, exist_ok=True)
    of_a_chunk = base.graphs["x_encoder"].outputs["visual_tokens"].shape[1]
    tokens = torch.randn(2, base.clip.chunks * int(of_a_chunk), predictor.sizes.tokens)
    seen = {"visual_tokens": predictor.mean + tokens}
    graph, earned = export_section("predictor", predictor, seen, out, {}, storage)
    manifest = {key: value for key, value in base.manifest.items() if key not in DROPPED}
    manifest["graphs"] = {**{part: base.manifest["graphs"][part] for part in COPIED},
                          "predictor": graph}  # fmt: skip
    phrases = told["phrases"]
    (out / phrases["file"]).write_text("\n".join(told["answers"]) + "\n", encoding="utf-8")
    kept = _copy(base, out)
    manifest["files"] = dict.fromkeys([*kept, phrases["file"]], "")
    manifest |= {
        "version": version,
        "thresholds": {**base.manifest["thresholds"], **told["thresholds"]},
        "change": told["change"],
        "phrases": phrases,
        "source": {
            **base.manifest.get("source", {}),
            "weights": f"{base.model_id}, with a predictor of {recipe['recordings']}",
            "seed": recipe["seed"], "data": f"sha256:{recipe['sha256']}", "code": __version__,
            "recipe": recipe,
        },
        "evaluation": {
            "onnx_against_torch": {"predictor": earned},
            "recordings": {**told["judged"], "changes_f1": told["changes_f1"]},
        },
    }  # fmt: skip
    write_manifest(out, manifest)
    return {"recordings": manifest["evaluation"]["recordings"]}


def _copy(base: Bundle, out: Path) -> list[str]:
    """Copy the graphs that stay, with what they need; the names of those that are no graphs."""
    graphs = base.manifest["graphs"]
    theirs = [graphs[part] for part in COPIED]
    for graph in theirs:
        for one in (graph, *graph.get("variants", {}).values()):
            shutil.copyfile(base.path / one["file"], out / one["file"])
    gone = {graph["file"] for name, graph in graphs.items() if name not in COPIED}
    left = {base.manifest.get(section, {}).get("file") for section in ("phrases", "familiarity")}
    kept = [
        name for name in base.manifest.get("files", {})
        if name not in left and not any(name.startswith(Path(file).stem + ".") for file in gone)
    ]  # fmt: skip
    for name in kept:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.path / name, out / name)
    return kept
