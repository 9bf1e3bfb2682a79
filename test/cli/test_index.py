"""`vljepa index`: recordings into moments, equal to live; and what it exports is ROS 2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
pytest.importorskip("rosbags.rosbag2", reason="not installed: pip install rosbags")

import cv2
from bags import LATE, write_bag
from bundles import make_bundle
from json_records import check_record
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import StoragePlugin

import vljepa_ros.recordings.indexing.maker as maker
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.cli.app import app
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.store import MomentStore
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings.indexing.recording import camera_of
from vljepa_ros.recordings.left_out import LeftOut
from vljepa_ros.recordings.offline import bag_frames, perceive

SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND
THRESHOLDS = {"gate": 3.0, "change": 0.05, "watch": 0.5}
CAMERAS = {"/front/image_raw": "front", "/rear/image_raw/compressed": "rear"}


def noise(seed: int) -> np.ndarray:
    """A picture of coarse coloured noise, RGB uint8, that no other seed resembles."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cells.repeat(8, 0).repeat(8, 1)


def images(topics: list[str], seconds: int = 18) -> Iterator[tuple[str, int, np.ndarray]]:
    """10 Hz from every topic; every three seconds, each at its own time, all looks different."""
    for k in range(10 * seconds):
        for i, topic in enumerate(topics):
            yield topic, BEGIN + k * SECOND // 10 + i, noise(100 * i + (k + 7 * i) // 30)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("index") / "tiny", thresholds=THRESHOLDS)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two cameras as sqlite3 and as MCAP."""
    folder = tmp_path_factory.mktemp("bags")
    for plugin in StoragePlugin:
        write_bag(folder / plugin.name.lower(), images(list(CAMERAS)), plugin)
    return folder


def run(bundle: Path, store: Path, *arguments: Any) -> Result:
    given = ["index", "--bundle", bundle, "--store", store, "--robot", "robbie", *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def index(bundle: Path, store: Path, *arguments: Any) -> str:
    """What the command prints; it has to succeed."""
    done = run(bundle, store, *arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.output


def moments(folder: Path) -> list[Moment]:
    with MomentStore(folder, read_only=True) as store:
        return sorted(store.newest(1000), key=lambda m: (m.camera, m.start_ns))


def content(moment: Moment) -> tuple[Any, ...]:
    return (
        moment.id, moment.camera, moment.segment_id, moment.start_ns, moment.end_ns, moment.text,
        moment.embedding.tobytes(), moment.thumbnail,
    )  # fmt: skip


def steps_of(bundle: Path, bag: Path, cameras: dict[str, str]) -> tuple[Runtime, list[Step]]:
    model = Runtime(load_bundle(bundle), parts=("x_encoder", "predictor", "y_encoder", "y_decoder"))
    perceiver = Perceiver(model, list(cameras.values()), Settings())

    def reject(*_: Any) -> None:
        raise AssertionError("a picture that cannot be decoded")

    found = perceive(bag_frames(bag, cameras, LeftOut()), perceiver, reject)
    return model, [step for _, _, steps in found for step in steps]


def test_moments_are_the_segments_of_every_camera(bundle: Path, bags: Path, tmp_path: Path) -> None:
    said = {
        plugin: index(bundle, tmp_path / plugin, bags / plugin) for plugin in ("mcap", "sqlite3")
    }
    kept = moments(tmp_path / "mcap")
    assert [content(m) for m in kept] == [content(m) for m in moments(tmp_path / "sqlite3")]
    model, steps = steps_of(bundle, bags / "mcap", CAMERAS)
    for camera in CAMERAS.values():
        its = [m for m in kept if m.camera == camera]
        found = [s for s in steps if s.camera == camera]
        changes = [s for s in found if s.change is not None]
        assert len(its) == len(changes) > 3
        # A segment begins at the last step of the one before, the first of a stream at its own.
        firsts = [s.segment_start_ns + (s.segment_start_ns < s.stamp_ns) for s in changes]
        for moment, change, first, end in zip(
            its, changes, firsts, [*firsts[1:], 2**63], strict=True
        ):
            inside = [s for s in found if first <= s.stamp_ns < end]
            assert (moment.start_ns, moment.end_ns) == (inside[0].stamp_ns, inside[-1].stamp_ns)
            mean = np.mean([s.embedding for s in inside], axis=0)
            assert np.allclose(moment.embedding, mean / np.linalg.norm(mean), atol=1e-6)
            assert moment.text == model.decode(change.embedding)
            assert moment.confidence == pytest.approx(
                model.confidence(moment.text, change.embedding), abs=1e-5
            )
            assert moment.robot == "robbie" and len(moment.thumbnail) > 100
    for output in said.values():
        assert f"{len(kept)} moments, {len(kept)} of them new" in output
        assert re.search(r"17\.9 s of recordings in [\d.]+ s, [\d.]+ x", output)


def test_a_bundle_of_chunks_without_a_query_is_indexed_and_is_asked_nothing(
    bags: Path, tmp_path: Path
) -> None:
    unasked = make_bundle(tmp_path / "unasked", query=False, chunk=2, thresholds=THRESHOLDS)
    said = index(unasked, tmp_path / "store", bags / "mcap", "--export", tmp_path / "out.mcap")
    kept = moments(tmp_path / "store")
    _, steps = steps_of(unasked, bags / "mcap", CAMERAS)
    assert len(kept) == sum(step.change is not None for step in steps) > 6
    assert {moment.query for moment in kept} == {""} and all(moment.text for moment in kept)
    assert f"{len(kept)} moments" in said
    result = run(unasked, tmp_path / "other", bags / "mcap", "--query", "what is red?")
    assert result.exit_code == 1 and not (tmp_path / "other").exists()
    assert "'queries' must be empty" in " ".join(str(result.exception or result.output).split())


def test_json_has_a_line_for_each_moment_and_a_summary(
    bundle: Path, bags: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mcap").write_text("no bag")
    given = (bags / "mcap", tmp_path / "text.mcap", "--topic", "/front/image_raw", "--json")
    done = run(bundle, tmp_path / "store", *given)
    assert done.exit_code == 1
    *found, summary = [json.loads(line) for line in done.stdout.splitlines()]
    check_record("index: summary", summary)
    kept = moments(tmp_path / "store")
    assert [one["id"] for one in found] == [m.id for m in kept] and len(kept) > 3
    for one, m in zip(found, kept):
        check_record("index: moment", one)
        assert (one["start_ns"], one["end_ns"], one["text"]) == (m.start_ns, m.end_ns, m.text)
        assert one["recording"] == str(bags / "mcap")
    assert (summary["moments"], summary["new_moments"]) == (len(kept), len(kept))
    assert summary["folder"] == str(tmp_path / "store")
    assert [str(tmp_path / "text.mcap") in problem for problem in summary["problems"]] == [True]


def test_indexing_again_adds_nothing_and_forgets_nothing(
    bundle: Path, bags: Path, tmp_path: Path
) -> None:
    index(bundle, tmp_path / "store", bags / "mcap", "--topic", "/front/image_raw")
    first = moments(tmp_path / "store")
    assert {m.camera for m in first} == {"front"} and all(m.text for m in first)
    for more in ("--words", "--no-words"):
        again = index(
            bundle, tmp_path / "store", bags / "mcap", "--topic", "/front/image_raw", more
        )
        assert f"{len(first)} moments, 0 of them new" in again
        assert [content(m) for m in moments(tmp_path / "store")] == [content(m) for m in first]


def test_what_was_finished_stays_and_a_second_run_completes_it(
    bundle: Path, bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    index(bundle, whole, bags / "mcap")

    def broken(*arguments: Any) -> Iterator[Any]:
        for count, found in enumerate(perceive(*arguments)):
            if count == 70:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(maker, "perceive", broken)
    done = run(bundle, cut, bags / "mcap", "--export", tmp_path / "out.mcap")
    assert done.exit_code != 0 and "what was finished is kept" in done.output
    kept = moments(cut)
    assert 0 < len(kept) < len(moments(whole))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]  # no half file
    monkeypatch.undo()
    index(bundle, cut, bags / "mcap", "--export", tmp_path / "out.mcap")
    assert [content(m) for m in moments(cut)] == [content(m) for m in moments(whole)]
    assert (tmp_path / "out.mcap").is_file()


def test_a_video_is_a_camera(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "my video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for k in range(80):
        writer.write(noise(k // 30)[..., ::-1])
    writer.release()
    index(bundle, tmp_path / "store", path)
    kept = moments(tmp_path / "store")
    assert {m.camera for m in kept} == {"my_video"} and len(kept) >= 2
    # Its times are positions in the file: the first whole clip (4 frames at 4 Hz) ends at 0.8 s.
    assert kept[0].start_ns == SECOND * 8 // 10 and kept[-1].end_ns == SECOND * 78 // 10
    start = ("--start", "2026-05-01T14:30:00+00:00")
    index(bundle, tmp_path / "other", path, "--camera", "front", *start)
    kept = moments(tmp_path / "other")
    assert {m.camera for m in kept} == {"front"}
    dated = [(m.start_ns - 1_777_645_800 * SECOND, m.end_ns - m.start_ns) for m in kept]
    undated = moments(tmp_path / "store")
    assert dated == [(m.start_ns, m.end_ns - m.start_ns) for m in undated]
    # Where it lies in the file is known of both, and told beside the date.
    assert [m.position for m in kept] == [m.position for m in undated]
    assert undated[0].position == 0.8
    for name, told in (("store", False), ("other", True)):
        asked = ["recall", "a cube", "--store", str(tmp_path / name), "--bundle", str(bundle)]
        shown = CliRunner().invoke(app, asked).output
        assert (
            ("position" in shown) == told and "0.800 s" in shown and ("2026-05-01" in shown) == told
        )


def test_pictures_that_cannot_be_used_are_said_and_the_rest_is_indexed(
    bundle: Path, tmp_path: Path
) -> None:
    depth = np.ones((48, 64), np.float32)
    both = (
        image
        for topic, stamp, picture in images(["/front/image_raw"], 6)
        for image in ((topic, stamp, picture), ("/depth/image_raw", stamp + 1, depth))
    )
    said = index(bundle, tmp_path / "store", write_bag(tmp_path / "bag", both))
    assert "images of camera 'depth' cannot be used: The encoding '32fc1' is not known" in said
    assert {m.camera for m in moments(tmp_path / "store")} == {"front"}
    short = write_bag(tmp_path / "short", images(["/front/image_raw"], 0))
    with pytest.raises(Exception, match="holds no images"):
        index(bundle, tmp_path / "store", short)
    short = write_bag(tmp_path / "two", list(images(["/front/image_raw"], 1))[:2])
    assert "is too short: the model needs 4 frames" in index(bundle, tmp_path / "store", short)


def test_a_thermal_camera_is_told_of_its_levels(bundle: Path, tmp_path: Path) -> None:
    """Counts of 7000 to 8200 leave nothing of their upper 8 bits."""
    warm = [np.roll(np.linspace(7000, 8200, 48 * 64), 700 * k).astype(np.uint16) for k in range(4)]
    bag = write_bag(
        tmp_path / "bag",
        [
            ("/ir/image_raw", BEGIN + k * SECOND // 10, warm[k // 30].reshape(48, 64))
            for k in range(90)
        ],
    )
    said = index(bundle, tmp_path / "store", bag)
    assert said.count("with values from 7000 to 8200") == 1
    said = index(bundle, tmp_path / "other", bag, "--black", "7000", "--white", "8200")
    assert "with values" not in said
    dull, clear = (
        cv2.imdecode(np.frombuffer(moments(tmp_path / store)[-1].thumbnail, np.uint8), 0)
        for store in ("store", "other")
    )
    assert np.ptp(dull) < 16 < 200 < np.ptp(clear)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say what to index"),
        (["{bags}/mcap", "--black", "9", "--white", "9"], "--white (9) must be above --black (9)"),
        (["{bags}/absent"], "There is no recording"),
        (["{bags}/mcap", "--topic", "/left"], "has no images on '/left', but on /front/image_raw"),
        (["{bags}/mcap", "--camera", "a", "--camera", "b"], "one --camera for each --topic"),
        (["{bags}/mcap", "{bags}/text.mcap"], "not a rosbag2 recording"),
        (["{bags}/mcap", "--camera", "a"], "Give the --topic that --camera is of: "),
        (["{bags}/sub/bags"], "is a folder of bags; name them: "),
        (["{bags}/cut.mcap"], "`ros2 bag reindex` repairs"),
        (["{bags}/mcap", "--export", "{bags}/text.mcap"], "is there already"),
        (["{bags}/mcap", "--export", "{bags}/out.bag"], "must have a name in .mcap"),
        (["{bags}/mcap", "--export", "{bags}/absent/out.mcap"], "There is no folder"),
        (["{bags}/mcap", "--start", "noon"], "--start 'noon' is no time"),
        (["{bags}/mcap", "--query", "what?", "--query", "what?"], "must not name a question twice"),
        (["{bags}/a.mp4", "{bags}/sub/a.mp4"], "2 videos are of camera 'a'"),
        (["{bags}/a.mp4", "--topic", "/front"], "is no bag"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    bundle: Path, bags: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (bags / "text.mcap").write_text("no bag")
    whole = next((bags / "mcap").glob("*.mcap")).read_bytes()
    (bags / "cut.mcap").write_bytes(whole[: len(whole) // 2])
    (bags / "sub" / "bags" / "bag").mkdir(parents=True, exist_ok=True)
    (bags / "sub" / "bags" / "bag" / "cut.mcap").write_bytes(whole[:100])
    for folder in (bags, bags / "sub"):
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(folder / "a.mp4"), codec, 4, (64, 48))
        writer.write(noise(0))
        writer.release()
    done = run(bundle, tmp_path / "store", *(a.format(bags=bags) for a in arguments))
    assert done.exit_code != 0
    assert said in str(done.exception) and "\n" not in str(done.exception)
    assert (bags / "text.mcap").read_text() == "no bag"


@pytest.mark.parametrize(
    ("topic", "camera"),
    [
        ("/front/image_raw", "front"), ("/front/image_raw/compressed", "front"),
        ("/camera/color/image_raw", "camera_color"), ("/image_raw", "camera"),
        ("/robot1/left/image_rect_color", "robot1_left"), ("/cam-1/image", "cam_1"),
        ("/3d/image", "camera_3d"), ("/pictures", "pictures"),
    ],
)  # fmt: skip
def test_a_camera_s_name_comes_from_its_topic(topic: str, camera: str) -> None:
    assert camera_of(topic) == camera


@pytest.fixture(scope="module")
def exported(bundle: Path, bags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    index(bundle, folder / "store", bags / "mcap", "--export", folder / "out.mcap")
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    return folder / "out.mcap"


def test_the_exported_stream_is_that_of_the_engines(
    bundle: Path, bags: Path, exported: Path
) -> None:
    model, steps = steps_of(bundle, bags / "mcap", CAMERAS)
    with AnyReader([exported]) as reader:  # the definitions are in the file
        messages = [
            (c.topic, log_ns, reader.deserialize(data, c.msgtype))
            for c, log_ns, data in reader.messages()
        ]
        latched = next(c for c in reader.connections if c.topic == "/model_info")
        assert latched.ext.offered_qos_profiles[0].durability is QosDurability.TRANSIENT_LOCAL
    of = {t: [(log, m) for topic, log, m in messages if topic == t] for t, _, _ in messages}
    assert len(of["/embeddings"]) == len(steps)
    for (log_ns, message), step in zip(of["/embeddings"], steps, strict=True):
        stamp = message.header.stamp
        assert stamp.sec * SECOND + stamp.nanosec == step.stamp_ns == log_ns - LATE
        assert (message.camera, message.sequence) == (step.camera, step.sequence)
        assert np.allclose(message.embedding, step.embedding, atol=1e-6)
        assert message.header.frame_id == "optical"
        assert message.model_id == model.bundle.model_id
    changes = [s for s in steps if s.change is not None]
    assert len(of["/changes"]) == len(of["/utterances"]) == len(changes)
    for (_, change), (_, words), step in zip(
        of["/changes"], of["/utterances"], changes, strict=True
    ):
        assert step.change is not None
        start = change.segment_start.sec * SECOND + change.segment_start.nanosec
        assert start == step.change.segment_start_ns
        assert change.segment_id == words.segment_id == step.change.segment_id
        assert words.text == model.decode(step.embedding)
    info = of["/model_info"][0][1]
    assert (info.model_id, info.embedding_dim) == (model.bundle.model_id, 32)
    assert messages[0][0] == "/model_info"


def test_the_exported_stream_has_the_picture_of_each_step(
    bundle: Path, bags: Path, exported: Path
) -> None:
    _, steps = steps_of(bundle, bags / "mcap", CAMERAS)
    with AnyReader([exported]) as reader:
        for camera in CAMERAS.values():
            topic = f"/{camera}/thumbnail"
            (connection,) = [c for c in reader.connections if c.topic == topic]
            assert connection.msgtype == "sensor_msgs/msg/CompressedImage"
            qos = connection.ext.offered_qos_profiles[0]
            assert qos.reliability is QosReliability.BEST_EFFORT
            found = [
                (log_ns, reader.deserialize(data, connection.msgtype))
                for _, log_ns, data in reader.messages([connection])
            ]
            stamps = [s.stamp_ns for s in steps if s.camera == camera]
            assert [log_ns - LATE for log_ns, _ in found] == stamps
            for (_, picture), stamp_ns in zip(found, stamps, strict=True):
                stamp = picture.header.stamp
                assert stamp.sec * SECOND + stamp.nanosec == stamp_ns
                assert (picture.header.frame_id, picture.format) == ("optical", "jpeg")
                assert cv2.imdecode(picture.data, cv2.IMREAD_COLOR).shape == (48, 64, 3)


def test_the_exported_messages_are_those_of_the_nodes(
    bundle: Path, bags: Path, exported: Path
) -> None:
    pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
    from rclpy.serialization import deserialize_message, serialize_message
    from sensor_msgs.msg import CompressedImage

    import vljepa_ros.msg as interfaces
    from vljepa_ros.nodes.perception.messages import change_message, embedding_message, info_message

    model, steps = steps_of(bundle, bags / "mcap", CAMERAS)
    step = {(s.camera, s.stamp_ns): s for s in steps}
    seen = set()

    def sent(message: Any) -> Any:
        """As it arrives: numbers of a float32 field are rounded."""
        return deserialize_message(serialize_message(message), type(message))

    with AnyReader([exported]) as reader:
        for connection, log_ns, data in reader.messages():
            name = connection.msgtype.rpartition("/")[2]
            seen.add(connection.topic)
            if name == "CompressedImage":
                assert deserialize_message(data, CompressedImage).format == "jpeg"
                continue
            message = deserialize_message(data, getattr(interfaces, name))
            if name == "ModelInfo":
                assert message == sent(info_message(model, Settings()))
                continue
            one = step[message.camera, log_ns - LATE]
            if name == "SemanticEmbedding":
                assert message == sent(embedding_message(one, model.bundle.model_id, log_ns))
            elif name == "SemanticChange":
                assert one.change is not None
                assert message == sent(change_message(one, one.change, model.bundle.model_id))
            else:
                assert message.text and message.decode_time > 0
    pictures = {f"/{camera}/thumbnail" for camera in CAMERAS.values()}
    assert seen == {"/embeddings", "/changes", "/utterances", "/model_info"} | pictures
