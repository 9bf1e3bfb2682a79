"""What is said now, as text for RViz and Foxglove: the topic `spoken`.

Invariant: what stands at a camera is what was said of its last change; where nothing was said of
that, nothing stands there.
"""

from __future__ import annotations

from typing import Any

from vljepa_ros.msg import SemanticChange
from vljepa_ros.ros.lifecycle import ModelNode
from vljepa_ros.ros.parameters import ParameterError

HEIGHT = 0.1  # metres, of a letter
AHEAD = 1.0  # metres before the camera, along the z axis of its optical frame


class Spoken:
    """Publishes markers while the parameter `spoken` is set. Raises ParameterError."""

    def __init__(self, node: ModelNode) -> None:
        try:
            from visualization_msgs.msg import Marker
        except ImportError as error:
            raise ParameterError(
                "The parameter 'spoken' needs visualization_msgs, which is not installed: "
                "apt-get install ros-$ROS_DISTRO-visualization-msgs, or set it to false."
            ) from error
        self._marker = Marker
        self._publisher = node.create_lifecycle_publisher(Marker, "spoken", 10)
        self._places: dict[tuple[str, str], int] = {}  # by camera and query

    def say(self, change: SemanticChange, text: str) -> None:
        """Show what was said of a change; nothing where `text` is empty."""
        self._publisher.publish(self.marker(change, text))

    def marker(self, change: SemanticChange, text: str) -> Any:
        """The text of a camera and query; those of other queries stand under each other."""
        queries = [query for camera, query in self._places if camera == change.camera]
        row = self._places.setdefault((change.camera, change.query), len(queries))
        marker = self._marker(header=change.header, ns=change.camera, id=row)
        marker.type = self._marker.TEXT_VIEW_FACING
        marker.action = self._marker.ADD if text else self._marker.DELETE
        marker.text = text
        marker.pose.position.y = 1.5 * HEIGHT * row  # down
        marker.pose.position.z = AHEAD
        marker.pose.orientation.w = 1.0
        marker.scale.z = HEIGHT
        marker.color.r = marker.color.g = marker.color.b = marker.color.a = 1.0
        marker.frame_locked = True  # it moves with the camera
        return marker

    def close(self, node: ModelNode) -> None:
        """Publish no more."""
        node.destroy_lifecycle_publisher(self._publisher)
