"""What a perception node sees: its engines, its cameras, and the perceiver that joins them.

Invariant: the worker alone owns the engines. It takes the cameras that wait, the one served longest
ago first, and runs those that are due as one batch, so that no camera starves and no queue can
grow. Labels, questions and watches know the stream, not the node that publishes it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vljepa_ros.errors import VLJepaError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.question_queue import QuestionQueue
from vljepa_ros.perception.stages import Stages
from vljepa_ros.perception.texts import QuestionError, find_camera, not_ready
from vljepa_ros.ros.engines import Engines
from vljepa_ros.ros.lifecycle import ModelNode

from .cameras import Camera, Frame
from .parameters import levels, settings

PAUSE = 30.0  # seconds for which a camera may be silent until another node's stream may be followed


class StepStages(Stages):
    """Stages that also know how long the engines have taken since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0  # that were published
        self._engines = 0.0

    def add(self, stage: str, seconds: float) -> None:
        """Record a duration."""
        super().add(stage, seconds)
        self.steps += stage == "added"
        if stage in ("encode", "predict"):
            self._engines += seconds

    def engines(self) -> float:
        """Seconds in the X-encoder and predictor since the last call."""
        seconds, self._engines = self._engines, 0.0
        return seconds


@dataclass(frozen=True)
class DueFrame:
    """A frame that made a step due, and its picture, RGB uint8 `[H, W, 3]`."""

    frame: Frame
    picture: Any


class LiveStream:
    """The cameras of a node, and what the model makes of them.

    `announce()` is called, in whatever thread, when another model or other queries stand.
    """

    def __init__(self, node: ModelNode, announce: Callable[[], None]) -> None:
        self.id = secrets.randbits(53) | 1  # all of whose values JavaScript has, and never 0
        self.engines = Engines(node, ("x_encoder", "predictor", "y_encoder"), self._go_on_with)
        self.perceiver: Perceiver | None = None
        self.questions: QuestionQueue | None = None
        self.cameras: dict[str, Camera] = {}
        self.stages = StepStages()
        self._node = node
        self._announce = announce
        self._faults = 0  # of the model, that are announced

    @property
    def model(self) -> Runtime | None:
        """The engines that run now."""
        return self.engines.model

    # -------------------------------------------------------------- the node's life

    def load(self, values: Mapping[str, Any]) -> None:
        """Open the engines and make the perceiver; in the worker's thread."""
        model = self.engines.open()
        self.perceiver = Perceiver(model, values["cameras"], settings(values))
        self.perceiver.stages = self.stages
        self.questions = QuestionQueue(self.perceiver)

    def setup(self, values: Mapping[str, Any]) -> None:
        """Make the cameras."""
        perceiver, worker = self.perceiver, self._node.worker
        assert perceiver is not None and worker is not None
        for name in values["cameras"]:
            transport = values[f"{name}.transport"]
            suffix = "/compressed" if transport == "compressed" else ""
            topic = values[f"{name}.topic"] or f"{name}/image_raw{suffix}"
            self.cameras[name] = Camera(
                self._node, name, topic, transport, levels(values, name), perceiver.due,
                perceiver.refuse, worker.wake,
            )  # fmt: skip

    def start(self) -> None:
        """Subscribe to the cameras."""
        for camera in self.cameras.values():
            camera.open()
            self._node.get_logger().info(f"Camera '{camera.name}' is '{camera.topic}'.")

    def stop(self) -> None:
        """Unsubscribe from the cameras."""
        for camera in self.cameras.values():
            camera.close()

    def unload(self) -> None:
        """Answer none of the questions that wait, and close the engines."""
        if self.questions is not None:
            self.questions.clear()
        self.questions = self.perceiver = None
        self.engines.close()

    def configure(self, values: Mapping[str, Any]) -> None:
        """Take over settings while running."""
        if self.perceiver is not None:
            self.perceiver.configure(settings(values))
            self._announce()

    def measure(self) -> None:
        """Forget the durations so far."""
        self.stages = StepStages()
        if self.perceiver is not None:
            self.perceiver.stages = self.stages

    def _go_on_with(self, model: Runtime) -> None:
        """Other engines take over, in the worker's thread; the stream goes on."""
        self._faults = 0
        if self.perceiver is not None:
            self.perceiver.replace_model(model)
            self._announce()

    # -------------------------------------------------------------- the worker's side

    def step(self, publish: Callable[[Sequence[Step], Mapping[str, DueFrame]], None]) -> None:
        """Serve every camera that waits; `publish` the steps of those that are due, a batch."""
        perceiver, waiting = self.perceiver, [c for c in self.cameras.values() if c.waiting]
        if perceiver is None:
            return
        self.stages.engines()
        started = time.monotonic()
        seen: dict[str, DueFrame] = {}
        for camera in sorted(waiting, key=lambda c: c.served):
            frame = camera.take()
            if frame is not None:
                self._take(perceiver, camera, frame, seen)
        if not seen:
            return
        try:
            steps = perceiver.step(list(seen))
        except VLJepaError as error:
            self._reject(seen, error)
        else:
            publish(steps, seen)
            self.stages.lap("step", started)
        if len(perceiver.model.faults) > self._faults:  # other engines run now
            self._faults = len(perceiver.model.faults)
            self._announce()

    def _take(
        self, perceiver: Perceiver, camera: Camera, frame: Frame, seen: dict[str, DueFrame]
    ) -> None:
        """Decode a frame and put it into the window; into `seen` where a step is due."""
        camera.served = started = time.monotonic()
        self.stages.add("wait", started - frame.received)
        camera.age = (self._node.get_clock().now().nanoseconds - frame.stamp_ns) / 1e9
        self.stages.add("age", camera.age)
        decoded = camera.decoded(frame)
        if decoded is None:
            return
        frame, picture = decoded
        self.stages.lap("decode", started)
        if perceiver.take(camera.name, frame.stamp_ns, frame.message.header.frame_id, picture):
            seen[camera.name] = DueFrame(frame, picture)

    def _reject(self, names: Iterable[str], error: VLJepaError) -> None:
        for name in names:
            self.cameras[name].reject(f"the step failed: {error}")

    # -------------------------------------------------------------- the executor's side

    def ready(self) -> dict[str, bool]:
        """The cameras, and whether each has seen a whole clip since its stream began."""
        perceiver = self.perceiver
        if perceiver is None:
            return {}
        return {name: perceiver.seen(name) is not None for name in perceiver.cameras}

    def seeing(self) -> list[str]:
        """The cameras that send frames, or did a while ago: those whose stream this node is."""
        most = max(PAUSE, self.perceiver.settings.max_gap if self.perceiver is not None else 0.0)
        silent = {name: camera.silent_for() for name, camera in self.cameras.items()}
        return [name for name, seconds in silent.items() if seconds is not None and seconds <= most]

    def check_active(self) -> None:
        """QuestionError unless the node is active."""
        if self._node.state != "active":
            name = self._node.get_fully_qualified_name()
            raise QuestionError(f"{name} is {self._node.state}; activate it, then ask again.")

    def camera_to_ask(self, name: str) -> str:
        """The camera that a request means; QuestionError where it sees nothing now.

        Its last frame may be as old, by the ROS clock, as a gap that its stream survives
        (parameter `max_gap`): what is older would not be an answer about now.
        """
        self.check_active()
        assert self.perceiver is not None
        ready = self.ready()
        found = find_camera(name, ready)
        silent, most = self.cameras[found].silent_for(), self.perceiver.settings.max_gap
        if not ready[found] or silent is None:
            raise not_ready(found, ready)
        if silent > most:
            raise QuestionError(
                f"Camera '{found}' has sent no frame for {silent:.1f} s, longer than 'max_gap' "
                f"({most:g} s); what it saw before is not what it sees now."
            )
        return found
