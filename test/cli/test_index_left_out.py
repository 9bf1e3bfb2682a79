"""`vljepa index` of what is not whole: the rest is remembered, and the exit code says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
pytest.importorskip("rosbags.rosbag2", reason="not installed: pip install rosbags")

from bags import COMPRESSED, RAW, TYPES, image_message, write_bag
from bundles import make_bundle
from rosbags.rosbag2 import StoragePlugin, Writer

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings.left_out import LeftOut
from vljepa_ros.recordings.offline import bag_frames, perceive

SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND
THRESHOLDS = {"gate": 3.0, "change": 0.05, "watch": 0.5}
STAMPS = [BEGIN + k * SECOND // 10 for k in range(60)]  # 6 s at 10 Hz


def noise(k: int) -> np.ndarray:
    """What is seen at a stamp: all looks different every 2 s. RGB uint8 `[48, 64, 3]`."""
    cells = np.random.default_rng(k // 20).integers(0, 256, (6, 8, 3), np.uint8)
    return cells.repeat(8, 0).repeat(8, 1)


def images(topic: str, stamps: list[int] = STAMPS) -> Iterator[tuple[str, int, np.ndarray]]:
    for k, stamp in enumerate(stamps):
        yield topic, stamp, noise(k)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("index") / "tiny", thresholds=THRESHOLDS)


def run(bundle: Path, store: Path, *arguments: Any) -> Result:
    given = ["index", "--bundle", bundle, "--store", store, "--robot", "robbie", *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def cameras(store: Path) -> set[str]:
    with MomentStore(store, read_only=True) as kept:
        return {moment.camera for moment in kept.newest(1000)}


def test_one_bad_stamp_costs_one_image_and_the_next_recording_is_read(
    bundle: Path, tmp_path: Path
) -> None:
    stamps = [0 if k == 7 else stamp for k, stamp in enumerate(STAMPS)]
    unstamped = write_bag(tmp_path / "a", images("/left/image", stamps), logs=STAMPS)
    empty = tmp_path / "empty.mcap"
    empty.write_bytes(b"")
    none = write_bag(tmp_path / "none", [])
    whole = write_bag(tmp_path / "b", images("/right/image"), StoragePlugin.SQLITE3)
    done = run(bundle, tmp_path / "store", unstamped, empty, none, whole)
    assert done.exit_code == 1
    assert cameras(tmp_path / "store") == {"left", "right"}
    assert f"1 image on /left/image in {unstamped} left out" in done.output
    assert f"{empty} is not a rosbag2 recording that can be read (it is empty" in done.output
    assert f"{none} holds no images" in str(done.exception)
    assert "no message was recorded" in str(done.exception)
    assert "11.8 s of recordings in" in done.output
    for one, code in ((unstamped, 1), (whole, 0)):
        again = run(bundle, tmp_path / "store", one)
        assert again.exit_code == code and ", 0 of them new" in again.output
    alone = run(bundle, tmp_path / "other", none)
    assert alone.exit_code == 1 and "holds no images" in str(alone.exception)
    assert not (tmp_path / "other").exists()


def test_bad_pictures_are_left_out_and_counted(bundle: Path, tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        kinds = {"/left/image/compressed": COMPRESSED, "/depth/image": RAW}
        topics = {t: writer.add_connection(t, kind, typestore=TYPES) for t, kind in kinds.items()}
        for k, stamp in enumerate(STAMPS):
            message = image_message(COMPRESSED, stamp, noise(k))
            if k in (4, 40):
                message.data = message.data[:-30]
            depth = image_message(RAW, stamp, np.ones((48, 64), np.float32))
            for topic, one in zip(topics, (message, depth), strict=True):
                data = TYPES.serialize_cdr(one, kinds[topic])
                writer.write(topics[topic], stamp, data)
    done = run(bundle, tmp_path / "store", tmp_path / "bag")
    assert done.exit_code == 1 and cameras(tmp_path / "store") == {"left"}
    # Not every picture is looked at, but as many as the model needs.
    assert "image of camera 'left' cannot be used" in done.output.replace("images", "image")
    assert "images of camera 'depth' cannot be used" in done.output
    named = run(bundle, tmp_path / "depth", tmp_path / "bag", "--topic", "/depth/image")
    assert named.exit_code == 1 and cameras(tmp_path / "depth") == set()
    assert "images of camera 'depth' cannot be used" in named.output
    assert "too short" not in named.output


def test_no_clip_mixes_the_times_before_and_after_a_clock_was_set(
    bundle: Path, tmp_path: Path
) -> None:
    model = Runtime(load_bundle(bundle), parts=("x_encoder", "predictor", "y_encoder"))
    left_out = LeftOut()

    def steps(path: Path) -> list[Step]:
        perceiver = Perceiver(model, ["front"], Settings())
        frames = bag_frames(path, {"/front/image": "front"}, left_out)
        return [s for *_, found in perceive(frames, perceiver, reject) for s in found]

    def reject(*_: Any) -> None:
        raise AssertionError("a picture that cannot be decoded")

    later = [stamp - 3 * SECOND for stamp in STAMPS]
    first = write_bag(tmp_path / "first", images("/front/image"))
    second = write_bag(tmp_path / "second", images("/front/image", later))
    both = [*images("/front/image"), *images("/front/image", later)]
    apart = [*steps(first), *steps(second)]
    assert not left_out.sentences() and len(apart) > 20
    for plugin in StoragePlugin:
        together = steps(write_bag(tmp_path / plugin.name, both, plugin))
        for one, other in zip(together, apart, strict=True):
            assert (one.stamp_ns, one.window_start_ns) == (other.stamp_ns, other.window_start_ns)
            assert np.allclose(one.embedding, other.embedding, atol=1e-6)
    done = run(bundle, tmp_path / "store", tmp_path / "MCAP")
    assert done.exit_code == 0 and "jump once, by -8.9 s" in done.output
    model.close()


def test_a_folder_of_images_with_its_calibration_is_no_bag(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(60):
        cv2.imwrite(str(folder / f"{k:03}.png"), noise(k)[..., ::-1])
    (folder / "calibration.yaml").write_text("camera_matrix: [1, 0, 0]")
    done = run(bundle, tmp_path / "store", folder)
    assert done.exit_code == 0 and cameras(tmp_path / "store") == {"pictures"}
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:60])
    again = run(bundle, tmp_path / "store", folder)
    assert again.exit_code == 1 and f"1 of 60 images of {folder} is left out" in again.output
