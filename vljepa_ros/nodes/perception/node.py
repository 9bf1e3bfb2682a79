"""The perception node: cameras in, embeddings and changes out.

Invariant: stamps and frame ids come from the images. The executor's callbacks fill slots; whatever
runs an engine does so in the worker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.msg import SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.perception.perceiver import Step
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.ros.diagnostics import Status
from vljepa_ros.ros.lifecycle import ModelNode
from vljepa_ros.ros.messages import jpeg_message, rgb_message, to_time
from vljepa_ros.ros.parameters import Spec, overrides

from . import overlay
from .announcer import Announcer
from .health import CameraHealth, Health, settings_status, stage_status
from .key_frames import KeyFrames
from .labels import StandingLabels
from .messages import change_message, embedding_message
from .parameters import COMMON, camera_specs, check_names, levels, settings
from .questions import Questions
from .stream import DueFrame, LiveStream
from .watch_action import Watches


class PerceptionNode(ModelNode):
    """X-encoder, predictor, Y-encoder; windows, gates, change detectors; questions about them."""

    specs = (*COMMON, *camera_specs("<camera>"))  # as help and docs have them: `all_specs`
    spare = camera_specs("camera")  # in the shipped file, where the cameras have other names

    def __init__(self, **options: Any) -> None:
        self.stream = LiveStream(self, lambda: self._announcer.announce())
        self._announcer = Announcer(self, self.stream)
        self._health = Health(self.stream)
        self._labels = StandingLabels(self, self.stream)
        self._key_frames = KeyFrames()
        self._words: dict[str, str] = {}  # the last ones, by camera
        self._thumbnails: dict[str, Any] = {}
        super().__init__("perception", **options)
        self._questions = Questions(self, self.stream)
        self._watches = Watches(self, self.stream)

    def all_specs(self) -> Sequence[Spec]:
        """The common parameters, and those of each camera."""
        names = overrides(self).get("cameras", ["camera"])
        if not isinstance(names, Sequence) or isinstance(names, str):
            return COMMON  # `cameras` itself is refused with a sentence
        return (*COMMON, *(spec for name in dict.fromkeys(names) for spec in camera_specs(name)))

    def snapshot(self) -> dict[str, CameraHealth]:
        """How every camera does now, by name; from any thread."""
        return self._health.snapshot()

    # -------------------------------------------------------------- hooks

    def load(self) -> None:
        """Open the engines and make the perceiver."""
        values = self.values()
        check_names(values)
        for name in values["cameras"]:
            levels(values, name)
        self._labels.check(values)
        self.stream.load(values)
        self._key_frames.count = values["change_frames"]

    def setup(self) -> None:
        """Publishers and cameras; say which model this is."""
        values = self.values()
        self._embeddings = self.create_lifecycle_publisher(SemanticEmbedding, "embeddings", 10)
        self._changes = self.create_lifecycle_publisher(SemanticChange, "changes", 10)
        self._overlay = self.create_lifecycle_publisher(Image, "overlay", qos_profile_sensor_data)
        self._utterances = self.create_subscription(Utterance, "utterances", self._on_words, 10)
        self.stream.setup(values)
        for name in self.stream.cameras:
            self._thumbnails[name] = self.create_lifecycle_publisher(
                CompressedImage, f"{name}/thumbnail", qos_profile_sensor_data
            )
        self._announcer.setup()
        self._labels.setup(values)
        self._watches.setup()
        model = self.stream.model
        assert model is not None
        engines = ", ".join(f"{e.name} on {e.backend} ({e.precision})" for e in model.info)
        self.get_logger().info(f"Loaded {model.bundle.model_id}: {engines}.")
        if model.bundle.familiarity is None:
            self.get_logger().info(
                f"{model.bundle.name} cannot tell what it does not know: `vljepa calibrate` fits "
                "that to footage of the robot's own camera."
            )

    def start(self) -> None:
        """Subscribe to the cameras."""
        self.stream.start()

    def stop(self) -> None:
        """End the watches, and unsubscribe from the cameras."""
        self._watches.stop(f"{self.get_fully_qualified_name()} is no longer active.")
        self.stream.stop()
        self._announcer.announce()

    def teardown(self) -> None:
        """Take back what `setup` made."""
        self._labels.teardown()
        self._announcer.teardown()
        for name in ("_embeddings", "_changes", "_overlay"):
            self.destroy_lifecycle_publisher(self.__dict__.pop(name, None))
        self.destroy_subscription(self.__dict__.pop("_utterances", None))
        for publisher in self._thumbnails.values():
            self.destroy_lifecycle_publisher(publisher)
        self._thumbnails.clear()
        self.stream.cameras.clear()
        self._health.forget()

    def unload(self) -> None:
        """Close the engines."""
        self.stream.unload()

    def end(self) -> None:
        """The process ends: the results of watches are still to be sent."""
        self.farewell = self._watches.hurry()
        super().end()

    def destroy_node(self) -> None:
        """Take the action server back, too, which rclpy does not."""
        self._watches.destroy()
        super().destroy_node()

    def apply(self, changed: dict[str, Any]) -> None:
        """Take over settings while running."""
        values = {**self.values(), **changed}
        settings(values).check()
        self._labels.check(values)
        if self.stream.perceiver is not None:
            self.stream.configure(values)
            self._labels.apply(values)
            self._key_frames.count = values["change_frames"]

    def statuses(self) -> list[Status]:
        """A line for each camera while active, for the settings, each engine, and the stages."""
        perceiver = self.stream.perceiver
        if perceiver is None:
            return []
        cameras = self._health.statuses() if self.state == "active" else []
        agents = (self._announcer.status(), self._questions.status(), self._watches.status())
        engines = self.stream.engines.statuses()
        settled = settings_status(perceiver)
        return [*cameras, settled, *agents, *engines, stage_status(self.stream.stages)]

    @property
    def bundle(self) -> Bundle | None:
        """The bundle that is loaded."""
        return self.stream.model.bundle if self.stream.model is not None else None

    # -------------------------------------------------------------- what it publishes

    def work(self) -> bool:
        """Serve every camera that waits."""
        self.stream.step(self._publish)
        return False

    def _publish(self, steps: Sequence[Step], seen: Mapping[str, DueFrame]) -> None:
        """Steps of one batch, and the pictures that they come from; in the worker."""
        perceiver, stages = self.stream.perceiver, self.stream.stages
        assert perceiver is not None
        self._send_thumbnails(steps, seen)
        self._key_frames.keep(steps, {name: one.picture for name, one in seen.items()})
        started = time.monotonic()
        model_id, stream_id = perceiver.bundle.model_id, self.stream.id
        for step in steps:
            now_ns = self.get_clock().now().nanoseconds
            self._embeddings.publish(embedding_message(step, model_id, now_ns, stream_id))
            if step.change is not None:
                pictures = self._key_frames.of(step, step.change)
                message = change_message(step, step.change, model_id, stream_id, pictures)
                self._changes.publish(message)
        published = stages.lap("publish", started)
        engines = stages.engines()
        for one in seen.values():
            stages.add("added", published - one.frame.received - engines)
        first = perceiver.first(steps)
        self._labels.publish(first)
        self._watches.publish(first, lambda name: seen[name].picture)
        if self._overlay.get_subscription_count() > 0:
            for step in first:
                self._draw(step, seen[step.camera].picture)

    def _send_thumbnails(self, steps: Sequence[Step], seen: Mapping[str, DueFrame]) -> None:
        """The picture of each camera's step, where somebody subscribes; before its embeddings."""
        for name, step in {step.camera: step for step in steps}.items():
            if self._thumbnails[name].get_subscription_count() == 0:
                continue
            started = time.monotonic()
            header = Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id)
            self._thumbnails[name].publish(jpeg_message(thumbnail(seen[name].picture), header))
            self.stream.stages.lap("thumbnail", started)

    def _draw(self, step: Step, picture: Any) -> None:
        started = time.monotonic()
        header = Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id)
        assert self.stream.model is not None
        strange = self.stream.model.bundle.is_unfamiliar(step.familiarity)
        words = "" if strange else self._words.get(step.camera, "")
        drawn = overlay.draw(picture, step, words)
        self._overlay.publish(rgb_message(drawn, header))
        self.stream.stages.lap("overlay", started)

    def _on_words(self, message: Utterance) -> None:
        if message.stream_id in (0, self.stream.id):
            self._words[message.camera] = message.text
