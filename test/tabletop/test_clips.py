"""Clips cut from episodes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vljepa_ros.errors import VLJepaError
from vljepa_ros.tabletop import clips, language, store
from vljepa_ros.tabletop.clips import (
    ClipDataset,
    ClipShape,
    View,
    augment,
    cell_state,
    collate,
    pool,
)
from vljepa_ros.tabletop.episode import CELLS, GRIPPER, HAND, Episode
from vljepa_ros.tabletop.vocabulary import (
    COLOURS,
    HELD,
    KINDS,
    MOVING,
    OBJECT_KINDS,
    ON_TABLE,
    SHAPES,
    UPRIGHT,
    held_out,
)

SHAPE = ClipShape(frames=4, tubelet=2, side=4, size=96)
FRAMES = 64  # 8 s
GREY = 3  # grey levels between two frames
KEPT = next(
    (colour, shape, kind)
    for colour in COLOURS for shape in SHAPES for kind in OBJECT_KINDS
    if held_out(colour, shape, kind)
)  # fmt: skip
FREE = next(
    (colour, shape)
    for colour in COLOURS for shape in SHAPES
    if not any(held_out(colour, shape, kind) for kind in OBJECT_KINDS)
)  # fmt: skip


def grids(uv: np.ndarray) -> np.ndarray:
    """Each object fills the one cell of its centre, the later over the earlier."""
    cells = np.zeros((len(uv), CELLS, CELLS), np.uint8)
    for frame, places in enumerate(uv):
        for thing, (column, line) in enumerate((places * CELLS).astype(int)):
            cells[frame, line, column] = thing + 1
    return cells


def make_episode(events: list[tuple[str, int, float, float]]) -> Episode:
    """Object 0 may be in every event, object 1 not in one of kind `KEPT[2]`; frame i is grey."""
    names = [FREE, KEPT[:2]]
    jpegs = [
        cv2.imencode(".jpg", np.full((96, 96, 3), GREY * i + 20, np.uint8))[1].ravel()
        for i in range(FRAMES)
    ]
    uv = np.zeros((FRAMES, 2, 2), np.float32)
    uv[:, 0] = [0.30, 0.80]
    uv[:, 1] = [0.70, 0.60]
    state = np.full((FRAMES, 2), UPRIGHT | ON_TABLE, np.uint8)
    motion = np.zeros((FRAMES, 2, 2), np.float32)
    return Episode(
        {
            "jpeg": np.concatenate(jpegs),
            "offsets": np.cumsum([0, *map(len, jpegs)]),
            "stamps": np.arange(FRAMES) / 8,
            "objects": np.array([[SHAPES.index(s), COLOURS.index(c)] for c, s in names], np.int16),
            "object_uv": uv,
            "object_visible": np.ones((FRAMES, 2), bool),
            "object_motion": motion,
            "object_state": state,
            "gripper_uv": np.full((FRAMES, 2), 0.1, np.float32),
            "gripper_visible": np.zeros(FRAMES, bool),
            "gripper_closed": np.zeros(FRAMES, np.float32),
            "gripper_motion": np.zeros((FRAMES, 2), np.float32),
            "hand_visible": np.zeros(FRAMES, bool),
            "hand_uv": np.zeros((FRAMES, 2), np.float32),
            "cells": grids(uv),
            "event_kind": np.array([KINDS.index(e[0]) for e in events], np.int16),
            "event_object": np.array([e[1] for e in events], np.int16),
            "event_span": np.array([e[2:] for e in events], np.float32),
        },
        {"seed": 0},
    )


EVENTS = [
    ("still", -1, 0.0, 2.0), ("reach", 0, 2.0, 3.0), ("push", 0, 3.0, 5.0),
    (KEPT[2], 1, 5.0, 6.0), ("retreat", -1, 6.0, 7.9), ("roll", 0, 7.9, 8.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    store.save_episode(folder / "train" / "00000000.npz", make_episode(EVENTS))
    store.save_episode(folder / "train" / "00000001.npz", make_episode(EVENTS[:3]))
    return folder


@pytest.mark.parametrize(("still", "frames"), [(False, 4), (True, 2)])
def test_shapes_and_types(root: Path, still: bool, frames: int):
    shape = ClipShape(frames, 2, 4, 96)
    dataset = ClipDataset(root, shape, 0, still_images=still)
    rng = np.random.default_rng(0)
    batch = collate([dataset.draw(rng) for _ in range(3)])
    assert batch["frames"].shape == (3, frames, 96, 96, 3)
    assert batch["frames"].dtype == torch.uint8
    for texts in ("queries", "answers", "meanings"):
        assert len(batch[texts]) == clips.ASKED * 3
        assert all(isinstance(text, str) and text for text in batch[texts])
    cells = frames // 2 * 16
    more = {"offset": 2, "motion": 2, "flags": 5, "gripper_state": 3}
    for name, values in batch["state"].items():
        assert values.shape == ((3, cells, more[name]) if name in more else (3, cells)), name
        labels = name in ("shape", "colour")
        assert values.dtype == (torch.int64 if labels else torch.float32), name


def test_no_episodes_is_said_in_a_sentence(tmp_path: Path):
    with pytest.raises(VLJepaError, match="run `vljepa data --split train` first"):
        ClipDataset(tmp_path, SHAPE, 0)


def drawn(dataset: ClipDataset, count: int) -> list[tuple[Episode, int]]:
    """What `draw` cuts, without cutting it."""
    dataset.clip = lambda episode, newest, rng: (episode, newest)  # type: ignore[method-assign]
    rng = np.random.default_rng(0)
    return [dataset.draw(rng) for _ in range(count)]  # type: ignore[misc]


def touches(episode: Episode, newest: int) -> bool:
    """Whether the window of a clip overlaps an event that is kept from training."""
    start, end = newest / 8 - SHAPE.span, newest / 8
    return len(episode.event_kind) > 3 and start < 6.0 and end > 5.0


def test_held_out_combinations_are_never_drawn(root: Path, monkeypatch: pytest.MonkeyPatch):
    chosen = drawn(ClipDataset(root, SHAPE, 0), 300)
    assert not any(touches(*one) for one in chosen)
    assert any(len(episode.event_kind) > 3 and newest > 48 for episode, newest in chosen)
    monkeypatch.setattr(store, "trainable", lambda *_: True)  # without the rule they would be
    assert any(touches(*one) for one in drawn(ClipDataset(root, SHAPE, 0), 300))


def test_every_kind_of_event_is_drawn_as_often_as_its_weight(root: Path):
    dataset = ClipDataset(root, SHAPE, 0)
    kinds = [
        episode.event_at((n - 1) / 8 - store.NAMED_AFTER).kind for episode, n in drawn(dataset, 400)
    ]
    counts = {kind: kinds.count(kind) / 400 for kind in set(kinds)}
    assert set(counts) == {
        "still",
        "reach",
        "push",
        "retreat",
    }  # "roll" ends too soon after it begins
    assert counts["reach"] > 0.15 and counts["push"] > 0.15


def test_drawing_is_deterministic_by_seed(root: Path):
    def some(seed: int) -> list[dict]:
        stream = iter(ClipDataset(root, SHAPE, seed))
        return [next(stream) for _ in range(4)]

    first, again, other = some(1), some(1), some(2)
    for a, b in zip(first, again):
        assert a["queries"] == b["queries"] and a["answers"] == b["answers"]
        np.testing.assert_array_equal(a["frames"], b["frames"])
    assert any(not np.array_equal(a["frames"], b["frames"]) for a, b in zip(first, other))


def greys(item: dict) -> list[int]:
    """Which frames of the episode a clip holds, told by their grey."""
    return [round((float(frame.mean()) - 20) / GREY) for frame in item["frames"]]


def test_frames_are_a_quarter_second_apart_and_the_newest_is_last(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clips, "augment", lambda frames, rng: frames)
    rng = np.random.default_rng(0)
    episode = make_episode(EVENTS)
    assert greys(ClipDataset(root, SHAPE, 0).clip(episode, 30, rng)) == [24, 26, 28, 30]
    still = ClipDataset(root, ClipShape(2, 2, 4, 96), 0, still_images=True)
    assert greys(still.clip(episode, 30, rng)) == [30, 30]


def test_the_first_question_is_the_default_one_and_its_meaning_the_canonical_wording(root: Path):
    item = ClipDataset(root, SHAPE, 0).clip(make_episode(EVENTS), 34, np.random.default_rng(3))
    assert item["queries"][0] == language.DEFAULT_QUERY
    assert item["meanings"][0] == f"the gripper pushes the {FREE[0]} {FREE[1]}"
    assert language.name_event(item["answers"][0])[0] == "push"  # whatever its things are called
    assert item["answers"][1] == item["meanings"][1]


def test_one_picture_is_asked_only_what_it_can_answer(root: Path):
    dataset = ClipDataset(root, ClipShape(2, 2, 4, 96), 0, still_images=True)
    rng = np.random.default_rng(0)
    allowed = {
        form.format(colour=colour, shape=shape)
        for kind in clips.STILL_QUESTIONS for form in language.QUESTIONS[kind]
        for colour in COLOURS for shape in SHAPES
    }  # fmt: skip
    asked = [query for _ in range(20) for query in dataset.draw(rng)["queries"]]
    assert set(asked) <= allowed
    assert len(set(asked)) > 4


def test_augmentation_treats_all_frames_of_a_clip_alike():
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    out = augment(np.stack([image] * 3), np.random.default_rng(1))
    assert out.dtype == np.uint8 and out.shape == (3, 96, 96, 3)
    assert (out == out[0]).all()
    assert 0 < np.abs(out[0].astype(int) - image).mean() < 60


# What the cells hold


def test_patches_say_what_is_seen_in_them():
    episode = make_episode(EVENTS)
    episode.object_state[30, 1] = HELD | MOVING
    episode.object_motion[30, 1] = [0.05, -7.0]
    state = cell_state(episode, np.array([28, 30]), episode.cells[[28, 30]], 4)
    first, second = 3 * 4 + 1, 2 * 4 + 2  # (0.30, 0.80) and (0.70, 0.60): row, then column
    wanted = np.zeros(32)
    wanted[[first, second, 16 + first, 16 + second]] = 1
    np.testing.assert_array_equal(state["objectness"], wanted)
    assert state["shape"][first] == SHAPES.index(FREE[1])
    assert state["colour"][first] == COLOURS.index(FREE[0])
    assert state["shape"][second] == SHAPES.index(KEPT[1])
    assert state["colour"][second] == COLOURS.index(KEPT[0])
    np.testing.assert_allclose(
        state["offset"][first], [10 * (0.30 - 1.5 / 4), 10 * (0.80 - 3.5 / 4)], atol=1e-5
    )
    np.testing.assert_allclose(
        state["offset"][second], [10 * (0.70 - 2.5 / 4), 10 * (0.60 - 2.5 / 4)], atol=1e-5
    )
    np.testing.assert_allclose(state["motion"][16 + second], np.arcsinh([0.5, -70]), rtol=1e-6)
    np.testing.assert_array_equal(state["motion"][second], [0, 0])
    assert state["flags"][16 + second].tolist() == [1, 1, 0, 0, 0]
    assert state["flags"][second].tolist() == [0, 0, 1, 1, 0]
    assert not state["gripper"].any() and not state["hand"].any()


def test_a_patch_belongs_to_what_fills_most_of_it():
    grid = np.zeros((CELLS, CELLS), np.uint8)
    grid[0, :3] = 1
    grid[1, :4] = 2  # in the first patch of four by four cells: 3 of object 0, 4 of object 1
    grid[15, 15] = GRIPPER
    patches = pool(grid, 4)
    wanted = np.zeros((4, 4))
    wanted[0, 0], wanted[3, 3] = 2, GRIPPER
    np.testing.assert_array_equal(patches, wanted)
    np.testing.assert_array_equal(pool(grid, CELLS), grid)


def test_gripper_and_hand_have_their_patches():
    episode = make_episode(EVENTS)
    grid = np.zeros((CELLS, CELLS), np.uint8)
    grid[0, 15], grid[8:12, 0] = GRIPPER, HAND
    episode.gripper_motion[30], episode.gripper_closed[30] = [0.1, -0.2], 0.75
    state = cell_state(episode, np.array([30]), grid[None], 4)
    assert np.flatnonzero(state["gripper"]).tolist() == [3]
    np.testing.assert_allclose(state["gripper_state"][3], [*np.arcsinh([1, -2]), 0.75], rtol=1e-6)
    assert np.flatnonzero(state["hand"]).tolist() == [2 * 4]
    assert not state["objectness"].any()


def test_a_view_moves_cells_as_it_moves_places():
    episode = make_episode(EVENTS)
    column, line = (episode.object_uv[0, 1] * CELLS).astype(int)
    grid = np.zeros((CELLS, CELLS), np.uint8)
    grid[line - 1 : line + 2, column - 1 : column + 2] = 2
    for seed in range(8):
        view = View.draw(np.random.default_rng(seed))
        seen = view.episode(episode).object_uv[0, 1]
        lines, columns = np.nonzero(view.cells(grid) == 2)
        found = (np.array([columns.mean(), lines.mean()]) + 0.5) / CELLS
        np.testing.assert_allclose(found, seen, atol=1.1 / CELLS)


def test_a_view_moves_places_and_pictures_alike():
    """A bright dot in the picture is found where the view says that the object is."""
    episode = make_episode(EVENTS)
    episode.object_motion[0, 0] = [0.3, -0.1]
    size = 96
    for seed in range(8):
        view = View.draw(np.random.default_rng(seed))
        seen = view.episode(episode)
        uv = episode.object_uv[0, 1]
        picture = np.zeros((size, size, 3), np.uint8)
        column, line = (uv * size).astype(int)
        picture[line - 1 : line + 2, column - 1 : column + 2] = 255
        lines, columns = np.nonzero(view.picture(picture)[..., 0] > 128)
        found = (np.array([columns.mean(), lines.mean()]) + 0.5) / size
        np.testing.assert_allclose(found, seen.object_uv[0, 1], atol=1.2 / size)
        np.testing.assert_allclose(seen.object_motion[0, 0], view.linear @ [0.3, -0.1], rtol=1e-6)


def test_what_follows_a_rarer_kind_is_drawn_more_often() -> None:
    """Sixteen, four and one: drawn as four to two to one, each group's evenly."""
    groups = np.repeat([3, -1, 7], [16, 4, 1])
    chances = clips._evened(groups)
    shares = [chances[groups == group] for group in (3, -1, 7)]
    assert [share.sum() for share in shares] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert all(np.ptp(share) == 0 for share in shares)
