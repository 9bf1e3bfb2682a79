"""`vljepa evaluate` in small: a tiny bundle on drawn episodes, from measuring to the documents."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundles import make_bundle

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import VLJepaError
from vljepa_ros.evaluation import clips, report, run
from vljepa_ros.evaluation.figures import targets
from vljepa_ros.evaluation.tasks import streams
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.verify import verify_bundle
from vljepa_ros.tabletop import language, store
from vljepa_ros.tabletop.episode import FRAME_RATE, SPLITS, Episode
from vljepa_ros.tabletop.vocabulary import KINDS, OBJECT_KINDS, ON_TABLE

EXTENT = run.Extent(
    test=3, composition=2, streams=2, seconds=12.0, first_stream=100, habits=3
)  # fmt: skip


def episode(seed: int, seconds: float = 12.0) -> Episode:
    """Events of 1.5 s of random kinds on two objects, each with a picture of its own colour."""
    rng = np.random.default_rng(seed)
    count, events = round(seconds * FRAME_RATE), round(seconds / 1.5)
    kinds = rng.integers(len(KINDS), size=events)
    things = [int(rng.integers(2)) if KINDS[k] in OBJECT_KINDS else -1 for k in kinds]
    span = np.stack([np.arange(events), np.arange(1, events + 1)], axis=1) * 1.5
    stamps = np.arange(count) / FRAME_RATE
    current = np.minimum((stamps / 1.5).astype(int), events - 1)
    pictures = [
        np.full((48, 48, 3), (16 * kinds[i], 60 * things[i] + 60, 90), np.uint8) for i in current
    ]
    jpegs = [cv2.imencode(".jpg", picture)[1].ravel() for picture in pictures]
    pairs = np.array([[0, 0], [1, 2]]) if seed % 2 else np.array([[2, 3], [4, 5]])
    return Episode(
        {
            "jpeg": np.concatenate(jpegs),
            "offsets": np.cumsum([0, *(len(data) for data in jpegs)], dtype=np.int64),
            "stamps": stamps,
            "objects": pairs.astype(np.int16),
            "object_uv": np.tile(np.float32([[0.2, 0.3], [0.8, 0.7]]), (count, 1, 1)),
            "object_visible": np.ones((count, 2), bool),
            "object_state": np.full((count, 2), ON_TABLE, np.uint8),
            "event_kind": kinds.astype(np.int16),
            "event_object": np.array(things, np.int16),
            "event_span": span.astype(np.float32),
        },
        {"seed": seed},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split, start, count in (
        ("train", 0, 3), ("test", 0, 3), ("composition", 0, 2), ("stream", 100, 2),
    ):  # fmt: skip
        for seed in range(SPLITS[split] + start, SPLITS[split] + start + count):
            store.save_episode(root / split / f"{seed:08d}.npz", episode(seed))
    return root


@pytest.fixture(scope="module")
def results(tiny_bundle: Path, data: Path) -> dict[str, Any]:
    return run.evaluate(tiny_bundle, data, EXTENT)


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    kept = copy.deepcopy(results)
    del kept["streams"]["compute"]
    return kept


def test_all_but_run_times_is_the_same_every_time(
    results: dict[str, Any], tiny_bundle: Path, data: Path
) -> None:
    again = run.evaluate(tiny_bundle, data, EXTENT)
    assert report.rounded(without_times(again)) == report.rounded(without_times(results))


def test_it_says_what_was_judged(results: dict[str, Any], tiny_bundle: Path) -> None:
    assert results["model"]["id"] == load_bundle(tiny_bundle).model_id
    for split, count in (("test", 3), ("composition", 2)):
        assert results["splits"][split]["episodes"] == count
    assert results["streams"]["minutes"] == pytest.approx(2 * (12 - 0.25 - 0.75) / 60, abs=0.01)
    assert set(results["streams"]["curves"]) == {
        "uniform", "uniform_pooled", "cosine", "variance", "ward_offline", "detector",
    }  # fmt: skip


def test_the_perceiver_changes_where_the_detector_does(results: dict[str, Any]) -> None:
    """The point that is called "as calibrated" is what the robot would do."""
    found = results["streams"]
    decodes = found["detector"]["decodes_per_minute"]["value"] * found["minutes"]
    assert round(decodes) == found["perceiver_decodes"] > 0


def answers(model: Runtime, episode: Episode, rows: np.ndarray) -> np.ndarray:
    """Embeddings `[S, E]` of the default query, of clips whose newest frames are `rows` `[S]`."""
    return model.predict(clips.encode(model, episode, rows), [model.bundle.query.default])[:, 0]


def test_a_clip_is_named_after_the_middle_of_its_event(tiny_bundle: Path, data: Path) -> None:
    path = store.needed(data, "test")[0]
    model = Runtime(load_bundle(tiny_bundle), "onnxruntime-cpu", parts=run.PARTS)
    shown = store.load_episode(path)
    found = clips.see(model, [path])
    events, rows = clips.middles(model.bundle.clip.frames, shown)
    assert len(found) == len(events) == len(shown.events)
    for clip, event, row in zip(found, events, rows):
        assert store.current_event(shown, float(shown.stamps[row])) == event
        assert clip.name == clips.name_of(event, shown.object_names)
        assert clip.caption == language.describe(event, shown.object_names)
    embeddings = answers(model, shown, rows)
    np.testing.assert_allclose(embeddings, [clip.embedding for clip in found], atol=1e-5)


def test_a_stream_has_the_embeddings_of_its_clips(tiny_bundle: Path, data: Path) -> None:
    model = Runtime(load_bundle(tiny_bundle), "onnxruntime-cpu", parts=run.PARTS)
    shown = store.load_episode(store.needed(data, "stream")[0])
    perceived = streams.perceive(model, shown)
    rows = np.arange((model.bundle.clip.frames - 1) * store.STRIDE, len(shown), store.STRIDE)
    np.testing.assert_allclose(perceived.stamps, shown.stamps[rows])
    embeddings = answers(model, shown, rows)
    fresh = ~perceived.reused
    np.testing.assert_allclose(perceived.embeddings[fresh], embeddings[fresh], atol=1e-5)
    assert fresh.any() and not fresh.all()


def test_a_bundle_that_is_asked_nothing_is_not_asked(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "unasked", query=False)
    with pytest.raises(VLJepaError, match="is asked nothing, and this evaluation asks questions"):
        run.evaluate(folder, tmp_path, EXTENT)


def test_without_training_episodes_it_says_what_to_run(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(VLJepaError, match="vljepa data --split train"):
        run.evaluate(tiny_bundle, tmp_path, EXTENT)


# What is written


def test_the_documents_are_made_from_the_json_alone(
    results: dict[str, Any], tmp_path: Path
) -> None:
    written = run.write(results, tmp_path)
    assert {path.name for path in written} == {run.JSON, run.MARKDOWN, report.STREAMS_PLOT}
    kept = json.loads((tmp_path / run.JSON).read_text())
    text = (tmp_path / run.MARKDOWN).read_text()
    assert text == report.markdown(kept)
    assert report.rounded(kept) == kept
    assert results["model"]["id"] in text
    for target in results["targets"]:
        assert f"| {target['target']} | {target['wanted']} |" in text
    kept["splits"]["test"]["retrieval"]["bundle"]["text_to_video"]["r1"]["value"] = 0.98765
    assert "98.8 [" in report.markdown(kept)


def test_a_bundle_carries_its_evaluation(results: dict[str, Any], tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "tiny", evaluation={"calibration": {"f1": 0.5}})
    before, mine = load_bundle(folder), copy.deepcopy(results)
    name = run.record(folder, mine)
    after = load_bundle(folder)
    assert verify_bundle(folder) == []
    assert name == mine["model"]["id"] == after.model_id != before.model_id
    assert after.evaluation["calibration"] == {"f1": 0.5}
    assert after.evaluation["test"]["VQA"] == round(
        targets.measured(results["splits"]["test"])["VQA"], 3
    )
    assert after.thresholds == before.thresholds
    assert len(after.evaluation["targets"]) == len(results["targets"])
    assert run.record(folder, mine) == name  # the same figures, the same id


def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path) -> None:
    for content in ("{", "[]"):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(VLJepaError, match="not the JSON of a comparison"):
            run.read_comparison(tmp_path / "c.json")


# Targets


def test_a_target_is_reached_at_its_bound_and_not_beyond(results: dict[str, Any]) -> None:
    mine = copy.deepcopy(results)

    def state(part: str) -> bool:
        (found,) = [t for t in targets.judged(mine) if part in t["target"]]
        return bool(found["reached"])

    r1 = mine["splits"]["test"]["retrieval"]["bundle"]["text_to_video"]["r1"]
    for value, reached in ((0.40, True), (0.399, False)):
        r1["value"] = value
        assert state("R@1 over 500") is reached
    fewer = mine["streams"]["fewer_decodes"]
    for times, difference, reached in ((2.9, 0.0, True), (2.9, -0.01, False), (2.8, 0.1, False)):
        fewer["times_fewer"]["value"] = times
        fewer["cider_difference"]["value"] = difference
        assert state("fewer decodes than 1 Hz, CIDEr no lower") is reached
    mine["streams"]["detector"].pop("delay", None)
    assert not state("median delay")


def test_the_comparison_stands_in_the_documents(results: dict[str, Any]) -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    named = {"kind": figure, "object": figure}
    point = {"samples": 640, "cider": {**figure, "value": 1.234}, "said": named}
    learner = {
        "parameters": {"trainable": 2_000_000, "not_counted": {"y_decoder": 500_000}},
        "curve": [{**point, "classified": named}],
        "by_perplexity": {"clips": 12, **named},
    }
    comparison = {
        "protocol": {"samples": 640, "held_out_clips": 30},
        "chance": {"cider": figure, "said": named},
        "vl_jepa": learner,
        "token_model": {**learner, "curve": [point]},
        "milliseconds": {"vl_jepa_words": 7.5},
    }
    text = report.markdown({**results, "comparison": comparison})
    assert "## 6. Against token generation" in text
    assert "| 640 | 1.23 [0.40, 0.60] | 1.23 [0.40, 0.60] | 50.0 [40.0, 60.0] |" in text
    assert "2.00 M" in text and "y_decoder: 0.50 M more" in text
    assert "| vl jepa words | 7.50 |" in text
    assert "## 6." not in report.markdown(results)
