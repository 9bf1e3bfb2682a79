"""The decoder node: changes in, words out.

Invariant: it decodes only changes and requests, in the worker's thread, and of what the bundle
does not know it says nothing, or that. Changes wait in a bounded
queue; where it overflows, the oldest is dropped, counted and reported: never lost silently.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from typing import Any

import numpy as np

from vljepa_ros.client.source import OTHERS, Sources
from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.msg import ModelInfo, SemanticChange, Utterance
from vljepa_ros.ros.diagnostics import ERROR, WARN, Status
from vljepa_ros.ros.engines import Engines
from vljepa_ros.ros.lifecycle import AUTOSTART, ENGINES, ModelNode
from vljepa_ros.ros.parameters import Spec
from vljepa_ros.srv import Decode

QUEUE = 64  # changes
UNIT = 0.01  # that the length of an embedding may differ from 1, as half precision makes it


class DecoderNode(ModelNode):
    """Y-decoder and Y-encoder; `decode`."""

    specs = (
        AUTOSTART,
        *ENGINES,
        Spec("unfamiliar", "", "What is said of a change to what the bundle does not know; empty: "
             "nothing.", live=True),
    )  # fmt: skip

    def __init__(self, **options: Any) -> None:
        self.engines = Engines(self, ("y_decoder", "y_encoder"), lambda model: None)
        self.decoded: Counter[str] = Counter()  # utterances by camera
        self.dropped = 0  # changes that the queue had no room for
        self.refused = 0  # changes that cannot be decoded
        self.unfamiliar = 0  # changes to what the bundle does not know
        self._queue: deque[SemanticChange] = deque()
        self._lock = threading.Lock()
        self._reported: set[str] = set()
        self._seen = (0, 0, 0)
        super().__init__("decoder", **options)
        self._sources = Sources(self.get_logger().warning)
        self.create_subscription(ModelInfo, "model_info", self._sources.on_info, 10)
        self.serve(Decode, "decode", self._decode)

    # -------------------------------------------------------------- hooks

    def load(self) -> None:
        """Open the engines."""
        self.engines.open()

    def setup(self) -> None:
        """Make the publisher."""
        assert self.model is not None
        self._utterances = self.create_lifecycle_publisher(Utterance, "utterances", 10)
        self.get_logger().info(f"Loaded {self.model.bundle.model_id}.")

    def start(self) -> None:
        """Listen for changes."""
        self._changes = self.create_subscription(SemanticChange, "changes", self._on_change, 10)

    def stop(self) -> None:
        """Listen no longer; changes that wait are not decoded any more."""
        if hasattr(self, "_changes"):
            self.destroy_subscription(self._changes)
            del self._changes
        with self._lock:
            waiting = len(self._queue)
            self._queue.clear()
        if waiting:
            self.dropped += waiting
            self.get_logger().warning(f"{waiting} changes that waited are not decoded any more.")

    def teardown(self) -> None:
        """Take back what `setup` made."""
        self.destroy_lifecycle_publisher(self.__dict__.pop("_utterances", None))

    def unload(self) -> None:
        """Close the engines."""
        self.engines.close()

    @property
    def model(self) -> Runtime | None:
        """The engines that run now."""
        return self.engines.model

    # -------------------------------------------------------------- changes

    @property
    def waiting(self) -> int:
        """Changes in the queue."""
        return len(self._queue)

    def _on_change(self, change: SemanticChange) -> None:
        if not self._sources.takes(change):
            return
        with self._lock:
            full = len(self._queue) >= QUEUE
            if full:
                self._queue.popleft()
            self._queue.append(change)
        if full:
            self.dropped += 1
            self._warn_once(f"{QUEUE} changes wait for the decoder; the oldest is dropped.")
        if self.worker is not None:
            self.worker.wake()

    def work(self) -> bool:
        """Decode the change that has waited longest."""
        with self._lock:
            change = self._queue.popleft() if self._queue else None
        model = self.model
        if change is None or model is None:
            return False
        started = time.monotonic()
        try:
            if _is_unfamiliar(model, change):
                self.unfamiliar += 1
                text, confidence = str(self.get_parameter("unfamiliar").value).strip(), 0.0
                if not text:
                    return True
            else:
                text, confidence = _words(model, change.model_id, np.asarray(change.embedding))
        except VLJepaError as error:
            self.refused += 1
            self._warn_once(f"A change of camera '{change.camera}' cannot be decoded: {error}")
            return True
        self._utterances.publish(
            Utterance(
                header=change.header,
                camera=change.camera,
                query=change.query,
                model_id=change.model_id,
                segment_id=change.segment_id,
                segment_start=change.segment_start,
                text=text,
                confidence=confidence,
                decode_time=time.monotonic() - started,
                stream_id=change.stream_id,
                familiarity=change.familiarity,
            )
        )
        self.decoded[change.camera] += 1
        return True

    async def _decode(self, request: Decode.Request, response: Decode.Response) -> Decode.Response:
        embedding = np.asarray(request.embedding)
        try:
            if self.state != "active":
                name = self.get_fully_qualified_name()
                raise VLJepaError(f"{name} is {self.state}; activate it, then ask again.")
            response.text, response.confidence = await self.in_worker(
                lambda: self._answer(request.model_id, embedding)
            )
        except VLJepaError as error:
            response.message = str(error)
            return response
        response.success = True
        return response

    def _answer(self, model_id: str, embedding: np.ndarray) -> tuple[str, float]:
        """The words of a request, by the engines that run when its turn comes."""
        model = self.model
        if model is None:
            raise VLJepaError(f"{self.get_fully_qualified_name()} is not configured.")
        return _words(model, model_id or model.bundle.model_id, embedding)

    def _warn_once(self, problem: str) -> None:
        """Warn of a problem, once."""
        if problem not in self._reported:
            self._reported.add(problem)
            self.get_logger().warning(problem)

    # -------------------------------------------------------------- diagnostics

    def statuses(self) -> list[Status]:
        """A line for the queue, for each camera that was heard, and for each engine."""
        if self.model is None:
            return []
        queue = Status("changes")
        queue.values = {
            "decodes": sum(self.decoded.values()),
            "waiting": self.waiting,
            "dropped": self.dropped,
            "refused": self.refused,
            "unfamiliar": self.unfamiliar,
            "of other streams": self._sources.refused,
        }
        dropped, refused, others = self._seen
        self._seen = (self.dropped, self.refused, self._sources.refused)
        if self.refused > refused:
            queue.level, queue.message = ERROR, "changes cannot be decoded; see the log"
        elif self.dropped > dropped:
            queue.level, queue.message = WARN, "changes dropped: decoding is too slow"
        elif self._sources.refused > others:
            queue.level, queue.message = WARN, OTHERS
        elif self.count_publishers("utterances") > 1:
            queue.level, queue.message = WARN, "another decoder node speaks on the same topic"
        cameras = [
            Status(f"camera {name}", values={"decodes": count})
            for name, count in sorted(self.decoded.items())
        ]
        return [queue, *cameras, *self.engines.statuses()]


def _is_unfamiliar(model: Runtime, change: SemanticChange) -> bool:
    """Whether a change of this model shows what the model does not know."""
    bundle = model.bundle
    return change.model_id == bundle.model_id and bundle.is_unfamiliar(change.familiarity)


def _words(model: Runtime, model_id: str, embedding: np.ndarray) -> tuple[str, float]:
    """Text and confidence of an embedding, float32 `[E]`; VLJepaError where it does not fit."""
    bundle = model.bundle
    if model_id != bundle.model_id:
        raise VLJepaError(
            f"The embedding is of model '{model_id}', the decoder's is '{bundle.model_id}'; give "
            "both nodes the same bundle."
        )
    if embedding.shape != (bundle.embedding_dim,):
        raise VLJepaError(
            f"The embedding holds {embedding.size} numbers instead of {bundle.embedding_dim}."
        )
    length = float(np.linalg.norm(embedding.astype(np.float64)))
    if not math.isfinite(length):
        raise VLJepaError("The embedding is not finite.")
    if abs(length - 1) > UNIT:
        raise VLJepaError(
            f"The embedding has the length {length:.3g} instead of 1; divide it by its length."
        )
    embedding = embedding.astype(np.float32)
    text = model.decode(embedding)
    return text, model.confidence(text, embedding)
