"""The standing labels of the perception node: scored at every step of the first standing query.

Invariant: scores carry the version of the list that they were computed with, and that list was
published before them. Versions of one process count up by one and are never used twice.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header

from vljepa_ros.msg import LabelList, LabelScores
from vljepa_ros.perception.perceiver import Step
from vljepa_ros.perception.texts import checked_template, checked_texts, scores_of
from vljepa_ros.ros.lifecycle import ModelNode
from vljepa_ros.ros.messages import floats, to_time

from .stream import LiveStream

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@dataclass(frozen=True)
class _Wanted:
    """What the parameters ask for. `template`: empty: the bundle's."""

    labels: tuple[str, ...]
    template: str


@dataclass(frozen=True)
class _Standing:
    """What is scored. `texts`: the labels' embeddings, `[N, E]`."""

    version: int
    labels: tuple[str, ...]
    texts: np.ndarray


class StandingLabels:
    """Publishes `label_list`, latched, and `labels`."""

    def __init__(self, node: ModelNode, stream: LiveStream) -> None:
        self._node = node
        self._stream = stream
        self._version = 0
        self._wanted: _Wanted | None = None  # of the executor's thread
        self._standing: _Standing | None = None  # of the worker's

    def check(self, values: Mapping[str, Any]) -> _Wanted:
        """What parameter values ask for; QuestionError, a sentence, where they cannot be had."""
        labels = checked_texts("label", [text for text in values["labels"] if text.strip()])
        template = values["label_template"]
        return _Wanted(labels, checked_template(template) if template.strip() else "")

    def setup(self, values: Mapping[str, Any]) -> None:
        """Make the publishers, and let the labels of the parameters stand."""
        node = self._node
        self._scores = node.create_lifecycle_publisher(LabelScores, "labels", 10)
        self._list = node.create_publisher(LabelList, "label_list", _LATCHED)
        self.apply(values)

    def teardown(self) -> None:
        """Take back what `setup` made."""
        self._node.destroy_lifecycle_publisher(self.__dict__.pop("_scores", None))
        self._node.destroy_publisher(self.__dict__.pop("_list", None))
        self._wanted = self._standing = None

    def apply(self, values: Mapping[str, Any]) -> None:
        """Let other labels stand, soon: when the worker has embedded them in between steps."""
        wanted, worker = self.check(values), self._node.worker
        if worker is not None and hasattr(self, "_list") and wanted != self._wanted:
            self._wanted = wanted
            future = self._node.promise()
            future.add_done_callback(lambda done: self._say(wanted, done))
            worker.submit(lambda: self._embed(wanted), future)

    def publish(self, steps: Sequence[Step]) -> None:
        """The scores of steps; in the worker."""
        standing, model = self._standing, self._stream.model
        if standing is None or not standing.labels or not steps:
            return
        assert model is not None
        bundle, started = model.bundle, time.monotonic()
        for step in steps:
            cosines = standing.texts @ step.embedding
            self._scores.publish(
                LabelScores(
                    header=Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id),
                    camera=step.camera,
                    model_id=bundle.model_id,
                    list_version=standing.version,
                    best=standing.labels[int(cosines.argmax())],
                    scores=floats(scores_of(cosines, bundle.temperature)),
                    stream_id=self._stream.id,
                    cosines=floats(cosines),
                )
            )
        self._stream.stages.lap("labels", started)

    def _embed(self, wanted: _Wanted) -> Generator[None, None, None]:
        """Embed the labels and let them stand, unless others are wanted by then."""
        model = self._stream.model
        assert model is not None
        template = wanted.template or model.bundle.label_template
        sentences = [template.replace("{}", label) for label in wanted.labels]
        texts = yield from model.embed_text_in_pieces(sentences)
        if wanted is not self._wanted:
            return
        self._version += 1
        self._standing = _Standing(self._version, wanted.labels, texts)
        self._list.publish(
            LabelList(
                model_id=model.bundle.model_id,
                version=self._version,
                labels=list(wanted.labels),
                label_template=template,
            )
        )

    def _say(self, wanted: _Wanted, done: Any) -> None:
        """Why labels do not stand, where the engine fails over them."""
        error = done.exception()
        if error is not None and wanted is self._wanted:
            self._wanted = None  # so that they can be set once more
            self._node.get_logger().error(f"The labels do not stand: {error}")
