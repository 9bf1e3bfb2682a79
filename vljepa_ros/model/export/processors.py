"""What a public model's folder says of how pictures are prepared for it.

Invariant: what comes back is what transformers' processor of that folder does; a folder without
one, or with one that a bundle cannot follow, is one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .public import PublicError, line

RESAMPLE = {2: "pil_bilinear", 3: "bicubic"}  # Pillow's numbers


def processor_of(folder: Path) -> dict[str, Any]:
    """What the folder says of how pictures are prepared; transformers 5 nests it in a processor."""
    for name, key in (("preprocessor_config.json", None), ("processor_config.json",
                                                           "image_processor")):  # fmt: skip
        if (folder / name).is_file():
            try:
                found = json.loads((folder / name).read_text("utf-8"))
                found = found if key is None else found[key]
            except (KeyError, TypeError, ValueError) as error:
                raise PublicError(
                    f"{folder / name} describes no image processor: {line(error)}"
                ) from error
            if isinstance(found, dict):
                return found
    raise PublicError(
        f"{folder} holds no processor (preprocessor_config.json), which says how pictures are "
        "prepared; fetch it from where the weights are."
    )


def section_of(folder: Path, processor: Mapping[str, Any], image_size: int) -> dict[str, str]:
    """The manifest's section of a processor whose pictures come out with `image_size` pixels."""
    size, crop = processor.get("size"), processor.get("crop_size")
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size
    if processor.get("do_center_crop") and shorter is not None:
        sides = {shorter, *(crop.values() if isinstance(crop, dict) else [crop])}
        section = {"resize": "shorter_side", "crop": "centre"}
    else:
        sides = {size.get("height"), size.get("width")} if isinstance(size, dict) else {size}
        section = {"resize": "squash"}
    if sides != {image_size}:
        raise PublicError(
            f"The processor in {folder} makes pictures of another size (size {size}, crop_size "
            f"{crop}) than its model takes, {image_size} pixels a side; both must be the model's."
        )
    resample = processor.get("resample", 3)
    if resample not in RESAMPLE:
        raise PublicError(
            f"The processor in {folder} resizes with Pillow's filter {resample}, and a bundle can "
            "with 2 (bilinear) and 3 (bicubic)."
        )
    return {**section, "resample": RESAMPLE[resample]}


def colours_of(folder: Path, processor: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """'image_mean' or 'image_std' of a processor: three numbers, of pixels of 0 to 1."""
    values = processor.get(key)
    if not isinstance(values, list) or len(values) != 3:
        raise PublicError(
            f"The processor in {folder} does not say '{key}' for three colours, but {values}; "
            "fetch it anew from where the weights are."
        )
    return tuple(float(value) for value in values)
