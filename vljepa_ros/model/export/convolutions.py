"""Scales for int8 convolutions, without a picture: batch normalisation says how far values spread.

Invariant: the scale of every tensor between convolutions follows from the graph and from the batch
normalisation that was folded into it, so two exports of the same weights are the same.

A channel after batch normalisation has the mean beta and the deviation gamma (Nagel et al. 2019,
data-free quantisation); what is added has the sum of both means and variances. Where ReLU6 cuts,
its own range is the scale. Activations have a zero point, which TensorRT does not take: these
variants are for CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

DEVIATIONS = 5.0  # that a channel's values are kept within
PIXELS = (-1.0, 1.0)  # normalised ones
LEVELS = 255

Spread = tuple[np.ndarray, np.ndarray]  # means and deviations of a convolution's channels
Spreads = Mapping[str, Spread]  # by the name of the convolution's weight


def activation_scales(graph: onnx.GraphProto, spreads: Spreads) -> dict[str, list[dict[str, Any]]]:
    """Scale and zero point of each tensor, as ONNX Runtime's quantiser wants to be told them.

    Only of what comes of convolutions whose spread is given.
    """
    clipped = {node.input[0] for node in graph.node if node.op_type == "Clip"}
    moments: dict[str, Spread] = {}  # means and variances
    scales = {}
    for node in graph.node:
        name = node.output[0]
        if node.op_type == "Conv" and node.input[1] in spreads:
            mean, deviation = spreads[node.input[1]]
            moments[name] = mean, deviation**2
            if node.input[0] not in moments and node.input[0] not in scales:
                scales[node.input[0]] = _scale(*PIXELS)
        elif node.op_type == "Add" and all(one in moments for one in node.input):
            (mean, variance), (other, others) = (moments[one] for one in node.input)
            moments[name] = mean + other, variance + others
        elif node.op_type == "Clip" and node.input[0] in moments:
            scales[name] = _scale(0.0, 6.0)
            continue
        else:
            continue
        if name not in clipped:
            mean, variance = moments[name]
            far = DEVIATIONS * np.sqrt(variance)
            scales[name] = _scale(float((mean - far).min()), float((mean + far).max()))
    return scales


def _scale(least: float, most: float) -> list[dict[str, Any]]:
    scale = np.float32((max(most, 0.0) - min(least, 0.0)) / LEVELS)
    zero = np.clip(np.round(-min(least, 0.0) / scale), 0, LEVELS)
    return [{"scale": np.asarray(scale), "zero_point": np.asarray(zero, np.uint8)}]
