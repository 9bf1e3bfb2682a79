"""The perception and decoder nodes as two processes, and everything they promise to a graph."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import rclpy
from bundles import make_bundle
from graph import SECOND, NodeProcess, Probe, Stream, compressed, domain, image, noise
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.ros.process import FASTDDS_VARIABLE
from vljepa_ros.srv import Decode, EmbedText
from vljepa_ros.stamps import to_ns

pytestmark = pytest.mark.usefixtures("default_transports")

THRESHOLDS = {"gate": 3.0, "change": 0.05, "watch": 0.5}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("graph") / "tiny", thresholds=THRESHOLDS)


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def perception(bundle: Path, domain_id: int) -> Iterator[NodeProcess]:
    node = NodeProcess(
        "perception_node",
        domain_id,
        bundle=bundle,
        cameras=["camera", "jpeg", "absent", "odd", "strict", "large"],
        jpeg__transport="compressed",
        **{"qos_overrides./strict/image_raw.subscription.reliability": "reliable"},
    )
    yield node
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def decoder(bundle: Path, domain_id: int) -> Iterator[NodeProcess]:
    node = NodeProcess("decoder_node", domain_id, bundle=bundle)
    yield node
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def probe(perception: NodeProcess, decoder: NodeProcess, domain_id: int) -> Iterator[Probe]:
    probe = Probe(domain_id)
    perception.wait_for_log("Active.")
    decoder.wait_for_log("Active.")
    yield probe
    probe.close()


@pytest.fixture(scope="module")
def camera(probe: Probe) -> Stream:
    stream = Stream(probe, "camera", noise(0))

    def said() -> bool:
        """Discovery may take seconds, and what is published before is not sent again."""
        stream.restart(noise(0))
        return bool(probe.utterances)

    probe.wait(said, "the first words")
    return stream


def test_stamps_and_frame_ids_are_the_images(camera: Stream) -> None:
    first = camera.step(noise(1))[0]
    for k in range(2, 8):
        camera.frame_id = f"frame{k}"
        (message,) = camera.step(noise(k))
        assert to_ns(message.header.stamp) == camera.now
        assert message.header.frame_id == f"frame{k}"
        assert to_ns(message.window_start) == camera.now - 3 * SECOND // 4
        assert message.sequence == first.sequence + k - 1
        assert message.query == "What is happening?"
        assert not message.reused
        assert np.linalg.norm(message.embedding) == pytest.approx(1, abs=1e-5)
    camera.frame_id = "optical"


def test_embeddings_are_those_of_the_model(camera: Stream, bundle: Path) -> None:
    from vljepa_ros.inference.preprocess import prepare

    pictures = [noise(20 + k) for k in range(4)]
    for picture in pictures:
        (message,) = camera.step(picture)
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu")
    clip = np.stack([prepare(picture, 32) for picture in pictures])[None]
    wanted = model.predict(model.encode(clip), ["What is happening?"])[0, 0]
    np.testing.assert_allclose(message.embedding, wanted, atol=1e-5)
    assert message.model_id == model.bundle.model_id


def test_model_info_is_latched(probe: Probe, bundle: Path, domain_id: int) -> None:
    late = Probe(domain_id)
    late.wait(lambda: late.infos, "model_info, published before the probe was there")
    info = late.infos[-1]
    late.close()
    assert info.model_id == load_bundle(bundle).model_id
    assert (info.embedding_dim, info.clip_frames, info.image_size) == (32, 4, 32)
    assert (info.sample_rate, info.backend, info.precision) == (4.0, "onnxruntime-cpu", "fp32")
    assert info.queries == ["What is happening?"]


def test_a_frozen_picture_is_silence(camera: Stream, probe: Probe, decoder: NodeProcess) -> None:
    camera.restart(noise(30))
    began = camera.begin
    messages = [camera.step(noise(30))[0] for _ in range(60)]
    assert all(m.reused for m in messages[4:20])  # before the forced refresh
    assert sum(not m.reused for m in messages) <= 1 + 60 // 40  # one in gate_max_age
    # A change is the sentinel: had there been others, they would have come before it.
    frozen = camera.now

    def changed() -> bool:
        camera.step(noise(31))
        return any(to_ns(c.header.stamp) > frozen for c in probe.changes)

    probe.wait(changed, "the change after the silence")
    changes = [c for c in probe.changes if began <= to_ns(c.header.stamp) <= frozen]
    assert len(changes) == 1
    sentinel = next(c for c in probe.changes if to_ns(c.header.stamp) > frozen)
    assert sentinel.previous_segment_id == changes[0].segment_id
    assert sentinel.change_score >= 1.0
    assert frozen <= to_ns(sentinel.segment_start) < to_ns(sentinel.header.stamp)
    probe.wait(
        lambda: any(u.segment_id == sentinel.segment_id for u in probe.utterances),
        f"the words on the sentinel {sentinel.segment_id}: "
        f"{[(u.camera, u.segment_id) for u in probe.utterances]}\n{decoder.log}",
    )
    said = [u for u in probe.utterances if began <= to_ns(u.header.stamp) <= frozen]
    assert [u.segment_id for u in said] == [changes[0].segment_id]


def test_words_come_on_changes_only(camera: Stream, probe: Probe, bundle: Path) -> None:
    changes = len(probe.changes)
    camera.restart(noise(40))  # a stream that begins is a change
    probe.wait(lambda: len(probe.changes) > changes, "a change")
    model = Runtime(load_bundle(bundle), parts=("y_decoder", "y_encoder"))
    for change in probe.changes[changes:]:
        key = (change.camera, change.segment_id, change.query)
        probe.wait(
            lambda key=key: any((u.camera, u.segment_id, u.query) == key for u in probe.utterances),
            f"words on {key}",
        )
        (words,) = [
            u for u in probe.utterances if (u.camera, u.segment_id, u.query) == key
        ]  # fmt: skip
        embedding = np.asarray(change.embedding, np.float32)
        place = (change.camera, to_ns(change.header.stamp))
        probe.wait(lambda place=place: bool(probe.at(*place)), f"the embedding of {place}")
        assert [e.embedding for e in probe.at(*place)] == [change.embedding]
        assert words.text == model.decode(embedding)
        assert words.confidence == pytest.approx(model.confidence(words.text, embedding), abs=1e-5)
        assert words.header.stamp == change.header.stamp
        assert words.segment_start == change.segment_start
        assert words.decode_time > 0


def test_time_that_jumps_back_begins_anew(camera: Stream, probe: Probe) -> None:
    (before,) = camera.step(noise(50))
    restarts = int(_fresh(probe, "camera")["restarts"])
    camera.now -= 100 * SECOND
    begin = camera.now + SECOND // 4

    def answered() -> bool:
        camera.send(image(noise(51), camera.tick()))
        return any(begin <= to_ns(e.header.stamp) <= camera.now for e in probe.of("camera")[-3:])

    probe.wait(answered, "an embedding after the jump")
    after = next(e for e in probe.of("camera") if e.sequence == before.sequence + 1)
    assert to_ns(after.window_start) >= begin
    assert after.segment_id == before.segment_id + 1
    probe.wait_for_health("perception: camera camera", lambda v: int(v["restarts"]) > restarts)


BAD = {
    "a stamp of zero": lambda stamp: image(noise(1), 0),
    "encoding 'rgb161'": lambda stamp: image(noise(1), stamp, encoding="rgb161"),
    "step of 100 bytes": lambda stamp: image(noise(1), stamp, step=100),
    "data hold 7 bytes": lambda stamp: image(noise(1), stamp, data=bytes(7)),
    "0 x 48 pixels": lambda stamp: image(noise(1), stamp, width=0),
}


@pytest.mark.parametrize("words", list(BAD))
def test_a_bad_image_is_one_message(
    words: str, camera: Stream, probe: Probe, perception: NodeProcess
) -> None:
    bad = int(_fresh(probe, "camera")["bad frames"])
    probe.health.clear()

    def thrice() -> bool:
        camera.send(BAD[words](camera.tick()))  # one that the next overtakes is not seen
        health = probe.health.get("perception: camera camera")
        return health is not None and int(probe.values(health.name)["bad frames"]) >= bad + 3

    probe.wait(thrice, lambda: f"three bad frames; the log:\n{perception.log}")
    perception.wait_for_log(words)
    assert perception.log.count(words) == 1
    camera.restart(noise(60))  # nothing else breaks


def test_a_size_that_changes_is_one_message(camera: Stream, perception: NodeProcess) -> None:
    for k in range(3):
        camera.step(noise(k))
        camera.step(noise(k, 80, 60))
    perception.wait_for_log("changed from 64 x 48 to 80 x 60")
    assert perception.log.count("image size changed") == 1


def test_compressed_images(probe: Probe, perception: NodeProcess) -> None:
    def jpeg(stamp: int) -> CompressedImage:
        return compressed(cv2.imencode(".jpg", noise(3)[..., ::-1])[1].tobytes(), stamp)

    start, ticks = probe.fresh_time(), 0
    publisher = probe.publisher("jpeg/image_raw/compressed", CompressedImage)

    def answered() -> bool:
        nonlocal ticks
        ticks += 1
        publisher.publish(jpeg(start + ticks * SECOND // 4))
        return bool(probe.of("jpeg"))

    probe.wait(answered, "an embedding of a jpeg")
    for _ in range(3):
        ticks += 1
        broken = jpeg(start + ticks * SECOND // 4)
        broken.data = broken.data[:-20]
        publisher.publish(broken)
        probe.wait_for_health("perception: camera jpeg", lambda v: True)
    perception.wait_for_log("JPEG image is cut short")
    assert perception.log.count("JPEG image is cut short") == 1
    before = len(probe.of("jpeg"))
    probe.wait(lambda: answered() and len(probe.of("jpeg")) > before, "embeddings after it")


def test_no_camera_names_the_misfit(probe: Probe, perception: NodeProcess, domain_id: int) -> None:
    perception.wait_for_log("Camera 'absent': nobody publishes '/absent/image_raw'")
    assert "(sensor_msgs/msg/Image)" in perception.log
    probe.publisher("odd/image_raw", CompressedImage)
    perception.wait_for_log("/probe publishes it as sensor_msgs/msg/CompressedImage")
    name = "perception: camera odd"
    probe.wait(
        lambda: name in probe.health and "publishes it as" in probe.health[name].message,
        "the misfit's status",
    )
    assert probe.health[name].level == b"\x03"  # STALE
    assert "'/odd/image_raw' (sensor_msgs/msg/Image)" in probe.health[name].message
    probe.publisher("strict/image_raw")
    perception.wait_for_log("the QoS of /probe does not match: ERROR: Best effort publisher")


@pytest.mark.skipif(
    not rclpy.get_rmw_implementation_identifier().startswith("rmw_fastrtps"), reason="of Fast DDS"
)
def test_frames_that_are_lost_say_what_to_do(
    probe: Probe, perception: NodeProcess, domain_id: int
) -> None:
    """A driver in an ordinary shell, with images larger than Fast DDS's shared memory."""
    script = (
        "import time, rclpy\n"
        "from rclpy.qos import qos_profile_sensor_data\n"
        "from sensor_msgs.msg import Image\n"
        "rclpy.init()\n"
        "node = rclpy.create_node('driver')\n"
        "publisher = node.create_publisher(Image, 'large/image_raw', qos_profile_sensor_data)\n"
        "while True:\n"
        "    publisher.publish(Image(data=bytes(6_000_000)))\n"
        "    time.sleep(0.2)\n"
    )
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain_id)}
    environment.pop(FASTDDS_VARIABLE, None)
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        perception.wait_for_log(f"process with {FASTDDS_VARIABLE}=")
    finally:
        driver.kill()
        driver.wait()


def test_parameters_answer_and_refuse(camera: Stream, probe: Probe) -> None:
    assert probe.set("perception", gate_threshold=7.5).successful
    assert probe.get("perception", "gate_threshold").double_value == 7.5
    assert probe.set("perception", gate_threshold=-1.0).successful
    for values, words in (
        ({"gate_threshold": 300.0}, "gate_threshold"),
        ({"rate": 1e6}, "rate"),
        ({"bundle": "other"}, "read-only"),
        ({"queries": ["Who?", "Who?"]}, "twice"),
        ({"camera__rate": -1.0}, "camera.rate"),
    ):
        result = probe.set("perception", **values)
        assert not result.successful
        assert words in result.reason
    assert probe.get("perception", "queries").string_array_value == [""]


def test_queries_change_while_running(camera: Stream, probe: Probe) -> None:
    queries = ["What is happening?", "Who is there?"]
    assert probe.set("perception", queries=queries).successful
    try:
        probe.wait(lambda: probe.infos[-1].queries == queries, "model_info with both")
        camera.step(noise(70))
        first, second = camera.step(noise(71), queries=2)
        assert [first.query, second.query] == queries
        assert not np.allclose(first.embedding, second.embedding, atol=1e-3)
    finally:
        assert probe.set("perception", queries=[""]).successful
    camera.step(noise(72))
    assert len(camera.step(noise(73))) == 1


def test_rates_change_while_running(camera: Stream, probe: Probe) -> None:
    assert probe.set("perception", camera__rate=2.0).successful
    try:
        steps = len(probe.of("camera"))
        for k in range(16):  # 4 seconds of stream; a step on every second tick
            stamp = camera.tick()
            message = image(noise(k), stamp)
            if stamp % (SECOND // 2) == 0:
                camera.answer(message)
            else:
                camera.send(message)
        assert len(probe.of("camera")) - steps == 8
    finally:
        assert probe.set("perception", camera__rate=0.0).successful
    camera.step(noise(80))


def test_embed_text(probe: Probe, bundle: Path) -> None:
    texts = ["the red cube falls", "nothing moves"]
    answer = probe.call(EmbedText, "embed_text", EmbedText.Request(texts=texts))
    assert answer.success, answer.message
    model = Runtime(load_bundle(bundle))
    assert (answer.model_id, answer.embedding_dim) == (model.bundle.model_id, 32)
    np.testing.assert_allclose(
        np.reshape(answer.embeddings, (2, 32)), model.embed_text(texts), atol=1e-6
    )
    empty = probe.call(EmbedText, "embed_text", EmbedText.Request())
    assert not empty.success
    assert "at least one" in empty.message
    for refused, words in (
        (["a cube"] * 1001, "There are 1,001 texts; 1,000 is the most."),
        (["a cube", "a" * 1001], "The text has 1,001 characters; 1,000 is the most."),
        (["a cube", " "], "The text is empty"),
        (["a\x07cube"], "control character U+0007"),
    ):
        answer = probe.call(EmbedText, "embed_text", EmbedText.Request(texts=refused))
        assert not answer.success and not answer.embeddings
        assert words in answer.message
    again = probe.call(EmbedText, "embed_text", EmbedText.Request(texts=["a cube"] * 2))
    assert again.success and again.embeddings[:32] == again.embeddings[32:]


def test_decode(probe: Probe, bundle: Path) -> None:
    model = Runtime(load_bundle(bundle), parts=("y_decoder", "y_encoder"))
    embedding = np.eye(32, dtype=np.float32)[3]

    def ask(model_id: str, values: np.ndarray) -> Decode.Response:
        request = Decode.Request(model_id=model_id, embedding=values.tolist())
        return probe.call(Decode, "decode", request)

    answer = ask(model.bundle.model_id, embedding)
    assert answer.success, answer.message
    assert answer.text == model.decode(embedding)
    assert answer.confidence == pytest.approx(model.confidence(answer.text, embedding), abs=1e-5)
    for model_id, values, words in (
        ("other", embedding, "'other'"),
        ("", embedding[:5], "5 numbers instead of 32"),
        ("", embedding * np.nan, "not finite"),
        ("", embedding * 0, "has the length 0 instead of 1"),
        ("", embedding * 1e38, "has the length 1e+38 instead of 1"),
        ("", np.full(32, 1e38), "has the length 5.66e+38 instead of 1"),
        ("", embedding * 1.1, "has the length 1.1 instead of 1"),
    ):
        answer = ask(model_id, values)
        assert not answer.success
        assert words in answer.message


def test_overlay_only_while_somebody_subscribes(
    camera: Stream, probe: Probe, perception: NodeProcess
) -> None:
    camera.step(noise(90))
    probe.wait_for_health("perception: stages", lambda v: "publish p50 (ms)" in v)
    assert "overlay p50 (ms)" not in probe.values("perception: stages")
    drawn: list[Image] = []
    subscription = probe.node.create_subscription(
        Image, "overlay", drawn.append, qos_profile_sensor_data
    )

    def arrived() -> bool:
        camera.step(noise(91))
        return bool(drawn)

    probe.wait(arrived, "an overlay")
    probe.node.destroy_subscription(subscription)
    message = drawn[-1]
    assert (message.encoding, message.width, message.height) == ("rgb8", 64, 48)
    assert message.header.frame_id == "optical"
    picture = np.frombuffer(message.data, np.uint8).reshape(48, 64, 3)
    assert not np.array_equal(picture, noise(91))


def test_diagnostics_tell_the_noise_that_the_gate_has_learnt(camera: Stream, probe: Probe) -> None:
    name, key, unknown = "perception: camera camera", "noise (grey levels)", "not learnt yet"
    for _ in range(16):
        camera.step(noise(94))
    probe.wait_for_health(name, lambda v: v[key] != unknown and 0 <= float(v[key]) < 255)
    camera.step(np.zeros((24, 32, 3), np.uint8))  # another camera
    probe.wait_for_health(name, lambda v: v[key] == unknown)


def test_diagnostics(camera: Stream, probe: Probe) -> None:
    camera.step(noise(95))
    values = _fresh(probe, "camera")
    for key in ("rate in (Hz)", "rate out (Hz)", "frame age (s)", "dropped", "encodes skipped"):
        assert float(values[key]) == float(values[key])  # a number
    assert int(values["steps"]) == int(values["encodes"]) + int(values["encodes skipped"])
    skipped = 100 * int(values["encodes skipped"]) / int(values["steps"])
    assert float(values["encodes skipped (%)"]) == pytest.approx(skipped, abs=1e-3)
    for name in ("perception: engine x_encoder", "perception: engine predictor"):
        engine = probe.values(name)
        assert (engine["backend"], engine["precision"]) == ("onnxruntime-cpu", "fp32")
        assert 0 < float(engine["latency p50 (ms)"]) <= float(engine["latency p99 (ms)"])
    probe.wait_for_health("decoder: camera camera", lambda v: int(v["decodes"]) > 0)
    probe.wait_for_health("decoder: changes", lambda v: v["dropped"] == "0")
    assert probe.health["perception: state"].message == "active"


def _fresh(probe: Probe, camera: str) -> dict[str, str]:
    """The camera's diagnostics, as of now."""
    name = f"perception: camera {camera}"
    probe.wait_for_health(name, lambda v: True)
    return probe.values(name)
