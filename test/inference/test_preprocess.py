"""Pictures as the processors of public models prepare them: Pillow, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vljepa_ros.inference.preprocess import prepare

BARE = {"do_rescale": False, "do_normalize": False}
FILTERS = {"pil_bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Smaller and larger than the square, odd, wide, single pixels; one is a square already.
SIZES = [(48, 64), (33, 45), (20, 31), (32, 32), (64, 64), (7, 500), (1, 1), (120, 213)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
filters = pytest.mark.parametrize("resample", FILTERS)


def picture(height: int, width: int) -> np.ndarray:
    """Black and white patches, at whose edges a cubic filter leaves 0 to 255, under noise."""
    rng = np.random.default_rng(height * width)
    patches = rng.integers(0, 2, (height // 6 + 1, width // 6 + 1, 3)) * 235
    image = patches.repeat(6, 0).repeat(6, 1)[:height, :width]
    return (image + rng.integers(0, 20, image.shape)).astype(np.uint8)


def processed(processor: CLIPImageProcessorPil, image: np.ndarray) -> np.ndarray:
    return np.asarray(processor(Image.fromarray(image)).pixel_values[0]).transpose(1, 2, 0)


@filters
@sizes
def test_a_shorter_side_is_what_clip_takes(size: tuple[int, int], resample: str):
    image = picture(*size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        resample=FILTERS[resample], **BARE,
    )  # fmt: skip
    got = prepare(image, 32, resample)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, processed(processor, image))


@filters
@sizes
def test_a_squashed_picture_is_what_siglip_takes(size: tuple[int, int], resample: str):
    image = picture(*size)
    processor = SiglipImageProcessorPil(
        size={"height": 32, "width": 32}, resample=FILTERS[resample], **BARE
    )
    np.testing.assert_array_equal(
        prepare(image, 32, resample, "squash"), processed(processor, image)
    )


@filters
@pytest.mark.parametrize("size", [(97, 40), (64, 33), (500, 7)], ids=lambda s: f"{s[1]}x{s[0]}")
def test_a_tall_picture_is_resized_across_and_then_down(size: tuple[int, int], resample: str):
    image, kind = picture(*size), FILTERS[resample]
    across = Image.fromarray(image).resize((32, size[0]), kind)
    wanted = np.asarray(across.resize((32, 32), kind))
    np.testing.assert_array_equal(prepare(image, 32, resample, "squash"), wanted)


@pytest.mark.parametrize("resample", ["area", "bilinear", *FILTERS])
@pytest.mark.parametrize("resize", ["shorter_side", "squash"])
def test_a_square_of_the_size_stays_and_is_fresh(resample: str, resize: str):
    image = picture(32, 32)
    got = prepare(image, 32, resample, resize)
    np.testing.assert_array_equal(got, image)
    assert not np.shares_memory(got, image)


def test_only_a_squashed_picture_keeps_its_edges():
    image = np.full((40, 120, 3), 200, np.uint8)
    image[:, :12] = image[:, -12:] = 50
    for resample in ("area", "bilinear", *FILTERS):
        assert prepare(image, 40, resample).min() == 200
        squashed = prepare(image, 40, resample, "squash")
        assert squashed.shape == (40, 40, 3)
        assert squashed[:, 1].max() == 50 and squashed[:, 20].min() == 200
