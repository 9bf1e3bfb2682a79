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
from vljepa_ros.bundle.manifest import MANIFEST
from vljepa_ros.bundle.spec import Bundle, load_bundle
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
    bundle: Path | None = None  # the folder of the bundle, where it is one


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
    return Base(model, bundle.query.tokenizer, bundle.y_encoder.tokenizer, about, bundle.path)


def start_of(run: Path) -> Bundle:
    """The bundle that the training in `run` started from, for what is taken over to the byte.

    VLJepaError where it has gone or changed since.
    """
    about = json.loads((run / BASE).read_text())
    folder = Path(about["bundle"])
    if not (folder / MANIFEST).is_file():
        raise VLJepaError(
            f"{folder} has gone, the bundle {about['from']} that the training started from; bring "
            "it back, then export again."
        )
    bundle = load_bundle(folder)
    if bundle.model_id != about["from"]:
        raise VLJepaError(
            f"{folder} is {bundle.model_id} now, and the training started from {about['from']}; "
            "train again."
        )
    return bundle


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


def rearranged(model: VLJepa, chunk: int | None, layers: int | None) -> VLJepa:
    """A model with the same weights that encodes `chunk` frames at a time, in eval mode.

    What its X-encoder no longer looks at together, its predictor must: that gets as many `layers`,
    the new ones before its own, where they change nothing until they are trained further, and a
    vector for each tubelet's time (0). So it is as good as `model` where the chunk is the clip, and
    worse at first where it is less. None: as `model` has it. VLJepaError where that cannot be.
    """
    vision, own = model.config.x_encoder_config, model.config.predictor_config.num_hidden_layers
    if chunk is None and layers is None:
        return model
    if chunk is not None and vision.model_type != "vjepa2":
        raise VLJepaError(
            f"a {vision.model_type} takes its frames one by one; leave the chunk out."
        )
    if chunk is not None and (vision.frames_per_clip % chunk or chunk % vision.tubelet_size):
        raise VLJepaError(
            f"clips of {vision.frames_per_clip} frames cannot be encoded {chunk} at a time: give a "
            f"divisor that is a multiple of {vision.tubelet_size}."
        )
    added = (layers or own) - own
    if added < 0:
        raise VLJepaError(f"the predictor has {own} layers, and none can be taken away.")
    config = copy.deepcopy(model.config)
    config.x_encoder_chunk = chunk or config.x_encoder_chunk
    config.predictor_config.num_hidden_layers = own + added
    other = VLJepa(config)
    state = other.state_dict()
    state |= {_deeper(name, added): value for name, value in model.state_dict().items()}
    for layer in range(added):
        for product in ("self_attn.o_proj", "mlp.down_proj"):
            state[f"predictor.layers.{layer}.{product}.weight"].zero_()
    other.load_state_dict(state)
    return other.eval()


def _deeper(name: str, added: int) -> str:
    """The name of a weight once so many layers stand before the predictor's own."""
    parts = name.split(".")
    if parts[:2] == ["predictor", "layers"]:
        parts[2] = str(int(parts[2]) + added)
    return ".".join(parts)


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
