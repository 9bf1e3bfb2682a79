"""`vljepa calibrate --live`: footage of a camera of the running graph."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import Probe, domain, image, noise

from vljepa_ros.bundle.spec import load_bundle

COMMAND = [sys.executable, "-c", "from vljepa_ros.cli import main; main()", "calibrate"]
TOPIC = "front/image_raw"


def start(domain_id: int, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env={**os.environ, "ROS_DOMAIN_ID": str(domain_id)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_camera_of_the_graph_is_footage(tmp_path: Path) -> None:
    """Its stamps run fast, as a bag's that is played so: 22 s of them are there in a few."""
    bundle, domain_id = make_bundle(tmp_path / "tiny"), domain()
    probe = Probe(domain_id)
    out = tmp_path / "mine"
    command = start(
        domain_id, bundle, "--live", 22, "--topic", TOPIC, "--out", out, "--picture",
        tmp_path / "drawn.png",
    )  # fmt: skip
    begin, sent = probe.fresh_time(), 0
    publisher = probe.publisher(TOPIC)
    random = np.random.default_rng(0)
    probe.wait(
        lambda: publisher.get_subscription_count() or command.poll() is not None, "the command"
    )

    def ended() -> bool:
        nonlocal sent
        picture = np.clip(noise(sent // 40) + random.normal(0, 2, (48, 64, 3)), 0, 255)
        publisher.publish(image(picture.astype(np.uint8), begin + sent * 10**9 // 4))
        sent += 1
        return command.poll() is not None

    probe.wait(ended, "the command to end", 120)
    printed, said = command.communicate()
    probe.close()
    assert command.returncode == 0, said
    assert load_bundle(out).model_id in printed
    assert load_bundle(out).calibration["footage"] == [f"{TOPIC}, live"]


def test_a_camera_that_sends_nothing_is_a_sentence(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    command = start(
        domain(), bundle, "--live", 60, "--topic", TOPIC, "--out", tmp_path / "mine"
    )  # fmt: skip
    _, said = command.communicate(timeout=120)
    assert command.returncode == 1
    assert f"nobody publishes '/{TOPIC}' (sensor_msgs/msg/Image)" in said
    assert "Traceback" not in said
    assert not (tmp_path / "mine").exists()
