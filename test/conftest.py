"""Makes the helpers of this folder, and a source tree that is not installed, importable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parent
sys.path.insert(0, str(TEST))
if importlib.util.find_spec("vljepa_ros") is None:
    sys.path.insert(0, str(TEST.parent))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny bundle; read it, do not alter it."""
    from bundles import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
