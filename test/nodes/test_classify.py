"""`classify` and the standing labels between processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import NodeProcess, Probe, Stream, domain, noise
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import TEXT_CACHE, Runtime
from vljepa_ros.msg import LabelList, LabelScores, SemanticEmbedding
from vljepa_ros.perception.texts import MOST_TEXTS, softmax
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.srv import Classify, EmbedText
from vljepa_ros.stamps import to_ns

pytestmark = pytest.mark.usefixtures("default_transports")

PATIENCE = 900.0  # seconds: a busy machine must not make a stream old
LABELS = ["cube falls", "ball rolls", "hand picks", "nothing moves"]
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("classify") / "tiny")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Runtime]:
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu")
    yield model
    model.close()


@pytest.fixture(scope="module")
def perception(bundle: Path) -> Iterator[tuple[NodeProcess, Probe]]:
    domain_id = domain()
    node = NodeProcess(
        "perception_node", domain_id, bundle=bundle, cameras=["front", "rear"], max_gap=PATIENCE
    )
    node.wait_for_log("Active.")
    probe = Probe(domain_id)
    yield node, probe
    probe.close()
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def probe(perception: tuple[NodeProcess, Probe]) -> Probe:
    return perception[1]


@pytest.fixture(scope="module")
def camera(probe: Probe) -> Stream:
    return Stream(probe, "front", noise(0))


def classify(probe: Probe, **fields: Any) -> Classify.Response:
    request = Classify.Request(**{"camera": "front", "labels": LABELS, **fields})
    return probe.call(Classify, "classify", request)


def scores_of(
    model: Runtime, embedding: Any, labels: list[str], template: str = "a video of {}"
) -> np.ndarray:
    texts = model.embed_text([template.replace("{}", label) for label in labels])
    return softmax(texts @ np.asarray(embedding, np.float32), model.bundle.temperature)


@pytest.mark.parametrize("template", ["", "{}", "the {} on the table"])
def test_labels_come_best_first_as_the_model_says(
    template: str, camera: Stream, probe: Probe, model: Runtime
) -> None:
    (step,) = camera.step(noise(10))
    answer = classify(probe, label_template=template)
    assert answer.success, answer.message
    wanted = scores_of(model, step.embedding, LABELS, template or "a video of {}")
    order = np.argsort(-wanted, kind="stable")
    assert answer.labels == [LABELS[k] for k in order]
    np.testing.assert_allclose(answer.scores, wanted[order], atol=1e-5)
    np.testing.assert_allclose(
        softmax(np.array(answer.cosines), model.bundle.temperature), wanted[order], atol=1e-4
    )
    assert answer.stamp == step.header.stamp
    alone = classify(probe, label_template=template, labels=[answer.labels[0]])
    assert list(alone.scores) == list(alone.cosines)
    assert alone.cosines[0] == pytest.approx(answer.cosines[0], abs=1e-5)
    for one in answer, alone:
        weak = one.cosines[0] < one.threshold == pytest.approx(model.bundle.thresholds.watch)
        assert ("The best label is a weak match" in one.message) == weak


REFUSED: dict[str, dict[str, Any]] = {
    "There is no label to classify by": {"labels": []},
    "There are 10,000 labels; 1,000 is the most.": {"labels": [str(k) for k in range(10_000)]},
    "The label 'a cube' is there twice": {"labels": ["a cube", "a ball", "a  cube"]},
    "The label is empty": {"labels": ["a cube", " "]},
    "The label has 1,001 characters": {"labels": ["a" * 1001]},
    "The template 'a video' must hold {} once": {"label_template": "a video"},
    "The template '{} and {}' must hold {} once": {"label_template": "{} and {}"},
    "There is no camera 'side'; there are: front, rear (nothing seen yet).": {"camera": "side"},
    "Name one of the cameras": {"camera": ""},
    "Camera 'rear' has not seen a whole clip yet": {"camera": "rear"},
}


@pytest.mark.parametrize("words", list(REFUSED))
def test_what_cannot_be_classified_is_refused_in_a_sentence(
    words: str, camera: Stream, probe: Probe
) -> None:
    answer = classify(probe, **REFUSED[words])
    assert not answer.success
    assert words in answer.message
    assert (answer.labels, len(answer.scores)) == ([], 0)


def test_more_texts_than_are_kept_are_embedded_right(
    camera: Stream, probe: Probe, model: Runtime
) -> None:
    words = sorted(model._text_tokenizer._tokenizer.get_vocab())
    texts = [f"{a} {b}" for a in words for b in words][: TEXT_CACHE + 100]
    embeddings: list[float] = []
    for part in (texts[:MOST_TEXTS], texts[MOST_TEXTS:]):
        answer = probe.call(EmbedText, "embed_text", EmbedText.Request(texts=part))
        assert answer.success, answer.message
        embeddings += answer.embeddings
    np.testing.assert_allclose(
        np.reshape(embeddings, (len(texts), 32)), model.embed_text(texts), atol=1e-6
    )


class Labels:
    """What is heard on `labels` and `label_list`, in the order in which it came."""

    def __init__(self, probe: Probe, camera: Stream) -> None:
        self.probe, self.camera = probe, camera
        self.lists: list[LabelList] = []
        self.scores: list[LabelScores] = []
        self.subscriptions = [
            probe.node.create_subscription(LabelList, "label_list", self.lists.append, LATCHED),
            probe.node.create_subscription(LabelScores, "labels", self.scores.append, 100),
        ]
        probe.wait(lambda: self.lists, "the latched list")

    def close(self) -> None:
        for subscription in self.subscriptions:
            self.probe.node.destroy_subscription(subscription)

    def version(self) -> int:
        return self.lists[-1].version

    def set(self, **parameters: Any) -> LabelList:
        """Set parameters; the list that follows."""
        before = self.version()
        assert self.probe.set("perception", **parameters).successful
        self.probe.wait(lambda: self.version() > before, "another list")
        return self.lists[-1]

    def at(self, stamp: int) -> list[LabelScores]:
        return [s for s in self.scores if to_ns(s.header.stamp) == stamp]

    def step(self, seed: int) -> tuple[SemanticEmbedding, LabelScores]:
        """A step with its scores."""
        (step,) = self.camera.step(noise(seed))
        self.probe.wait(lambda: self.at(self.camera.now), "the scores of a step")
        return step, self.at(self.camera.now)[0]


@pytest.fixture
def labels(probe: Probe, camera: Stream) -> Iterator[Labels]:
    labels = Labels(probe, camera)
    yield labels
    if labels.lists[-1].labels:
        assert labels.set(labels=[""]).labels == []
    labels.close()


def test_standing_labels_are_scored_at_every_step(
    labels: Labels, camera: Stream, model: Runtime
) -> None:
    assert labels.lists[-1].labels == []  # none, and that is said
    before = labels.version()
    told = labels.set(labels=LABELS)
    assert (told.labels, told.label_template) == (LABELS, "a video of {}")
    assert (told.version, told.model_id) == (before + 1, model.bundle.model_id)

    def scored() -> bool:  # a subscription may be discovered late
        camera.step(noise(20))
        return bool(labels.scores)

    labels.probe.wait(scored, "the first scores")
    for k in range(5):
        step, scores = labels.step(21 + k)
        wanted = scores_of(model, step.embedding, LABELS)
        np.testing.assert_allclose(scores.scores, wanted, atol=1e-5)
        shares = softmax(np.array(scores.cosines), model.bundle.temperature)
        np.testing.assert_allclose(shares, wanted, atol=1e-4)
        assert scores.best == LABELS[int(wanted.argmax())]
        assert (scores.camera, scores.list_version) == ("front", told.version)
        assert scores.model_id == model.bundle.model_id
        assert scores.header == step.header


def test_one_label_alone_is_no_certainty(labels: Labels, model: Runtime) -> None:
    labels.set(labels=LABELS[:1])
    step, scores = labels.step(28)
    (text,) = model.embed_text([f"a video of {LABELS[0]}"])
    assert list(scores.scores) == list(scores.cosines)
    assert scores.cosines[0] == pytest.approx(float(text @ step.embedding), abs=1e-5)


def test_scores_carry_the_version_they_were_computed_with(
    labels: Labels, camera: Stream, model: Runtime
) -> None:
    sets = [
        [f"{a} {b}" for a in ("red", "green", "blue") for b in ("cube", "ball", "block")][: 3 + k]
        for k in range(6)
    ]
    for k, wanted in enumerate(sets):
        assert labels.probe.set("perception", labels=wanted).successful
        camera.step(noise(30 + k))  # may be scored by either
    labels.probe.wait(lambda: labels.lists[-1].labels == sets[-1], "the last list")
    labels.step(40)
    versions = [told.version for told in labels.lists]
    assert versions == list(range(versions[0], versions[0] + len(versions)))
    by_version = {told.version: told.labels for told in labels.lists}
    for scores in labels.scores:
        names = by_version[scores.list_version]
        embedding = camera.probe.at("front", to_ns(scores.header.stamp))[0].embedding
        np.testing.assert_allclose(scores.scores, scores_of(model, embedding, names), atol=1e-5)


def test_the_template_changes_while_running(labels: Labels, model: Runtime) -> None:
    labels.set(labels=LABELS)
    told = labels.set(label_template="one {} left")
    assert told.label_template == "one {} left"
    step, scores = labels.step(50)
    np.testing.assert_allclose(
        scores.scores, scores_of(model, step.embedding, LABELS, "one {} left"), atol=1e-5
    )
    assert labels.set(label_template="").label_template == "a video of {}"


def test_only_the_first_query_is_scored(labels: Labels, camera: Stream, probe: Probe) -> None:
    labels.set(labels=LABELS)
    labels.step(60)
    assert probe.set("perception", queries=["What is happening?", "Who is there?"]).successful
    try:
        probe.wait(lambda: len(probe.infos[-1].queries) == 2, "both queries")
        camera.step(noise(61))
        camera.step(noise(62), queries=2)
        second = camera.now
        labels.step(63)  # had there been more scores at `second`, they would have come before
        assert len(labels.at(second)) == 1
    finally:
        assert probe.set("perception", queries=[""]).successful
    camera.step(noise(64))


def test_wrong_labels_are_refused_and_nothing_changes(labels: Labels, probe: Probe) -> None:
    labels.set(labels=LABELS)
    version = labels.version()
    for values, words in (
        ({"labels": ["a", "b", "a"]}, "The label 'a' is there twice"),
        ({"labels": [str(k) for k in range(1001)]}, "There are 1,001 labels"),
        ({"labels": ["a\x07"]}, "control character U+0007"),
        ({"label_template": "no place"}, "must hold {} once"),
    ):
        result = probe.set("perception", **values)
        assert not result.successful
        assert words in result.reason
    assert probe.set("perception", gate_max_age=11.0).successful  # another parameter
    assert probe.set("perception", gate_max_age=10.0).successful
    labels.step(70)
    assert labels.version() == version


def test_a_latecomer_hears_the_list(labels: Labels, probe: Probe, camera: Stream) -> None:
    labels.set(labels=LABELS)
    late = Labels(probe, camera)
    assert late.lists[0] == labels.lists[-1]
    late.close()


def test_thumbnails_only_while_somebody_subscribes(camera: Stream, probe: Probe) -> None:
    camera.step(noise(80, 640, 480))
    probe.wait_for_health("perception: stages", lambda v: "publish p50 (ms)" in v)
    assert "thumbnail p50 (ms)" not in probe.values("perception: stages")
    heard: list[Any] = []
    subscriptions = [
        probe.node.create_subscription(
            CompressedImage, "front/thumbnail", heard.append, qos_profile_sensor_data
        ),
        probe.node.create_subscription(SemanticEmbedding, "embeddings", heard.append, 100),
    ]

    def arrived() -> bool:
        camera.step(noise(81, 640, 480))
        return any(isinstance(m, CompressedImage) for m in heard)

    probe.wait(arrived, "a thumbnail")
    pictures = [noise(82 + k, 640, 480) for k in range(4)]
    for picture in pictures:
        camera.step(picture)

        def both() -> bool:
            return len([m for m in heard if to_ns(m.header.stamp) == camera.now]) == 2

        probe.wait(both, "thumbnail and embedding")
        (small,) = [
            m for m in heard
            if isinstance(m, CompressedImage) and to_ns(m.header.stamp) == camera.now
        ]  # fmt: skip
        assert (small.format, small.header.frame_id) == ("jpeg", "optical")
        assert bytes(small.data) == thumbnail(picture)
        assert cv2.imdecode(np.frombuffer(small.data, np.uint8), 1).shape == (240, 320, 3)
    for subscription in subscriptions:
        probe.node.destroy_subscription(subscription)
