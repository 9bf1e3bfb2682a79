"""No engine is built without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from device import Device, installed

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.models import open_model


def test_a_build_says_how_far_it_is(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = Device()
    device.built = set()
    with installed(device):
        model = open_model(load_bundle(tiny_bundle, verify=False))
        said = capsys.readouterr()
        assert {e.backend for e in model.info} == {"device"}
        assert said.err.count("Building x_encoder: building") == 3  # at 0, 50 and 100 %
        assert "Building predictor: building, 100%." in said.err and not said.out
        open_model(load_bundle(tiny_bundle, verify=False))
        assert not capsys.readouterr().err  # nothing is left to build
