"""The perception node: cameras in, embeddings and changes out.

Invariant: stamps and frame ids come from the images. The executor's callbacks fill slots; the
worker alone owns the engines, takes the cameras that wait, the one served longest ago first, and
runs those that are due as one batch, so that no camera starves and no queue can grow.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.questions import QuestionError, QuestionQueue, find_camera, not_ready
from vljepa_ros.perception.stages import Stages
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.runtime.errors import VLJepaError
from vljepa_ros.runtime.model import VLJepa

from . import overlay
from .base import ModelNode
from .cameras import Camera, Frame, lost_frames
from .diagnostics import ERROR, STALE, WARN, Rate, Status
from .engines import Engines
from .labels import StandingLabels
from .messages import (
    change_message,
    embedding_message,
    info_message,
    jpeg_message,
    rgb_message,
    to_time,
)
from .parameters import Spec, overrides
from .perception_parameters import COMMON, camera_specs, check_names, settings
from .questions import Questions
from .watching import Watches


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


class PerceptionNode(ModelNode):
    """X-encoder, predictor, Y-encoder; windows, gates, change detectors; questions about them."""

    spare = camera_specs("camera")  # in the shipped file, where the cameras have other names

    def __init__(self, **options: Any) -> None:
        self.engines = Engines(self, ("x_encoder", "predictor", "y_encoder"), self._go_on_with)
        self.perceiver: Perceiver | None = None
        self.queue: QuestionQueue | None = None
        self.cameras: dict[str, Camera] = {}
        self.stages = StepStages()
        self._words: dict[str, str] = {}
        self._faults = 0  # of the model, that are announced
        self.rates: dict[str, tuple[float, float]] = {}  # in and out, Hz, by camera
        self._meters: dict[str, tuple[Rate, Rate]] = {}
        self._counted: dict[str, Counter[str]] = {}
        self._thumbnails: dict[str, Any] = {}
        self._labels = StandingLabels(self)
        super().__init__("perception", **options)
        self.questions = Questions(self)
        self.watches = Watches(self)

    def all_specs(self) -> Sequence[Spec]:
        """The common parameters, and those of each camera."""
        names = overrides(self).get("cameras", ["camera"])
        if not isinstance(names, Sequence) or isinstance(names, str):
            return COMMON  # `cameras` itself is refused with a sentence
        return (*COMMON, *(spec for name in dict.fromkeys(names) for spec in camera_specs(name)))

    # -------------------------------------------------------------- hooks

    def load(self) -> None:
        """Open the engines and make the perceiver."""
        values = self.values()
        check_names(values["cameras"])
        self._labels.check(values)
        model = self.engines.open()
        self.perceiver = Perceiver(model, values["cameras"], settings(values))
        self.perceiver.stages = self.stages
        self.queue = QuestionQueue(self.perceiver)

    def setup(self) -> None:
        """Publishers and cameras; say which model this is."""
        values = self.values()
        assert self.perceiver is not None and self.model is not None and self.worker is not None
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._embeddings = self.create_lifecycle_publisher(SemanticEmbedding, "embeddings", 10)
        self._changes = self.create_lifecycle_publisher(SemanticChange, "changes", 10)
        self._overlay = self.create_lifecycle_publisher(Image, "overlay", qos_profile_sensor_data)
        self._info = self.create_publisher(ModelInfo, "model_info", latched)
        self._utterances = self.create_subscription(Utterance, "utterances", self._on_words, 10)
        for name in values["cameras"]:
            transport = values[f"{name}.transport"]
            suffix = "/compressed" if transport == "compressed" else ""
            topic = values[f"{name}.topic"] or f"{name}/image_raw{suffix}"
            self.cameras[name] = Camera(
                self, name, topic, transport, self.perceiver.due, self.worker.wake
            )
            self._thumbnails[name] = self.create_lifecycle_publisher(
                CompressedImage, f"{name}/thumbnail", qos_profile_sensor_data
            )
        self._announce()
        self._labels.setup(values)
        self.watches.setup()
        engines = ", ".join(f"{e.name} on {e.backend} ({e.precision})" for e in self.model.info)
        self.get_logger().info(f"Loaded {self.model.bundle.model_id}: {engines}.")

    def start(self) -> None:
        """Subscribe to the cameras."""
        for camera in self.cameras.values():
            camera.open()
            self.get_logger().info(f"Camera '{camera.name}' is '{camera.topic}'.")

    def stop(self) -> None:
        """End the watches, and unsubscribe from the cameras."""
        self.watches.stop(f"{self.get_fully_qualified_name()} is no longer active.")
        for camera in self.cameras.values():
            camera.close()

    def teardown(self) -> None:
        """Take back what `setup` made."""
        self._labels.teardown()
        for name in ("_embeddings", "_changes", "_overlay"):
            self.destroy_lifecycle_publisher(self.__dict__.pop(name, None))
        self.destroy_publisher(self.__dict__.pop("_info", None))
        self.destroy_subscription(self.__dict__.pop("_utterances", None))
        for publisher in self._thumbnails.values():
            self.destroy_lifecycle_publisher(publisher)
        for by_camera in (self._thumbnails, self.cameras, self.rates, self._meters, self._counted):
            by_camera.clear()

    def end(self) -> None:
        """The process ends: the results of watches are still to be sent."""
        self.farewell = self.watches.hurry()
        super().end()

    def destroy_node(self) -> None:
        """Take the action server back, too, which rclpy does not."""
        self.watches.destroy()
        super().destroy_node()

    def unload(self) -> None:
        """Close the engines."""
        if self.queue is not None:
            self.queue.clear()
        self.queue = self.perceiver = None
        self.engines.close()

    @property
    def model(self) -> VLJepa | None:
        """The engines that run now."""
        return self.engines.model

    def _go_on_with(self, model: VLJepa) -> None:
        """Other engines take over, in the worker's thread; the stream goes on."""
        self._faults = 0
        if self.perceiver is not None:
            self.perceiver.replace_model(model)
            self._announce()

    def apply(self, changed: dict[str, Any]) -> None:
        """Take over settings while running."""
        values = {**self.values(), **changed}
        wanted = settings(values)
        wanted.check()
        self._labels.check(values)
        if self.perceiver is not None:
            self.perceiver.configure(wanted)
            self._announce()
            self._labels.apply(values)

    def measure(self) -> None:
        """Forget the durations so far."""
        self.stages = StepStages()
        if self.perceiver is not None:
            self.perceiver.stages = self.stages

    # -------------------------------------------------------------- the worker's side

    def work(self) -> bool:
        """Serve every camera that waits, those that are due as one batch."""
        perceiver, waiting = self.perceiver, [c for c in self.cameras.values() if c.waiting]
        if perceiver is None:
            return False
        self.stages.engines()
        started = time.monotonic()
        frames: dict[str, tuple[Frame, Any]] = {}
        for camera in sorted(waiting, key=lambda c: c.served):
            frame = camera.take()
            if frame is not None:
                self._take(perceiver, camera, frame, frames)
        if frames:
            try:
                steps = perceiver.step(list(frames))
            except VLJepaError as error:
                self._engine_failed(list(frames), error)
            else:
                self._publish(perceiver, steps, frames)
                self.stages.lap("step", started)
            if len(perceiver.model.faults) > self._faults:  # other engines run now
                self._faults = len(perceiver.model.faults)
                self._announce()
        return False

    def _take(
        self,
        perceiver: Perceiver,
        camera: Camera,
        frame: Frame,
        frames: dict[str, tuple[Frame, Any]],
    ) -> None:
        """Decode a frame and put it into the window; into `frames` where a step is due."""
        camera.served = started = time.monotonic()
        self.stages.add("wait", started - frame.received)
        camera.age = (self.get_clock().now().nanoseconds - frame.stamp_ns) / 1e9
        self.stages.add("age", camera.age)
        picture = camera.picture(frame)
        self.stages.lap("decode", started)
        if picture is None:
            return
        if perceiver.take(camera.name, frame.stamp_ns, frame.message.header.frame_id, picture):
            frames[camera.name] = (frame, picture)

    def _publish(
        self, perceiver: Perceiver, steps: Sequence[Step], frames: dict[str, tuple[Frame, Any]]
    ) -> None:
        self._send_thumbnails(steps, frames)
        started = time.monotonic()
        model_id = perceiver.bundle.model_id
        watched = self._overlay.get_subscription_count() > 0
        drawn: set[str] = set()
        for step in steps:
            now_ns = self.get_clock().now().nanoseconds
            self._embeddings.publish(embedding_message(step, model_id, now_ns))
            if step.change is not None:
                self._changes.publish(change_message(step, step.change, model_id))
        published = self.stages.lap("publish", started)
        engines = self.stages.engines()
        for frame, _ in frames.values():
            self.stages.add("added", published - frame.received - engines)
        first = perceiver.first(steps)
        self._labels.publish(first)
        self.watches.publish(first, lambda name: frames[name][1])
        for step in steps:
            if watched and step.camera not in drawn:
                drawn.add(step.camera)
                self._draw(step, frames[step.camera][1])

    def _send_thumbnails(self, steps: Sequence[Step], frames: dict[str, tuple[Frame, Any]]) -> None:
        """The picture of each camera's step, where somebody subscribes; before its embeddings."""
        for name, step in {step.camera: step for step in steps}.items():
            if self._thumbnails[name].get_subscription_count() == 0:
                continue
            started = time.monotonic()
            header = Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id)
            self._thumbnails[name].publish(jpeg_message(thumbnail(frames[name][1]), header))
            self.stages.lap("thumbnail", started)

    def _draw(self, step: Step, picture: Any) -> None:
        started = time.monotonic()
        header = Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id)
        drawn = overlay.draw(picture, step, self._words.get(step.camera, ""))
        self._overlay.publish(rgb_message(drawn, header))
        self.stages.lap("overlay", started)

    def _engine_failed(self, names: Sequence[str], error: VLJepaError) -> None:
        for name in names:
            self.cameras[name].reject(f"the step failed: {error}")

    # -------------------------------------------------------------- the executor's side

    def ready(self) -> dict[str, bool]:
        """The cameras, and whether each has seen a whole clip since its stream began."""
        perceiver = self.perceiver
        if perceiver is None:
            return {}
        return {name: perceiver.seen(name) is not None for name in perceiver.cameras}

    def check_active(self) -> None:
        """QuestionError unless the node is active."""
        if self.state != "active":
            name = self.get_fully_qualified_name()
            raise QuestionError(f"{name} is {self.state}; activate it, then ask again.")

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

    def _announce(self) -> None:
        """Publish `model_info`, with the queries that stand now."""
        perceiver, model = self.perceiver, self.model
        if perceiver is not None and model is not None and hasattr(self, "_info"):
            queries = perceiver.settings.queries_of(model.bundle)
            self._info.publish(info_message(model, queries))

    def _on_words(self, message: Utterance) -> None:
        self._words[message.camera] = message.text

    # -------------------------------------------------------------- diagnostics

    def statuses(self) -> list[Status]:
        """A line for each camera while active, for each engine, and for the stages."""
        perceiver = self.perceiver
        if perceiver is None:
            return []
        lines = []
        if self.state == "active":
            lines = [self._camera_status(perceiver, c) for c in self.cameras.values()]
        stages = Status("stages", message="p50 and p99 of the last steps")
        for stage, (p50, p99, _) in self.stages.percentiles().items():
            stages.values[f"{stage} p50 (ms)"] = p50 * 1e3
            stages.values[f"{stage} p99 (ms)"] = p99 * 1e3
        agents = (self.questions.status(), self.watches.status())
        return [*lines, *agents, *self.engines.statuses(), stages]

    def _camera_status(self, perceiver: Perceiver, camera: Camera) -> Status:
        counters = perceiver.counters(camera.name)
        steps = counters.encodes + counters.reused
        into, out = self._meters.setdefault(camera.name, (Rate(), Rate()))
        self.rates[camera.name] = (into.update(camera.received), out.update(steps))
        status = Status(f"camera {camera.name}")
        status.values = {
            "topic": camera.topic,
            "rate in (Hz)": self.rates[camera.name][0],
            "rate out (Hz)": self.rates[camera.name][1],
            "frame age (s)": camera.age,
            "frames": camera.received,
            "lost": camera.lost,
            "steps": steps,
            "dropped": camera.dropped,
            "bad frames": camera.bad,
            "late frames": counters.late,
            "encodes": counters.encodes,
            "encodes skipped": counters.reused,
            "changes": counters.changes,
            "restarts": counters.restarts,
            "steps not finite": counters.errors,
        }
        new = self._since_last(camera, counters.errors)
        silence = camera.look()
        if silence:
            status.level, status.message = STALE, camera.report(silence)
        elif new["bad"]:
            status.level, status.message = ERROR, camera.problem
        elif new["not finite"]:
            status.level, status.message = ERROR, "an embedding is not finite; see the log"
        elif new["lost"]:
            status.level, status.message = WARN, camera.report(lost_frames(new["lost"]))
        elif new["dropped"]:
            status.level = WARN
            status.message = f"{new['dropped']} frames dropped: the engines are too slow"
        return status

    def _since_last(self, camera: Camera, not_finite: int) -> Counter[str]:
        """What went wrong since the last report."""
        total = Counter(
            {"bad": camera.bad, "lost": camera.lost, "dropped": camera.dropped,
             "not finite": not_finite}
        )  # fmt: skip
        new = total - self._counted.get(camera.name, Counter())
        self._counted[camera.name] = total
        return new
