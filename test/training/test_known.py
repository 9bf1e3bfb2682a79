"""What the simulated table looks like is fitted to bundles by a command, as by the release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle
from typer.testing import CliRunner

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.inference.familiarity import load_familiarity, pooled
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.episode import SPLITS
from vljepa_ros.tabletop.sim.episode import simulate
from vljepa_ros.training import calibrate

pytestmark = pytest.mark.timeout(600)  # it simulates


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes to fit to, one stream to hold out, and one that bundles are judged on."""
    root = tmp_path_factory.mktemp("data")
    for split, number, seconds in (
        ("train", 0, 4.0), ("train", 1, 4.0), ("stream", 0, 14.0), ("stream", 100, 1.0),
    ):  # fmt: skip
        seed = SPLITS[split] + number
        store.save_episode(root / split / f"{seed:08d}.npz", simulate(seed, seconds))
    return root


def test_the_command_fits_a_bundle_to_its_world_and_not_to_what_judges_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, loaded = make_bundle(tmp_path / "tiny"), list[str]()
    load = store.load_episode

    def noted(path: Path) -> store.Episode:
        loaded.append(f"{path.parent.name}/{path.stem}")
        return load(path)

    monkeypatch.setattr(store, "load_episode", noted)
    monkeypatch.setattr(calibrate, "FITTED", 64)
    command = ["bundle", "familiarity", str(bundle), "--data", str(data)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert load_bundle(bundle).model_id in result.output
    assert {"train/00000000", "train/00000001", "stream/30000000"} == set(loaded)
    assert verify_bundle(bundle) == []

    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", threads=1, parts=("x_encoder",))
    known = load_familiarity(model.bundle)
    assert known is not None
    white = np.full((1, 4, 32, 32, 3), 255, np.uint8)
    assert known.of(pooled(model, white))[0] < 0.5
    model.close()
