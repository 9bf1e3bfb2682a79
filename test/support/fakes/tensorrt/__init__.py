"""A stand-in for TensorRT; see ../README.md."""

import os

from faketrt import library

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "10.3.0")
globals().update(library("tensorrt", __version__))
