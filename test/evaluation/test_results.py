"""docs/results.md says what docs/results.json holds, of the bundle that ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.evaluation import report, run
from vljepa_ros.evaluation.figures import targets

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((DOCS / run.JSON).read_text())


def test_the_page_is_made_from_the_json(results: dict[str, Any]) -> None:
    assert (DOCS / run.MARKDOWN).read_text() == report.markdown(results)
    assert (DOCS / report.STREAMS_PLOT).is_file()
    assert ("comparison" in results) == (DOCS / report.COMPARISON_PLOT).is_file()


def test_it_is_about_the_bundle_that_ships(results: dict[str, Any]) -> None:
    bundle = load_bundle(ROOT / "engines" / "tabletop")
    assert results["model"]["id"] == bundle.model_id
    kept = run.summary(results)
    assert {name: bundle.evaluation[name] for name in kept} == kept


def test_the_targets_are_judged_by_the_figures_beside_them(results: dict[str, Any]) -> None:
    judged = targets.judged(results)
    assert [t["target"] for t in judged] == [t["target"] for t in results["targets"]]
    for now, then in zip(judged, results["targets"], strict=True):
        assert now["reached"] == then["reached"]
