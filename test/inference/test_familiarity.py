"""Familiarity: what it is fitted to is known, what is unlike it is not, and a file keeps it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.errors import BundleError
from vljepa_ros.inference.familiarity import (
    FEWEST,
    FILE,
    THRESHOLD,
    Familiarity,
    add_familiarity,
    fit,
    load_familiarity,
    pool,
    pooled,
)
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.tensors import Joined

WIDTH = 16  # of the tiny bundle's visual tokens


def known(seed: int, count: int = 400, width: int = WIDTH) -> np.ndarray:
    """Pooled tokens of a world: long in one direction, flat in most."""
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, width)) * np.geomspace(3, 0.01, width)).astype(np.float32)


FITTED = fit(known(0), known(1))


def test_what_is_like_what_was_fitted_is_familiar_and_what_is_not_is_not() -> None:
    assert (FITTED.of(known(2)) >= THRESHOLD).mean() > 0.98
    assert np.median(FITTED.of(known(2))) == pytest.approx(0.95, abs=0.02)
    strange = (
        known(3) + 3 * np.eye(WIDTH, dtype=np.float32)[-1]
    )  # a way that the world never varies
    assert (FITTED.of(strange) < THRESHOLD).all()


@given(st.integers(0, 10_000), st.floats(1.01, 100))
def test_it_falls_with_the_distance_and_stays_in_0_to_1(seed: int, factor: float) -> None:
    way = np.random.default_rng(seed).normal(size=WIDTH)
    near, far = FITTED.of(np.stack([FITTED.mean + way, FITTED.mean + factor * way]))
    assert 0 <= far <= near <= 1
    assert FITTED.of(FITTED.mean[None])[0] == 1


def test_directions_that_are_not_kept_count_as_the_rest() -> None:
    """More numbers than axes: the distance is that of the whole covariance, flattened there."""
    seen = np.random.default_rng(0).normal(size=(600, 200)).astype(np.float32)
    found = fit(seen, np.random.default_rng(1).normal(size=(300, 200)).astype(np.float32))
    assert found.axes.shape == (128, 200)
    precision = (found.axes.T / found.variances) @ found.axes
    precision += (np.eye(200) - found.axes.T @ found.axes) / found.rest
    apart = seen[:50] - found.mean
    whole = np.sqrt(np.einsum("ij,jk,ik->i", apart, precision, apart))
    np.testing.assert_allclose(found.distance(seen[:50]), whole, rtol=1e-3)


def test_what_is_not_finite_is_not_familiar() -> None:
    for value in (np.nan, np.inf, 1e38):
        assert FITTED.of(np.full((1, WIDTH), value, np.float32))[0] == 0


def test_a_still_world_has_no_variance_and_still_a_familiarity() -> None:
    still = fit(np.ones((FEWEST, 4), np.float32), np.ones((FEWEST, 4), np.float32))
    assert still.of(np.ones((1, 4), np.float32))[0] >= THRESHOLD
    assert still.of(np.full((1, 4), 2, np.float32))[0] < THRESHOLD


def test_too_little_is_refused_with_a_sentence() -> None:
    with pytest.raises(BundleError, match="are 400 and 39; give more footage"):
        fit(known(0), known(1, 39))


def test_chunks_are_pooled_as_the_clip_that_they_are() -> None:
    tokens = np.random.default_rng(0).normal(size=(12, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(pool(tokens), tokens.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(pool(Joined([tokens[:4], tokens[4:]])), pool(tokens))


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, folder)
    return folder


def test_a_bundle_carries_it(folder: Path) -> None:
    before = load_bundle(folder)
    assert load_familiarity(before) is None
    assert before.familiarity_threshold == -1 and not before.is_unfamiliar(0.0)
    add_familiarity(folder, FITTED)
    bundle = load_bundle(folder)
    assert bundle.model_id != before.model_id
    assert bundle.familiarity_threshold == THRESHOLD
    assert [bundle.is_unfamiliar(value) for value in (-1.0, 0.0, 0.49, 0.5)] == [
        False, True, True, False,
    ]  # fmt: skip
    found = load_familiarity(bundle)
    assert found is not None
    np.testing.assert_array_equal(found.of(known(2)), FITTED.of(known(2)))
    add_familiarity(folder, found, 0.25)
    assert load_bundle(folder).familiarity_threshold == 0.25


def test_the_clips_of_a_model_are_pooled(folder: Path) -> None:
    model = Runtime(load_bundle(folder), "onnxruntime-cpu", threads=1, parts=("x_encoder",))
    clips = np.random.default_rng(0).integers(0, 255, (3, 4, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(pooled(model, clips), model.encode(clips).mean(1), atol=1e-6)
    model.close()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(b"no archive"), "cannot be read"),
        (lambda path: np.savez(path, mean=np.zeros(WIDTH)), "cannot be read"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: _save(path, width=8), "of 8 numbers, and the bundle's have 16"),
        (lambda path: _save(path, near=9.0), "out of order"),
    ],
)
def test_damage_is_said_in_a_sentence(folder: Path, damage: object, sentence: str) -> None:
    add_familiarity(folder, FITTED)
    damage(folder / FILE)  # type: ignore[operator]
    with pytest.raises(BundleError, match=sentence):
        load_familiarity(load_bundle(folder, verify=sentence == "missing"))


def _save(path: Path, width: int = WIDTH, near: float = 1.0) -> None:
    values = {"mean": np.zeros(width), "axes": np.eye(width), "variances": np.ones(width)}
    np.savez(path, **values, rest=1.0, near=near, far=2.0)


def test_it_is_small_and_its_bytes_follow_from_what_it_was_fitted_to(
    folder: Path, tmp_path: Path
) -> None:
    add_familiarity(folder, FITTED)
    first = (folder / FILE).read_bytes()
    add_familiarity(folder, fit(known(0), known(1)))
    assert (folder / FILE).read_bytes() == first
    wide = Familiarity(
        np.zeros(1024, np.float32), np.zeros((128, 1024), np.float32), np.ones(128, np.float32),
        1.0, 1.0, 2.0,
    )  # fmt: skip
    np.savez(tmp_path / FILE, **vars(wide))
    assert (tmp_path / FILE).stat().st_size < 1e6
