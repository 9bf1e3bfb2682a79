"""Prove the graphs of a preset at full width: random weights, exported and compared with torch.

    python -m vljepa_ros.model.export.full_width FOLDER [PRESET]

Invariant: at most one network is in memory; its graph is deleted once it was measured. Prints a
table in Markdown; exit code 1 and the reason where a graph differs from torch.
"""

from __future__ import annotations

import argparse
import gc
import platform
import resource
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from torch import Tensor, nn

from ..config import PRESETS, VLJepaConfig
from ..networks import Predictor, XEncoder, YEncoder
from .bundle import Inputs, export_graph, predictor_inputs

NETWORKS: dict[str, type[nn.Module]] = {
    "x_encoder": XEncoder, "predictor": Predictor, "y_encoder": YEncoder,
}  # fmt: skip


def prove(folder: Path, preset: str) -> None:
    """Build, export, compare and delete each network of `preset`, and print the table's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    config = PRESETS[preset]()
    versions = {"torch": torch, "transformers": transformers, "onnx": onnx, "ORT": onnxruntime}
    print(f"{preset}, Python {platform.python_version()}, {platform.machine()}, "
          + ", ".join(f"{name} {module.__version__}" for name, module in versions.items())
          + "\n")  # fmt: skip
    print("| graph | parameters | file, MB | cosine | largest difference | s | peak memory, GB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in NETWORKS:
        torch.manual_seed(0)
        print(_row(name, config, folder), flush=True)
        gc.collect()


def _row(name: str, config: VLJepaConfig, folder: Path) -> str:
    started = time.monotonic()
    network = NETWORKS[name](config).eval().requires_grad_(False)
    traced, compared = _inputs(name, config)
    spec, figures = export_graph(name, network, traced, folder, compared)
    files = [spec.path, spec.path.with_suffix(".data")]
    size = sum(file.stat().st_size for file in files if file.exists())
    for file in files:
        file.unlink(missing_ok=True)
    parameters = sum(value.numel() for value in network.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"| {name} | {parameters:,} | {size / 1e6:,.0f} | {figures['cosine']:.6f} | "
        f"{figures['largest_difference']:.2e} | {time.monotonic() - started:.0f} | {peak:.1f} |"
    )


def _inputs(name: str, config: VLJepaConfig) -> tuple[Inputs, Inputs]:
    """Inputs to trace a network with, and the fewer that it is compared on."""
    vision = config.x_encoder_config
    if name == "x_encoder":
        shape = (2, vision.frames_per_clip, vision.crop_size, vision.crop_size, 3)
        clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        inputs = {"frames": torch.from_numpy(clips)}
        return inputs, {"frames": inputs["frames"][:1]}
    if name == "predictor":
        inputs = predictor_inputs(config, torch.randn(2, config.visual_tokens, vision.hidden_size))
        return inputs, {"visual_tokens": inputs["visual_tokens"][:1], **_first(inputs, 2)}
    length = config.text_length
    ids = torch.randint(3, config.y_encoder_config.vocab_size, (2, length))
    inputs = {
        "ids": ids,
        "mask": (torch.arange(length)[None] < torch.tensor([[7], [length]])).long(),
    }
    return inputs, inputs


def _first(inputs: Inputs, count: int) -> dict[str, Tensor]:
    return {name: inputs[name][:count] for name in ("query_ids", "query_mask")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("preset", nargs="?", choices=sorted(PRESETS), default="open-vljepa")
    given = parser.parse_args()
    prove(given.folder, given.preset)
