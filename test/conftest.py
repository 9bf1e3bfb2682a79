"""What every test shares: import paths, a tiny bundle, deterministic property tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import hypothesis
import pytest

TEST = Path(__file__).resolve().parent
sys.path.insert(0, str(TEST))
if importlib.util.find_spec("vljepa_ros") is None:
    sys.path.insert(0, str(TEST.parent))

# The same examples on every machine, and no verdict by the clock of a busy one.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny bundle; read it, do not alter it."""
    from bundles import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
