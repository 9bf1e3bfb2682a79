"""Moments of the memory as ROS messages."""

from __future__ import annotations

from std_msgs.msg import Header

from vljepa_ros.memory.moment import Moment
from vljepa_ros.msg import Moment as MomentMessage
from vljepa_ros.ros.messages import jpeg_message, to_time


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
        familiarity=moment.familiarity,
        episode=moment.episode,
        task=moment.task,
        position=-1.0 if moment.position is None else moment.position,
    )
    if moment.pose is not None:
        pose = message.pose
        pose.header = Header(stamp=to_time(moment.pose.stamp_ns), frame_id=moment.pose.frame)
        at, turn = pose.pose.position, pose.pose.orientation
        at.x, at.y, at.z = moment.pose.position
        turn.x, turn.y, turn.z, turn.w = moment.pose.orientation
    return message
