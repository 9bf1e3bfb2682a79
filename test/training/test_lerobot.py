"""What is learnt from a LeRobot data set: its subtasks at their times, or its tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")
pytest.importorskip("pyarrow", reason="PyArrow is not installed: pip install pyarrow")

from bundles import make_bundle  # noqa: E402
from lerobot_sets import AV1, H264, TOP, Made  # noqa: E402
from typer.testing import CliRunner, Result  # noqa: E402

from vljepa_ros.bundle.spec import ClipSpec, load_bundle  # noqa: E402
from vljepa_ros.cli.app import app  # noqa: E402
from vljepa_ros.recordings.lerobot.dataset import DatasetError  # noqa: E402
from vljepa_ros.training.lines import Choice, RecordingsError, read  # noqa: E402
from vljepa_ros.training.recordings import Recordings, split  # noqa: E402

CLIP = ClipSpec(frames=4, image_size=16, tubelet=2, sample_rate=4.0)
SUBTASKS = ("nothing moves", "a red block")  # words that the tiny bundle knows
FPS = 8


def lamp(episode: int, frame: int) -> np.ndarray:
    """Dark for 2 s, then red; no two episodes are equally bright."""
    picture = np.full((48, 64, 3), 40 + 10 * episode, np.uint8)
    picture[8:40, 16:48] = (230, 20, 20) if frame >= 2 * FPS else (20, 20, 20)
    return picture


def lamps(**fields: object) -> Made:
    """Six episodes of 4 s, in which each of two things is done once."""
    said = {e: [(0.0, SUBTASKS[0]), (2.0, SUBTASKS[1])] for e in range(6)}
    values = {"lengths": (4 * FPS,) * 6, "fps": FPS, "picture": lamp, "said": said,
              "files": ((0, 1, 2), (3, 4, 5)), **fields}  # fmt: skip
    return Made(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "codec"), [(3, AV1), (2, H264)])
def test_subtasks_are_lines_and_their_clips_show_them(
    tmp_path: Path, version: int, codec: tuple[str, dict[str, str]]
) -> None:
    given = read(lamps(codec=codec).write(tmp_path / "set", version), "What is happening?")
    assert given.name == f"set ({TOP})"
    found = [(str(one.source), one.start, one.end, one.answer) for one in given.lines]
    assert found[2:4] == [
        ("Episode 1 of set", 0.0, 2.0, SUBTASKS[0]),
        ("Episode 1 of set", 2.0, 4.0, SUBTASKS[1]),
    ]
    assert len(found) == 12 and {one.query for one in given.lines} == {"What is happening?"}
    recordings = Recordings(given, CLIP)
    assert recordings.lines == given.lines and recordings.left_out == []
    for line in recordings.lines:
        red = line.answer == SUBTASKS[1]
        clip = recordings.cut(line, recordings.newest(line)[-1 if red else 0])
        centre = clip[:, 8, 8].astype(int)
        assert ((centre[:, 0] > 180) == red).all()
    learnt, held = split(recordings.lines, 0)
    assert not {one.source for one in learnt} & {one.source for one in held}  # whole episodes
    assert read(tmp_path / "set", None, Choice(episodes="0:2")).sha256 != given.sha256


def test_tasks_are_learnt_where_they_are_asked_for(tmp_path: Path) -> None:
    root = lamps(said={}).write(tmp_path / "set")
    with pytest.raises(RecordingsError, match=r"has no language at its time .* add --tasks"):
        read(root, None)
    given = read(root, None, Choice(tasks=True))
    assert [(one.start, one.end) for one in given.lines] == [(0.0, 4.0)] * 6
    assert [one.answer for one in given.lines][:2] == ["Pick the red cube", "Open the drawer"]


def test_damaged_episodes_are_named_and_the_others_learnt_from(tmp_path: Path) -> None:
    root = lamps(codec=H264).write(tmp_path / "set", 2)
    videos = sorted(root.glob("videos/**/*.mp4"))
    for video in videos[1:3]:
        video.write_bytes(video.read_bytes()[:-300])
    videos[5].unlink()
    sorted(root.glob("data/**/*.parquet"))[4].unlink()
    recordings = Recordings(read(root, None), CLIP)
    assert {one.source.recording[1] for one in recordings.lines} == {0, 3}
    rows, cut, gone = recordings.left_out
    assert rows.startswith("Episode 4 of set is left out: there is no data/chunk-000/")
    assert cut.startswith("Episodes 1, 2 of set are left out: ") and "cannot be decoded" not in gone
    assert gone.startswith("Episode 5 of set is left out: there is no videos/")
    for video in (videos[0], videos[3]):
        video.unlink()
    with pytest.raises(RecordingsError) as refusal:
        Recordings(read(root, None), CLIP)
    first, *others = str(refusal.value).splitlines()
    assert first == f"set ({TOP}) gives nothing to learn from." and len(others) == 3


def train(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_the_command_learns_a_site_s_words_from_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny", chunk=1, query=False)
    root = lamps(codec=H264).write(tmp_path / "set")
    out = tmp_path / "run"
    done = train(out, "--data", root, "--camera", "top", "--from", bundle, "--steps", 5)
    assert done.exit_code == 0, done.output
    assert "distinct answers" in done.output and f"fine-tuned: {out}" in done.output
    made = CliRunner().invoke(app, ["export", str(out), str(tmp_path / "lamp")])
    assert made.exit_code == 0, made.output
    found = load_bundle(tmp_path / "lamp")
    assert found.source["weights"].endswith(f"with a predictor of set ({TOP})")
    assert set((tmp_path / "lamp/phrases.txt").read_text().splitlines()) == set(SUBTASKS)


def test_what_cannot_be_done_is_a_sentence(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny", chunk=1, query=False)
    root = lamps(image=True, lengths=(4,) * 6).write(tmp_path / "set")
    (tmp_path / "lines.jsonl").write_text("{}")
    run = tmp_path / "run"
    for arguments, said in (
        (
            (run, "--data", root, "--from", bundle, "--camera", "wrist"),
            "no camera 'wrist'; it has: ",
        ),
        (
            (run, "--data", tmp_path / "lines.jsonl", "--from", bundle, "--tasks"),
            "for a LeRobot data set",
        ),
        ((run, "--data", "no/cubes", "--from", bundle), "There is no no/cubes; if it is a "),
        (
            (run, "--camera", "top"),
            "--camera is for a training with --data, and this",
        ),
        (
            (run, "--data", root, "--chunk", 2),
            "would be one with --data: leave it out",
        ),
    ):
        done = train(*arguments)
        assert done.exit_code == 1 and said in str(done.exception)
        assert isinstance(done.exception, (DatasetError, RecordingsError)) or not run.exists()
