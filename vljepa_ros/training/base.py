"""What a training starts from: a bundle, or the folder of a finished training.

Invariant: `RUN/weights.safetensors` are the weights of the whole model and are there only once the
training in RUN is finished.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_model

from vljepa_ros.bundle.locate import find_bundle
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.model.config import CONFIG, VLJepaConfig
from vljepa_ros.model.networks import VLJepa
from vljepa_ros.model.restore import restore

from .texts import sentence_encoder_folder

WEIGHTS, RECIPE, BASE = "weights.safetensors", "recipe.json", "base.json"
KEPT = ("name", "temperature", "thresholds", "change", "source")  # of the manifest of the base
UNCALIBRATED: dict[str, Any] = {
    "name": "recordings",
    "temperature": 0.07,
    "thresholds": {"gate": 1.5, "change": 0.5, "watch": 0.5},
    "change": {"candidate": 3, "min_segment": 2, "hysteresis": 0.8},
    "source": {"licence": "Apache-2.0"},
}
"""Of a start that is no bundle: thresholds that nobody has measured yet."""


@dataclass(frozen=True)
class Base:
    """The model that is trained further, its tokenizers' files, what its bundle says of itself."""

    model: VLJepa
    tokenizer: Path
    y_tokenizer: Path
    about: dict[str, Any]


def load_base(source: str) -> Base:
    """The bundle, or the folder of a finished training, that `source` means.

    Raises VLJepaError for a training that is not finished, and BundleError.
    """
    run = Path(source).expanduser()
    if (run / WEIGHTS).is_file() or (run / RECIPE).is_file():
        model, own = load_checkpoint(run), run / "y_tokenizer.json"
        y_tokenizer = own if own.is_file() else sentence_encoder_folder() / "tokenizer.json"
        return Base(model, run / "tokenizer.json", y_tokenizer, {**_told(run), "from": run.name})
    bundle = load_bundle(find_bundle(source))
    about = {key: bundle.manifest[key] for key in KEPT if key in bundle.manifest}
    about["from"] = bundle.model_id
    model = restore(bundle.path)
    assert bundle.query is not None  # or `restore` would have refused
    return Base(model, bundle.query.tokenizer, bundle.y_encoder.tokenizer, about)


def resized(model: VLJepa, size: int | None) -> VLJepa:
    """A model with the same weights for clips of `size` pixels a side, in eval mode.

    Its patches are as large as before, so there are more or fewer of them: no weight depends on
    their number, since positions are rotary. It is worse than `model` until it is trained further.
    None, or the size that it has: `model` itself. VLJepaError where `size` is no multiple of the
    block of patches that `visual_merge` joins.
    """
    if size in (None, model.config.x_encoder_config.crop_size):
        return model
    config = copy.deepcopy(model.config)
    kind, own = config.x_encoder_config.model_type, config.x_encoder_config.crop_size
    if kind != "vjepa2":
        raise VLJepaError(f"the pictures of a {kind} stay {own} pixels a side; leave the size out.")
    block = config.x_encoder_config.patch_size * config.visual_merge
    if size < block or size % block:
        raise VLJepaError(f"clips cannot be {size} pixels a side: give a multiple of {block}.")
    config.x_encoder_config.crop_size = size
    other = VLJepa(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def load_checkpoint(folder: Path) -> VLJepa:
    """The model in the folder of a finished training; VLJepaError where it is not finished."""
    if not (folder / WEIGHTS).is_file():
        raise VLJepaError(
            f"{folder} holds no finished training: there is no {WEIGHTS}; "
            f"let `vljepa train {folder}` run to its end."
        )
    model = VLJepa(VLJepaConfig.from_json_file(str(folder / CONFIG)))
    load_model(model, str(folder / WEIGHTS))
    return model.eval()


def _told(run: Path) -> dict[str, Any]:
    """What the bundle that the training in `run` becomes will say of itself."""
    if (run / BASE).is_file():
        return json.loads((run / BASE).read_text())
    source = dict(UNCALIBRATED["source"])
    if (run / RECIPE).is_file():
        source["recipe"] = json.loads((run / RECIPE).read_text())
    return {**UNCALIBRATED, "source": source}
