"""Steps, changes and moments as ROS messages."""

from __future__ import annotations

from array import array

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from vljepa_ros.memory.moment import Moment
from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding
from vljepa_ros.msg import Moment as MomentMessage
from vljepa_ros.perception.perceiver import Change, Step
from vljepa_ros.runtime.model import VLJepa


def to_time(stamp_ns: int) -> Time:
    """Nanoseconds as a stamp."""
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def to_ns(stamp: Time) -> int:
    """A stamp in nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def floats(values: np.ndarray) -> array:
    """A float32 array as the type that rclpy takes without looking at every element."""
    result = array("f")
    result.frombytes(np.ascontiguousarray(values, np.float32).tobytes())
    return result


def embedding_message(step: Step, model_id: str, now_ns: int) -> SemanticEmbedding:
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
    )


def change_message(step: Step, change: Change, model_id: str) -> SemanticChange:
    """The change that a step detected."""
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
    )


def info_message(model: VLJepa, queries: tuple[str, ...]) -> ModelInfo:
    """Which model the stream comes from; backend and precision are the X-encoder's."""
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
        queries=list(queries),
        watch_threshold=float(bundle.thresholds.watch),
    )


def rgb_message(picture: np.ndarray, header: Header) -> Image:
    """RGB uint8 `[H, W, 3]` as an rgb8 Image."""
    height, width = picture.shape[:2]
    data = array("B")
    data.frombytes(np.ascontiguousarray(picture).tobytes())
    return Image(
        header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=data
    )


def jpeg_message(data: bytes, header: Header) -> CompressedImage:
    """A JPEG as a CompressedImage."""
    return CompressedImage(header=header, format="jpeg", data=array("B", data))


def moment_message(moment: Moment, score: float) -> MomentMessage:
    """A moment of the memory; `score`: its cosine with what was asked for."""
    header = Header(stamp=to_time(moment.start_ns), frame_id=moment.camera)
    message = MomentMessage(
        camera=moment.camera,
        segment_id=moment.segment_id,
        start=to_time(moment.start_ns),
        end=to_time(moment.end_ns),
        text=moment.text,
        score=score,
        thumbnail=jpeg_message(moment.thumbnail, header),
        id=moment.id,
        robot=moment.robot,
        query=moment.query,
        pinned=moment.pinned,
    )
    if moment.pose is not None:
        pose = message.pose
        pose.header = Header(stamp=to_time(moment.pose.stamp_ns), frame_id=moment.pose.frame)
        at, turn = pose.pose.position, pose.pose.orientation
        at.x, at.y, at.z = moment.pose.position
        turn.x, turn.y, turn.z, turn.w = moment.pose.orientation
    return message
