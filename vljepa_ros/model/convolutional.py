"""The blocks that small convolutional networks for pictures are made of.

Invariant: what pads, pads as TensorFlow's "SAME" does, which the public weights were trained with.
Batch normalisation is not here: it is folded into the weights. States are `[B, channels, H, W]`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Convolution(nn.Module):
    """A convolution with TensorFlow's padding "SAME", which is uneven where it strides."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1,
                 active: bool = True):  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, groups=groups)
        before = (kernel - stride) // 2 if stride > 1 else kernel // 2
        after = kernel - stride - before if stride > 1 else kernel // 2
        self.pad = nn.ZeroPad2d((before, after, before, after)) if kernel > 1 else nn.Identity()
        self.active = active

    def forward(self, states: Tensor) -> Tensor:
        states = self.conv(self.pad(states))
        return F.relu6(states) if self.active else states


class Block(nn.Module):
    """An inverted bottleneck: widen, convolve each channel by itself, narrow; add where it can."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = channels * expansion
        self.expand = Convolution(channels, inner, 1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.project = Convolution(inner, out, 1, active=False)
        self.added = stride == 1 and channels == out

    def forward(self, states: Tensor) -> Tensor:
        inner = states if self.expand is None else self.expand(states)
        out = self.project(self.depthwise(inner))
        return states + out if self.added else out
