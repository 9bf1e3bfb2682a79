"""The simulated world: determinism, and truth that agrees with itself."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vljepa_ros.errors import VLJepaError
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.episode import CELLS, FRAME_RATE, HAND, SPLITS, Episode, Event
from vljepa_ros.tabletop.sim import plan, skills
from vljepa_ros.tabletop.sim.camera import Camera, Divider, project
from vljepa_ros.tabletop.sim.episode import begin, episode_events, play, simulate
from vljepa_ros.tabletop.sim.generate import generate
from vljepa_ros.tabletop.sim.occlusion import covered
from vljepa_ros.tabletop.sim.truth import facts
from vljepa_ros.tabletop.sim.video import render
from vljepa_ros.tabletop.sim.world import TICK, World
from vljepa_ros.tabletop.vocabulary import FALLEN, HELD, KINDS, MOVING, OBJECT_KINDS, held_out

SECONDS = 12.0
VIDEOS = Path(__file__).parents[2] / "videos"
SEEDS = (1, 5, 8, SPLITS["test"], SPLITS["composition"])


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [simulate(seed, SECONDS) for seed in SEEDS]


def run(world: World, motion, extra: float = 1.0) -> list[Event]:
    """Plays one skill to its end, then waits; the events of all of it."""
    for _ in motion:
        world.tick()
    for _ in range(round(extra / TICK)):
        world.tick()
    return episode_events(world, world.ticks)


def world_with(shape: str, slippery: bool | None = None) -> World:
    """The first training world with one object, of this shape, well in view."""
    for seed in range(1000):
        world = begin(seed)
        item = world.object(0)
        if world.count != 1 or item.shape != shape:
            continue
        if slippery is None or slippery == (item.friction < 0.3):
            return world
    raise AssertionError(f"no {shape} alone in a thousand worlds")


def kinds(found: list[Event]) -> list[str]:
    return [event.kind for event in found]


def test_a_seed_gives_the_same_bytes(episodes):
    again = simulate(SEEDS[0], SECONDS)
    assert again.meta == episodes[0].meta
    assert again.arrays.keys() == episodes[0].arrays.keys()
    for name, values in again.arrays.items():
        np.testing.assert_array_equal(values, episodes[0].arrays[name], err_msg=name)


def test_other_seeds_give_other_scenes(episodes):
    assert len({tuple(episode.object_names) for episode in episodes}) == len(episodes)
    for episode in episodes:
        assert len(set(episode.object_names)) == len(episode.object_names)


def test_fields_have_the_documented_shapes(episodes):
    for episode in episodes:
        frames, objects = len(episode), len(episode.object_names)
        assert frames == SECONDS * FRAME_RATE
        np.testing.assert_allclose(np.diff(episode.stamps), 1 / FRAME_RATE)
        assert episode.object_uv.shape == (frames, objects, 2)
        assert episode.object_state.dtype == np.uint8
        assert episode.frame(frames - 1).shape == (128, 128, 3)
        for name, values in episode.arrays.items():
            if values.dtype.kind == "f":
                assert np.isfinite(values).all(), name


def test_events_leave_no_gap_and_never_overlap(episodes):
    for episode in episodes:
        spans = episode.event_span
        assert spans[0, 0] == 0
        assert spans[-1, 1] == pytest.approx(SECONDS)
        np.testing.assert_array_equal(spans[1:, 0], spans[:-1, 1])
        assert (np.diff(spans, axis=1) > 0.2).all()
        for before, after in zip(episode.events, episode.events[1:]):
            assert (before.kind, before.object) != (after.kind, after.object)


def test_events_name_an_object_exactly_when_their_kind_has_one(episodes):
    for episode in episodes:
        for event in episode.events:
            assert event.kind in KINDS
            assert (event.object is not None) == (event.kind in OBJECT_KINDS)


def test_event_at_is_the_event_whose_span_holds_the_time(episodes):
    for episode in episodes:
        for event in episode.events:
            assert episode.event_at((event.start + event.end) / 2) == event
        assert episode.event_at(-1) == episode.events[0]
        assert episode.event_at(SECONDS + 1) == episode.events[-1]


def test_nothing_moves_while_the_scene_is_still(episodes):
    for episode in episodes:
        for event in episode.events:
            if event.kind != "still":
                continue
            inside = (episode.stamps > event.start + 1.0) & (episode.stamps < event.end - 0.1)
            shown = episode.object_visible[inside]
            assert not ((episode.object_state[inside] & MOVING > 0) & shown).any()


def test_a_held_object_moves_with_the_gripper(episodes):
    seen = 0
    for episode in episodes:
        held = episode.object_state & HELD > 0
        assert (held.sum(axis=1) <= 1).all()
        for frame, item in zip(*np.nonzero(held)):
            gap = episode.object_motion[frame, item] - episode.gripper_motion[frame]
            assert np.abs(gap).max() < 0.25
            seen += 1
    assert seen > 10


def test_what_fell_off_stays_off(episodes):
    for episode in episodes:
        fallen = (episode.object_state & FALLEN > 0).astype(int)
        assert (np.diff(fallen, axis=0) >= 0).all()


def test_pick_and_place_is_named_from_the_state():
    world = world_with("cube")
    found = run(world, skills.pick_and_place(world, 0))
    assert [k for k in kinds(found) if k in ("pick_up", "carry", "put_down")] == [
        "pick_up",
        "carry",
        "put_down",
    ]
    assert "drop" not in kinds(found)
    history = world.history.arrays()
    held = facts(world.spec, history).held[:, 0]
    gap = history["position"][held, 0] - history["gripper"][held]
    assert np.ptp(gap, axis=0).max() < 0.015


def test_letting_go_in_the_air_is_a_drop():
    world = world_with("can")
    found = run(world, skills.pick_and_drop(world, 0))
    assert "drop" in kinds(found)
    assert "put_down" not in kinds(found)


def test_a_flicked_ball_rolls():
    world = world_with("ball")
    assert "roll" in kinds(run(world, skills.flick(world, 0)))


def topple(world: World, spin: float) -> None:
    """Sets the first object turning about its lower rim, at `spin` rad/s."""
    height = world.position(0)[2]
    world.data.qvel[:3] = world.rotation(0) @ [0, -spin * height, 0]
    world.data.qvel[3:6] = [spin, 0, 0]


@pytest.mark.parametrize(("spin", "falls"), [(8.0, True), (1.5, False)])
def test_a_bottle_tips_over_when_it_falls_and_not_when_it_only_rocks(spin, falls):
    world = world_with("bottle", slippery=False)
    topple(world, spin)
    found = run(world, skills.wait(world, 1.5))
    tilt = facts(world.spec, world.history.arrays()).tilt[:, 0]
    assert (tilt[-1] > 1.4) == falls
    assert ("tip_over" in kinds(found)) == falls


@pytest.mark.parametrize("shape", ["can", "bottle"])
def test_a_knock_near_the_top_tips_a_tall_thing_over(shape):
    world = world_with(shape, slippery=False)
    assert "tip_over" in kinds(run(world, skills.tip(world, 0)))
    assert facts(world.spec, world.history.arrays()).tilt[:, 0].max() > 1.4


def test_a_hand_covers_a_thing_and_uncovers_it():
    world = world_with("cube")
    found = run(world, skills.cover(world, 0))
    told = kinds(found)
    assert told.index("cover") < told.index("uncover")
    assert {event.object for event in found if event.kind in ("cover", "uncover")} == {0}
    share = covered(world, world.history.arrays())[:, 0]
    assert share[0] == share[-1] == 0
    assert share.max() == 1
    cover = found[told.index("cover")]
    assert share[round((cover.start + cover.end) / 2 / TICK)] > 0


def test_a_passing_hand_covers_nothing():
    world = world_with("cube")
    assert not {"cover", "uncover"} & set(kinds(run(world, skills.pass_hand(world))))


def test_cells_show_what_the_picture_shows():
    """The object's cells have its colour, lie around its centre, and go under the hand."""
    world = world_with("cube")
    centre = project(world, world.position(0))[0] * CELLS
    with Camera(world, 128, 128, shadows=False) as camera:
        cells, picture = camera.owners(), camera.picture()
        lines, columns = np.nonzero(cells == 1)
        np.testing.assert_allclose([columns.mean() + 0.5, lines.mean() + 0.5], centre, atol=1)
        colours = picture.reshape(CELLS, 8, CELLS, 8, 3).mean(axis=(1, 3))
        inside, outside = colours[cells == 1].mean(0), colours[cells == 0].mean(0)
        assert np.abs(inside - outside).max() > 20
        assert not (cells == HAND).any()
        motion = skills.cover(world, 0)
        for _ in motion:
            world.tick()
            if covered(world, world.history.arrays())[-1, 0] == 1:
                break
        cells = camera.owners()
        assert (cells == HAND).sum() > 3
        assert (cells == 1).sum() < 0.3 * len(lines)


def seen(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A world at its begin, from contexts of its own: the picture, and the geom of each pixel."""
    import mujoco  # only now: it reads how it is to draw, which the package has set

    world = begin(seed)
    view = mujoco.Renderer(world.model, size, size)
    view.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = True
    view.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    view.scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False
    view.update_scene(world.data, "view")
    picture = view.render()
    view.close()
    parts = mujoco.Renderer(world.model, size, size)
    parts.enable_segmentation_rendering()
    parts.update_scene(world.data, "view")
    drawn = parts.render()
    parts.close()
    return picture, np.where(drawn[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, drawn[..., 0], -1)


def test_a_picture_does_not_depend_on_what_was_drawn_before():
    wanted = {(seed, size): seen(seed, size) for seed in (1, 2, 3) for size in (64, 256)}
    worlds = {seed: begin(seed) for seed in (1, 2, 3)}
    cameras = {
        (seed, size): (Camera(worlds[seed], size, size, shadows=True),
                       Divider(worlds[seed], size, size))
        for seed, size in wanted
    }  # fmt: skip
    for key in [*wanted, *reversed(wanted)]:
        camera, divider = cameras[key]
        np.testing.assert_array_equal(camera.picture(), wanted[key][0])
        np.testing.assert_array_equal(divider.geoms(), wanted[key][1])
    for key, (camera, divider) in cameras.items():  # and while others are closed
        worlds[key[0]].data.mocap_pos[0] += 1e-4  # so that it draws again
        assert camera.picture().any()
        np.testing.assert_array_equal(divider.geoms() >= 0, wanted[key][1] >= 0)
        camera.close()
        divider.close()


def test_a_book_pushed_over_the_edge_falls_off():
    world = world_with("book")
    found = run(world, skills.push_off(world, 0))
    assert kinds(found).index("push") < kinds(found).index("fall_off")
    assert facts(world.spec, world.history.arrays()).fallen[-1, 0]


def test_a_passing_hand_touches_nothing():
    world = world_with("mug")
    before = world.position(0)
    assert "hand" in kinds(run(world, skills.pass_hand(world)))
    np.testing.assert_allclose(world.position(0), before, atol=1e-3)


def test_a_parked_gripper_leaves_the_picture_as_it_is():
    episode = simulate(3, 1.0)
    assert set(kinds(episode.events)) == {"still"}
    assert episode.meta["noise"] == 0
    np.testing.assert_array_equal(episode.frame(0), episode.frame(len(episode) - 1))


def test_a_stream_is_quiet_for_long_and_has_many_kinds_of_event():
    seed = SPLITS["stream"] + 612
    world = begin(seed)
    for _ in play(world, seed, 60.0, calm=True, every=1):
        pass
    found = episode_events(world, round(60.0 / TICK))
    quiet = sum(event.end - event.start for event in found if event.kind == "still")
    assert 0.3 < quiet / 60 < 0.8
    assert len(set(kinds(found))) >= 6


def test_a_rendered_stream_agrees_with_its_truth(tmp_path):
    import json

    import cv2

    seed = SPLITS["stream"] + 1
    render(seed, 1.0, tmp_path / "s.mp4")
    truth = json.loads((tmp_path / "s.json").read_text())
    assert (truth["video"], truth["fps"], truth["seed"]) == ("s.mp4", 20, seed)
    assert truth["events"][-1]["end"] == 1.0
    video = cv2.VideoCapture(str(tmp_path / "s.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 20
    ok, image = video.read()
    assert ok
    assert image.shape == (480, 640, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "s.jsonl", "s.mp4"]


def test_generation_resumes_and_leaves_what_is_there(tmp_path):
    generate(tmp_path, "test", 1, seconds=1.0)
    (first,) = store.episode_paths(tmp_path, "test")
    written = first.stat().st_mtime_ns
    generate(tmp_path, "test", 2, seconds=1.0)
    paths = store.episode_paths(tmp_path, "test")
    assert [int(path.stem) for path in paths] == [SPLITS["test"], SPLITS["test"] + 1]
    assert first.stat().st_mtime_ns == written
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == [p.name for p in paths]


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(VLJepaError, match="no split 'tset'; choose one of train, test"):
        generate(tmp_path, "tset", 1)


def test_an_episode_is_read_as_it_was_written(tmp_path, episodes):
    path = tmp_path / "test" / "00000001.npz"
    store.save_episode(path, episodes[0])
    back = store.load_episode(path)
    assert back.meta == episodes[0].meta
    assert back.events == episodes[0].events
    np.testing.assert_array_equal(back.frame(3), episodes[0].frame(3))


def test_captions_name_a_change_only_once_it_can_be_seen(episodes):
    for episode in episodes:
        for event in episode.events[1:]:
            assert store.current_event(episode, event.start + 0.1) != event
            assert store.current_event(episode, event.start + 0.26) == event


def test_clips_with_a_kept_combination_are_not_trainable(episodes):
    shown = 0
    for episode in episodes:
        for event in episode.events:
            kept = event.object is not None and held_out(
                *episode.object_names[event.object], event.kind
            )
            middle = (event.start + event.end) / 2
            assert store.trainable(episode, middle, middle + 0.01) != kept
            assert not (kept and store.trainable(episode, 0, SECONDS))
            shown += kept
    assert shown > 0, "choose seeds that show a kept combination"


def test_composition_episodes_prefer_kept_combinations():
    def share(split: str) -> float:
        hits = []
        for seed in range(SPLITS[split], SPLITS[split] + 30):
            for item in begin(seed).spec.objects:
                hits.append(any(held_out(item.colour, item.shape, kind) for kind in OBJECT_KINDS))
        return float(np.mean(hits))

    assert share("composition") == 1.0
    assert share("test") < 0.9


def test_every_skill_is_planned_somewhere():
    assert set(plan._PRODUCES) == set(plan._WEIGHTS)


@pytest.mark.skipif(shutil.which("vljepa") is None, reason="the package is not installed")
def test_the_installed_command_simulates_with_several_processes(tmp_path):
    """Each of them reads the script that was run once more."""
    subprocess.run(
        [str(shutil.which("vljepa")), "data", "--split", "stills", "--episodes", "2",
         "--seconds", "0.25", "--workers", "2", "--folder", str(tmp_path)],
        check=True, timeout=100, capture_output=True,
    )  # fmt: skip
    assert len(store.episode_paths(tmp_path, "stills")) == 2


def test_the_command_draws_the_shipped_video_again(tmp_path):
    """Its first second: the same scene and events, with questions where a clip is full."""
    import json

    from typer.testing import CliRunner

    from vljepa_ros.cli.app import app

    told = CliRunner().invoke(
        app, ["data", "--split", "video", "--folder", str(tmp_path / "v"), "--seconds", "1"]
    )
    assert told.exit_code == 0, told.output
    made = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert made == ["tabletop.json", "tabletop.jsonl", "tabletop.mp4"]
    again = json.loads((tmp_path / "v" / "tabletop.json").read_text())
    shipped = json.loads((VIDEOS / "tabletop.json").read_text())
    for name in ("video", "fps", "seed", "data_version", "objects"):
        assert again[name] == shipped[name], name
    assert again["events"][0] == {**shipped["events"][0], "end": 1.0}
