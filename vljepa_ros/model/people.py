"""Whether somebody is in the picture: the heatmaps of a public network for poses, as one score.

Invariant: nothing is learnt here. The network is MoveNet MultiPose Lightning (Google, 2021;
Apache-2.0): a MobileNetV2 with a feature pyramid and CenterNet heads (Zhou et al. 2019), of which
the heatmap of people's centres and those of their 17 keypoints are kept. It is given the weights of
the public file, batch normalisation already folded. Shapes: B pictures, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolutional import Block, Convolution

# (channels, stride) of the blocks of MobileNetV2, 1.5 times as wide as the paper's.
BLOCKS = ((24, 1), (40, 2), (40, 1), (48, 2), (48, 1), (48, 1), (96, 2), (96, 1), (96, 1), (96, 1),
          (144, 1), (144, 1), (144, 1), (240, 2), (240, 1), (240, 1), (480, 1))  # fmt: skip
STEM, EXPANSION, TOP = 48, 6, 1280
LATERALS = {9: 64, 5: 32, 2: 24}  # channels of the pyramid's levels, by the block that they take
HEAD = 96  # channels within a head
KEYPOINTS, SEEN = 17, 3  # keypoints there are, and the surest ones that count
SIDE = 160  # pixels of the picture that is looked at; a multiple of 32
EVIDENCE, SLOPE = 1.1, 10.0  # evidence that is a score of 0.5, and how steep the score is there
NETWORK = "StatefulPartitionedCall/center_net_mobile_net_v2fpn_feature_extractor/model_1"
HEADS = {
    "centres": ("StatefulPartitionedCall/center_0", "separable_conv2d_3", "conv2d_4"),
    "keypoints": ("StatefulPartitionedCall/kpt_heatmap_0", "separable_conv2d_6", "conv2d_7"),
}


class Separable(nn.Module):
    """A convolution of each channel by itself, then one across the channels, and ReLU."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out, 1)

    def forward(self, states: Tensor) -> Tensor:
        return F.relu(self.pointwise(self.depthwise(states)))


class PersonScore(nn.Module):
    """How surely somebody is in each picture: uint8 `[B, S, S, 3]` RGB to float32 `[B]`, 0 to 1.

    The evidence is the highest point of the centres' heatmap and the mean of the `SEEN` highest of
    the keypoints' heatmaps: a body that the picture cuts has no centre, a far one no sure keypoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, stride=2)
        blocks, channels = [], STEM
        for number, (out, stride) in enumerate(BLOCKS):
            blocks.append(Block(channels, out, 3, stride, EXPANSION if number else 1))
            channels = out
        self.blocks = nn.ModuleList(blocks)
        self.top = Convolution(channels, TOP, 1)
        widths = list(LATERALS.values())
        self.first = nn.Conv2d(TOP, widths[0], 1)
        self.laterals = nn.ModuleList(
            nn.Conv2d(BLOCKS[block][0], width, 1) for block, width in LATERALS.items()
        )
        self.merged = nn.ModuleList(
            Separable(width, out)
            for width, out in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(Separable(widths[-1], HEAD), nn.Conv2d(HEAD, maps, 1))
                for name, maps in (("centres", 1), ("keypoints", KEYPOINTS))
            }
        )

    def forward(self, pictures: Tensor) -> Tensor:
        centres, keypoints = (peaks.amax((2, 3)) for peaks in self.heatmaps(pictures))
        seen = keypoints.topk(SEEN, dim=1).values.mean(1)
        return torch.sigmoid(SLOPE * (centres[:, 0] + seen - EVIDENCE))

    def heatmaps(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Where people's centres are, `[B, 1, SIDE/4, SIDE/4]`, and keypoints `[B, 17, ...]`."""
        pixels = pictures.permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
        states = self.stem(pixels / 127.5 - 1)
        levels = []
        for number, block in enumerate(self.blocks):
            states = block(states)
            if number in LATERALS:
                levels.append(states)
        states = self.first(self.top(states))
        for lateral, merged in zip(self.laterals, self.merged, strict=True):
            finer = F.interpolate(states, scale_factor=2.0, mode="bilinear", align_corners=False)
            states = merged(finer + lateral(levels.pop()))
        return self.heads["centres"](states).sigmoid(), self.heads["keypoints"](states).sigmoid()

    def sources(self) -> Iterator[tuple[str, str]]:
        """Each weight's name here, and its name in the public file."""
        kernel = "separable_conv2d/ReadVariableOp"

        def folded(here: str, there: str, kind: str = "Conv2D") -> Iterator[tuple[str, str]]:
            yield f"{here}.weight", f"{NETWORK}/{there}/{kind}_weights"
            yield f"{here}.bias", f"{NETWORK}/{there}/{kind}_bn_offset"

        def plain(
            here: str, there: str, kind: str = "Conv2D/ReadVariableOp"
        ) -> Iterator[tuple[str, str]]:
            yield f"{here}.weight", f"{there}/{kind}"
            yield f"{here}.bias", f"{there}/BiasAdd/ReadVariableOp"

        yield from folded("stem.conv", "model/Conv1")
        for number in range(len(BLOCKS)):
            here = f"blocks.{number}"
            there = f"model/block_{number}" if number else "model/expanded_conv"
            if number:
                yield from folded(f"{here}.expand.conv", f"{there}_expand")
            yield from folded(f"{here}.depthwise.conv", f"{there}_depthwise", "depthwise")
            yield from folded(f"{here}.project.conv", f"{there}_project")
        yield from folded("top.conv", "model/Conv_1")
        yield from plain("first", f"{NETWORK}/conv2d")
        for number in range(len(LATERALS)):
            yield from plain(f"laterals.{number}", f"{NETWORK}/conv2d_{number + 1}")
            there = "separable_conv2d" + f"_{number}" * (number > 0)
            yield f"merged.{number}.depthwise.weight", f"{NETWORK}/{there}/{kernel}"
            yield from folded(f"merged.{number}.pointwise", there, "separable_conv2d")
        for name, (there, separable, last) in HEADS.items():
            yield f"heads.{name}.0.depthwise.weight", f"{there}/{separable}/{kernel}"
            yield from plain(f"heads.{name}.0.pointwise", f"{there}/{separable}", f"{kernel}_1")
            yield from plain(f"heads.{name}.1", f"{there}/{last}")
