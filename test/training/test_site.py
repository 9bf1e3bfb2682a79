"""A site's own words in small: from a tiny bundle of an image encoder to one that names events."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")

from bundles import make_bundle  # noqa: E402

from vljepa_ros.bundle.spec import load_bundle  # noqa: E402
from vljepa_ros.errors import VLJepaError  # noqa: E402
from vljepa_ros.inference.runtime import Runtime  # noqa: E402
from vljepa_ros.inference.verify import verify_bundle  # noqa: E402
from vljepa_ros.perception.perceiver import Perceiver  # noqa: E402
from vljepa_ros.perception.settings import Settings  # noqa: E402
from vljepa_ros.recordings import offline  # noqa: E402
from vljepa_ros.recordings.video import VideoSource  # noqa: E402
from vljepa_ros.training.lines import RecordingsError  # noqa: E402
from vljepa_ros.training.site import learn as site  # noqa: E402
from vljepa_ros.training.site.export import export_site  # noqa: E402
from vljepa_ros.training.site.learn import SiteRecipe, is_of_images, learn  # noqa: E402

HZ = 8
SAYINGS = {"dark": "the lamp is dark", "on": "the lamp turns red", "off": "the lamp goes out"}
pytestmark = pytest.mark.timeout(600)  # a busy machine learns for minutes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("base") / "tiny", chunk=1, query=False)


def picture(kind: str, t: float, shade: int) -> np.ndarray:
    """The lamp `t` (0..1) into an event, 32 x 32 BGR."""
    light = {"dark": 0.0, "on": t, "off": 1 - t}[kind]
    view = np.full((32, 32, 3), shade, np.uint8)
    view[4:28, 4:28] = (30, 30, 30 + 220 * light)
    return view


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of a lamp, in which each thing happens twice, 2 s long."""
    folder = tmp_path_factory.mktemp("lamp")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        name = f"{number}.avi"
        video = cv2.VideoWriter(
            str(folder / name), cv2.VideoWriter_fourcc(*"MJPG"), HZ, (32, 32)
        )  # fmt: skip
        for place, kind in enumerate(rng.permutation([*SAYINGS, *SAYINGS])):
            for k in range(2 * HZ):
                view = picture(kind, k / (2 * HZ), 60 + 4 * number)
                video.write(cv2.add(view, rng.integers(0, 5, view.shape, np.uint8)))
            rows.append({"video": name, "start": 2 * place, "end": 2 * place + 2,
                         "answer": SAYINGS[kind]})  # fmt: skip
        video.release()
    file = folder / "lines.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def run(bundle: Path, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    said: list[str] = []
    assert learn(lines, str(bundle), out, SiteRecipe(steps=150), said.append) == out
    assert any("held out: the right answer is nearest to" in sentence for sentence in said)
    return out


@pytest.fixture(scope="module")
def made(run: Path) -> Path:
    evaluation = export_site(run, run.parent / "lamp", "1.2.3")
    judged = evaluation["recordings"]
    assert judged["clips"] >= 9
    assert judged["right"] >= 0.8
    assert judged["changes_f1"] >= 0.6
    return run.parent / "lamp"


def test_the_bundle_is_whole_and_says_what_it_is(made: Path, bundle: Path, lines: Path) -> None:
    found, base = load_bundle(made), load_bundle(bundle)
    assert verify_bundle(made) == []
    assert (found.version, found.query, found.decoder) == ("1.2.3", None, None)
    assert found.source["weights"] == f"{base.model_id}, with a predictor of lines.jsonl"
    assert found.graphs["x_encoder"].sha256 == base.graphs["x_encoder"].sha256
    assert found.graphs["predictor"].sha256 != base.graphs["predictor"].sha256
    assert set((made / "phrases.txt").read_text().splitlines()) == set(SAYINGS.values())
    assert found.thresholds.gate == base.thresholds.gate


def test_what_happens_is_named_on_a_video_that_it_never_saw(made: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    video = cv2.VideoWriter(
        str(tmp_path / "new.avi"), cv2.VideoWriter_fourcc(*"MJPG"), HZ, (32, 32)
    )  # fmt: skip
    kinds = ["dark", "on", "off", "dark", "off", "on"]
    for kind in kinds:
        for k in range(2 * HZ):
            view = picture(kind, k / (2 * HZ), 71)
            video.write(cv2.add(view, rng.integers(0, 5, view.shape, np.uint8)))
    video.release()
    model = Runtime(load_bundle(made), "onnxruntime-cpu")
    texts = model.embed_text(list(SAYINGS.values()))
    right = dict.fromkeys(SAYINGS, 0)
    seen = dict(right)
    perceiver = Perceiver(model, ["camera"], Settings(gate_threshold=0.0))
    for step in offline.run(VideoSource(tmp_path / "new.avi"), perceiver):
        at = offline.seconds(step.stamp_ns)
        kind = kinds[int(at // 2)]
        if at % 2 >= 1.25:  # most of the clip lies inside the event
            seen[kind] += 1
            right[kind] += list(SAYINGS)[int((texts @ step.embedding).argmax())] == kind
    model.close()
    assert all(right[kind] >= 0.7 * seen[kind] > 0 for kind in SAYINGS), (right, seen)


def test_tokens_are_made_once_and_an_interrupted_training_goes_on(
    run: Path, bundle: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "encode_keeping", None)  # it would fail where it is called
    before = (run / "weights.safetensors").read_bytes()
    learn(lines, str(bundle), run, SiteRecipe(steps=150), print)
    assert (run / "weights.safetensors").read_bytes() == before


def test_another_training_is_not_overwritten(run: Path, bundle: Path, lines: Path) -> None:
    with pytest.raises(VLJepaError, match="give a new folder"):
        learn(lines, str(bundle), run, SiteRecipe(steps=151), print)


def test_a_query_is_refused_with_its_line(bundle: Path, lines: Path, tmp_path: Path) -> None:
    rows = [json.loads(row) for row in lines.read_text().splitlines()]
    rows[3]["query"] = "Is it moving?"
    for row in rows:
        row["video"] = str(lines.parent / row["video"])
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecordingsError, match=r"asked\.jsonl:4: 'query' is given"):
        learn(file, str(bundle), tmp_path / "run", SiteRecipe(steps=10), print)


def test_only_bundles_of_image_encoders_are_learnt_from_so(bundle: Path, tmp_path: Path) -> None:
    assert is_of_images(str(bundle))
    assert not is_of_images(str(make_bundle(tmp_path / "clips")))


def test_an_export_needs_the_bundle_that_it_came_from(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    about = json.loads((moved / "base.json").read_text())
    (moved / "base.json").write_text(json.dumps({**about, "bundle": str(tmp_path / "gone")}))
    with pytest.raises(VLJepaError, match="has gone, the bundle tiny"):
        export_site(moved, tmp_path / "out", "1.0.0")
    (moved / "base.json").write_text(json.dumps({**about, "from": "tiny-0.9.0#12345678"}))
    with pytest.raises(VLJepaError, match="train again"):
        export_site(moved, tmp_path / "out", "1.0.0")
    (moved / "weights.safetensors").unlink()
    with pytest.raises(VLJepaError, match="holds no finished training"):
        site.load_site(moved)
