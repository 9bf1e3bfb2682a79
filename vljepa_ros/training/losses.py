"""The training losses.

Invariant: two texts with the same meaning are never each other's negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vljepa_ros.tabletop.vocabulary import STATE_FLAGS


def info_nce(
    predicted: Tensor,
    texts: Tensor,
    meanings: Tensor,
    temperature: Tensor,
    own: slice = slice(None),
) -> Tensor:
    """Bi-directional InfoNCE (paper, section 3.2) of one process's part of a batch, fp32.

    `predicted` `[B, D]` are the predictions of all processes and `texts` `[B + K, D]` their texts
    and K more that are only negatives; all have unit length. Text i belongs to prediction i.
    `meanings` `[B + K]` are the texts' ids: two with equal ids are not each other's negatives.
    The loss is the mean over the pairs of the slice `own`, those of this process.
    """
    batch = len(predicted)
    pairs = torch.arange(batch, device=predicted.device)[own]
    with torch.autocast(predicted.device.type, enabled=False):  # it would round cosines to bf16
        to_texts = predicted[pairs].float() @ texts.float().T / temperature
        to_predictions = texts[pairs].float() @ predicted.float().T / temperature
    same = meanings[pairs, None] == meanings[None]
    same[torch.arange(len(pairs)), pairs] = False
    to_texts = to_texts.masked_fill(same, float("-inf"))
    to_predictions = to_predictions.masked_fill(same[:, :batch], float("-inf"))
    return (F.cross_entropy(to_texts, pairs) + F.cross_entropy(to_predictions, pairs)) / 2


SHAPE_WEIGHS = 3.0  # of an object's properties, the one that is hardest to see


class StateHead(nn.Module):
    """Reads the simulation's state off each visual token, as a help for the X-encoder.

    A cell is one patch of one tubelet. The loss is a stand-in for V-JEPA 2's self-supervised
    pre-training on a million hours of video, which two cores cannot do: it teaches the X-encoder
    objects and motion before words are asked for. It is no part of the model that is exported.
    """

    def __init__(self, width: int, shapes: int, colours: int):
        super().__init__()
        self.sizes = {
            "objectness": 1, "shape": shapes, "colour": colours, "offset": 2, "motion": 2,
            "flags": STATE_FLAGS, "gripper": 1, "gripper_state": 3, "hand": 1,
        }  # fmt: skip
        self.linear = nn.Linear(width, sum(self.sizes.values()))

    def forward(self, visual_tokens: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Visual tokens `[B, N, C]` and state tensors `[B, N, …]` (see `clips.py`) to a loss."""
        parts = self.linear(visual_tokens).float().split(list(self.sizes.values()), dim=-1)
        said = dict(zip(self.sizes, parts, strict=True))
        loss = _presence(said["objectness"], state["objectness"])
        loss = loss + _presence(said["gripper"], state["gripper"])
        loss = loss + 0.5 * _presence(said["hand"], state["hand"])
        there = state["objectness"] > 0
        if there.any():
            shape = F.cross_entropy(said["shape"][there], state["shape"][there])
            loss = loss + SHAPE_WEIGHS * shape
            loss = loss + F.cross_entropy(said["colour"][there], state["colour"][there])
            loss = loss + 2 * F.smooth_l1_loss(said["offset"][there], state["offset"][there])
            loss = loss + 2 * F.smooth_l1_loss(said["motion"][there], state["motion"][there])
            flags = state["flags"][there]
            loss = loss + F.binary_cross_entropy_with_logits(said["flags"][there], flags)
        held = state["gripper"] > 0
        if held.any():
            loss = loss + 2 * F.smooth_l1_loss(
                said["gripper_state"][held], state["gripper_state"][held]
            )
        return loss


def _presence(said: Tensor, there: Tensor) -> Tensor:
    weight = torch.full((1,), 5.0, device=said.device)  # few cells hold anything
    return F.binary_cross_entropy_with_logits(said[..., 0], there, pos_weight=weight)
