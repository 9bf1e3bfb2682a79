"""Steps and changes as ROS messages."""

from __future__ import annotations

from collections.abc import Sequence

from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding, Setting
from vljepa_ros.perception.perceiver import Change, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.ros.messages import floats, to_time


def embedding_message(
    step: Step, model_id: str, now_ns: int, stream_id: int = 0
) -> SemanticEmbedding:
    """`now_ns`: the ROS clock at publication, from which the latency follows."""
    return SemanticEmbedding(
        header=Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id),
        window_start=to_time(step.window_start_ns),
        camera=step.camera,
        query=step.query,
        model_id=model_id,
        sequence=step.sequence,
        segment_id=step.segment_id,
        change_score=float(step.change_score),
        reused=step.reused,
        latency=(now_ns - step.stamp_ns) / 1e9,
        embedding=floats(step.embedding),
        stream_id=stream_id,
        familiarity=step.familiarity,
    )


def change_message(
    step: Step, change: Change, model_id: str, stream_id: int = 0,
    key_frames: Sequence[CompressedImage] = (),
) -> SemanticChange:  # fmt: skip
    """The change that a step detected, and pictures of it."""
    return SemanticChange(
        header=Header(stamp=to_time(step.stamp_ns), frame_id=step.frame_id),
        camera=step.camera,
        query=step.query,
        model_id=model_id,
        segment_id=change.segment_id,
        segment_start=to_time(change.segment_start_ns),
        previous_segment_id=change.previous_segment_id,
        previous_segment_start=to_time(change.previous_segment_start_ns),
        change_score=float(change.score),
        embedding=floats(step.embedding),
        stream_id=stream_id,
        familiarity=step.familiarity,
        key_frames=list(key_frames),
    )


def info_message(model: Runtime, settings: Settings) -> ModelInfo:
    """Which model the stream comes from, and with which settings.

    Backend and precision are the X-encoder's.
    """
    bundle = model.bundle
    encoder = next(engine for engine in model.info if engine.name == "x_encoder")
    return ModelInfo(
        model_id=bundle.model_id,
        backend=encoder.backend,
        precision=encoder.precision,
        embedding_dim=bundle.embedding_dim,
        clip_frames=bundle.clip.frames,
        image_size=bundle.clip.image_size,
        sample_rate=float(bundle.clip.sample_rate),
        queries=list(settings.queries_of(bundle)),
        watch_threshold=float(bundle.thresholds.watch),
        familiarity_threshold=bundle.familiarity_threshold,
        settings=[
            Setting(name=one.name, value=one.value, origin=one.origin)
            for one in settings.effective(bundle)
        ],
    )
