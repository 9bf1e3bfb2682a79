"""A step's thumbnail is sent before its embeddings: who stores them together has it by then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import rclpy
from graph import SECOND, domain, image, noise
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage

from vljepa_ros.msg import SemanticChange, SemanticEmbedding
from vljepa_ros.nodes.perception.node import PerceptionNode
from vljepa_ros.stamps import to_ns


def test_thumbnails_go_ahead_of_the_stream(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(), args=[])
    given = {"bundle": str(tiny_bundle), "autostart": False, "cameras": ["front", "rear"]}
    node = PerceptionNode(
        context=context, parameter_overrides=[Parameter(k, value=v) for k, v in given.items()]
    )
    sent: list[Any] = []
    try:
        node.trigger_configure()
        node.trigger_activate()
        publishers = [node._thumbnails["front"], node._embeddings, node._changes]
        for publisher in publishers:
            monkeypatch.setattr(publisher, "publish", sent.append)
        monkeypatch.setattr(node._thumbnails["front"], "get_subscription_count", lambda: 1)
        monkeypatch.setattr(node._thumbnails["rear"], "publish", None)  # nobody subscribes
        for k in range(5):
            for camera in node.stream.cameras.values():
                camera.take_in(image(noise(k), SECOND + k * SECOND // 4))
            assert node.worker is not None
            end = time.monotonic() + 30
            while any(camera.waiting for camera in node.stream.cameras.values()):
                assert time.monotonic() < end
                node.worker.call(lambda: None)
        node.worker.call(lambda: None)  # the last step has been published
    finally:
        node.end()
        node.destroy_node()
        rclpy.shutdown(context=context)
    steps = sorted({to_ns(m.header.stamp) for m in sent if isinstance(m, SemanticEmbedding)})
    assert len(steps) == 2
    for stamp in steps:
        kinds = [type(m) for m in sent if to_ns(m.header.stamp) == stamp]
        assert kinds[0] is CompressedImage
        assert kinds.count(CompressedImage) == 1
        assert kinds.count(SemanticEmbedding) == 2
    assert any(isinstance(m, SemanticChange) for m in sent)
    assert np.all(np.diff(steps) == SECOND // 4)
