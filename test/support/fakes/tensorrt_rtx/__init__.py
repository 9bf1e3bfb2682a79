"""A stand-in for TensorRT for RTX; see ../README.md."""

import os

from faketrt import library

__version__ = os.environ.get("FAKE_TENSORRT_RTX_VERSION", "1.7.1")
globals().update(library("tensorrt_rtx", __version__))
