"""What is in effect of the settings, and from where it came."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, with_phrases

from vljepa_ros.bundle.spec import Bundle, FamiliaritySpec, load_bundle
from vljepa_ros.perception.gate import FACTOR, MOST, NoveltyGate
from vljepa_ros.perception.settings import Settings

OWN = {
    "rate": 4.0, "gate_threshold": 3.0, "change_threshold": 0.5, "candidate": 3.0,
    "min_segment": 4.0, "hysteresis": 0.7, "watch_threshold": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = make_bundle(tmp_path_factory.mktemp("settings") / "tiny")
    return load_bundle(with_phrases(folder, ["a cube"], cosine=0.2, margin=0.01))


def found(settings: Settings, bundle: Bundle) -> dict[str, tuple[float, str]]:
    return {one.name: (one.value, one.origin) for one in settings.effective(bundle)}


def test_what_nobody_sets_is_the_bundles(bundle: Bundle) -> None:
    phrases = {"phrases.cosine": (0.2, "bundle"), "phrases.margin": (0.01, "bundle")}
    wanted = {name: (value, "bundle") for name, value in OWN.items()}
    assert found(Settings(), bundle) == wanted | phrases
    assert found(Settings(), replace(bundle, phrases=None)) == wanted


def test_what_a_parameter_sets_is_so_called_even_where_it_is_0(bundle: Bundle) -> None:
    given = {"rate": 2.0, "gate_threshold": 0.0, "change_threshold": 0.1, "candidate": 2,
             "min_segment": 1, "hysteresis": 0.5}  # fmt: skip
    values = found(Settings(**given, rates={"front": 8.0}), bundle)
    for name, value in given.items():
        assert values[name] == (value, "parameter")
    assert values["front.rate"] == (8.0, "parameter")
    assert values["watch_threshold"] == (0.5, "bundle")


def test_what_was_calibrated_by_footage_is_told_apart_from_what_was_kept(bundle: Bundle) -> None:
    """As `vljepa calibrate` leaves it: what was before, and the change threshold kept."""
    before = {"gate": 1.5, "change": bundle.thresholds.change, "watch": 0.6}
    known = replace(bundle, familiarity=FamiliaritySpec(Path("familiarity.npz"), 0.4))
    values = found(Settings(), replace(known, calibration={"before": before}))
    assert values["gate_threshold"] == (3.0, "calibration")
    assert values["watch_threshold"] == (0.5, "calibration")
    assert values["change_threshold"] == (0.5, "bundle")
    assert values["familiarity_threshold"] == (0.4, "calibration")
    assert found(Settings(), known)["familiarity_threshold"] == (0.4, "bundle")
    assert found(Settings(change_threshold=1.0), known)["change_threshold"] == (1.0, "parameter")


def test_the_gate_says_from_where_on_the_median_block_is_new() -> None:
    gate = NoveltyGate(1.5, 10**10, learns=True)
    assert gate.median_threshold == 1.5
    gate.noise.level = np.full((12, 12), 0.5, np.float32)
    assert gate.median_threshold == pytest.approx(FACTOR * 0.5)
    gate.noise.level[:] = 200
    assert gate.median_threshold == MOST
    gate.learns = False
    assert gate.median_threshold == 1.5
