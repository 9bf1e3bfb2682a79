"""The decoder's queue: bounded, the oldest dropped, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import rclpy
from graph import domain
from rclpy.parameter import Parameter

from vljepa_ros.msg import SemanticChange
from vljepa_ros.nodes.decoder import QUEUE, DecoderNode


def test_a_burst_drops_the_oldest_and_counts_them(tiny_bundle: Path) -> None:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(), args=[])
    given = {"bundle": str(tiny_bundle), "autostart": False}
    node = DecoderNode(
        context=context, parameter_overrides=[Parameter(k, value=v) for k, v in given.items()]
    )
    try:
        for segment in range(QUEUE + 6):  # no worker yet: nothing is taken away
            node._on_change(SemanticChange(camera="camera", segment_id=segment))
        assert (node.waiting, node.dropped) == (QUEUE, 6)
        assert node._queue[0][0].segment_id == 6
        node.stop()
        assert (node.waiting, node.dropped) == (0, QUEUE + 6)
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
