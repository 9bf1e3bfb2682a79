"""`vljepa calibrate`: from footage to a bundle that says what it was calibrated on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundles import make_bundle
from typer.testing import CliRunner, Result

from vljepa_ros.bundle.manifest import read_manifest
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.inference.verify import verify_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a decoder, as public bundles are."""
    source = {"weights": "random", "thresholds": "not calibrated"}
    folder = tmp_path_factory.mktemp("calibrate") / "tiny"
    return make_bundle(folder, decoder=False, source=source)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 s of a camera at 10 Hz, as images: another scene every 5 s, and sensor noise in each."""
    folder = tmp_path_factory.mktemp("footage") / "camera"
    folder.mkdir()
    random = np.random.default_rng(0)
    scenes = random.integers(60, 190, (8, 6, 8, 3)).astype(np.float32).repeat(8, 1).repeat(8, 2)
    for k in range(400):
        coarse = random.normal(0, 3, (12, 16, 3)).repeat(4, 0).repeat(4, 1)
        picture = np.clip(scenes[k // 50] + coarse, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{k:03}.png"), picture)
    return folder


def calibrate(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["calibrate", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def out(bundle: Path, footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "mine"
    before = (bundle / "bundle.yaml").read_bytes()
    result = calibrate(bundle, footage, "--out", out)
    assert result.exit_code == 0, result.output
    assert (bundle / "bundle.yaml").read_bytes() == before
    lines = {line.split("  ")[0]: line.split()[-2:] for line in result.output.splitlines() if line}
    passed_over = [float(share.rstrip("%")) for share in lines["encodes passed over"]]
    assert passed_over[0] <= passed_over[1]
    assert lines["not familiar"][-1].endswith("%")
    assert "cannot tell" in result.output  # before
    return out


def test_the_bundle_is_whole_and_says_what_it_was_calibrated_on(
    out: Path, bundle: Path, footage: Path
) -> None:
    assert verify_bundle(out) == []
    old, new = load_bundle(bundle), load_bundle(out)
    assert new.model_id != old.model_id
    assert new.thresholds.gate > old.thresholds.gate  # its noise
    about = new.calibration
    assert about["footage"] == [footage.name]
    assert about["seconds"] == pytest.approx(39, abs=0.5)
    assert about["changes_per_minute"] == "knee"
    assert "not calibrated" not in new.source["thresholds"]
    assert about["before"] == vars(old.thresholds)
    assert {key for key in read_manifest(out)[0] if key not in read_manifest(bundle)[0]} == {
        "calibration", "familiarity",
    }  # fmt: skip


def test_the_timeline_is_drawn(out: Path) -> None:
    picture = cv2.imread(str(out.with_name("mine.png")))
    assert picture is not None and picture.shape[1] > 1000
    assert picture.std() > 20


def test_it_is_fitted_to_the_footage_and_to_nothing_else(out: Path, footage: Path) -> None:
    from vljepa_ros.inference.familiarity import load_familiarity, pooled
    from vljepa_ros.inference.preprocess import prepare
    from vljepa_ros.inference.runtime import Runtime

    model = Runtime(load_bundle(out), "onnxruntime-cpu", threads=1, parts=("x_encoder",))
    known = load_familiarity(model.bundle)
    assert known is not None
    seen = [prepare(cv2.imread(str(footage / f"{k:03}.png"))[..., ::-1], 32) for k in (10, 11, 12)]
    other = [np.full((32, 32, 3), 255, np.uint8)] * 4
    familiar = known.of(pooled(model, np.stack([np.stack([*seen, seen[0]]), np.stack(other)])))
    assert familiar[1] < 0.5 < familiar[0]
    model.close()


def test_calibrated_again_it_learns_the_new_footage(
    out: Path, footage: Path, tmp_path: Path
) -> None:
    result = calibrate(
        out, footage, "--out", tmp_path / "again", "--changes-per-minute", 4, "--picture",
        tmp_path / "drawn.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    again = load_bundle(tmp_path / "again")
    assert again.calibration["changes_per_minute"] == 4
    assert again.thresholds.change > load_bundle(out).thresholds.change
    assert (tmp_path / "drawn.png").is_file()


def test_a_data_set_is_footage_of_which_the_whole_episodes_are_looked_at(
    bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason="PyArrow is not installed: pip install pyarrow")
    from lerobot_sets import H264, Made

    noise = np.random.default_rng(0).integers(0, 12, (7, 48, 64, 3), np.uint8)

    def scene(episode: int, frame: int) -> np.ndarray:
        picture = np.full((48, 64, 3), 60 + 20 * episode, np.uint8)
        picture[:, :24] = 200 if frame < 40 else 90
        return picture + noise[frame % 7]

    cameras = ("observation.images.top", "observation.images.wrist")
    made = Made(lengths=(80,) * 5, codec=H264, picture=scene, cameras=cameras)
    root = made.write(tmp_path / "cubes", 2)
    next(root.glob("videos/**/observation.images.top/*3.mp4")).unlink()
    new = tmp_path / "new"
    result = calibrate(bundle, root, "--camera", "top", "--out", new)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "Episode 3 of cubes is left out: there is no videos/" in said
    about = load_bundle(new).calibration
    assert about["footage"] == [f"Episode {k} of cubes" for k in (0, 1, 2, 4)]
    assert 25 < about["seconds"] < 32
    for more, sentence in (((), "Say which --camera of cubes; it has: "),
                           (("--camera", "left"), "has no camera 'left'")):  # fmt: skip
        result = calibrate(bundle, root, *more, "--out", tmp_path / "other")
        assert result.exit_code == 1 and sentence in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "NEW"], "Say what to calibrate on"),
        (["nothing.mp4", "--out", "NEW"], "There is no recording nothing.mp4"),
        (["FOOTAGE", "--out", "BUNDLE"], "is there already"),
        (["FOOTAGE", "--out", "NEW", "--never", "none.txt"], "none.txt cannot be read"),
        (["SHORT", "--out", "NEW"], "20 s is the least"),
        (["FOOTAGE", "--out", "NEW", "--camera", "top"], "none is given"),
        (["--live", "30", "--out", "NEW"], "Name the camera's topic"),
    ],
)
def test_what_it_cannot_do_is_a_sentence_and_leaves_nothing(
    arguments: list[str], sentence: str, bundle: Path, footage: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.mkdir()
    for k in range(60):
        (short / f"{k:03}.png").write_bytes((footage / f"{k:03}.png").read_bytes())
    names = {"NEW": tmp_path / "new", "BUNDLE": bundle, "FOOTAGE": footage, "SHORT": short}
    result = calibrate(bundle, *(names.get(one, one) for one in arguments))
    assert result.exit_code == 1
    assert sentence in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short"]
