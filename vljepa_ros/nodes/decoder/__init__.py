"""The decoder node: changes in, words out."""

from .node import QUEUE, DecoderNode

__all__ = ["QUEUE", "DecoderNode"]
