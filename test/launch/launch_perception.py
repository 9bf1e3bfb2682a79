"""What the launch file brings up, run by launch_testing against the real graph.

Run by test_launch.py, or by hand: `launch_test test/launch/launch_perception.py`. The model
bundle, the parameter file and the ROS domain come from the environment (TEST_BUNDLE, TEST_VIDEO,
TEST_PARAMS, ROS_DOMAIN_ID).
"""

import os
import signal
import sys
import time
import unittest
from pathlib import Path

import launch_testing
import launch_testing.actions
import launch_testing.asserts
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

import launch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "support"))

from graph import Probe  # noqa: E402

NAMES = ("/robot/perception", "/robot/decoder", "/robot/memory")


def generate_test_description():
    arguments = {
        "namespace": "robot",
        "bundle": os.environ["TEST_BUNDLE"],
        "video": os.environ["TEST_VIDEO"],
        "cameras": "front,rear",
        "params_file": os.environ["TEST_PARAMS"],
        "memory": "true",
        "web": "true",
        "use_respawn": "true",
    }
    included = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(ROOT / "launch" / "perception.launch.py")),
        launch_arguments=arguments.items(),
    )
    return launch.LaunchDescription([included, launch_testing.actions.ReadyToTest()])


class TestGraph(unittest.TestCase):
    def setUp(self):
        self.probe = Probe(int(os.environ["ROS_DOMAIN_ID"]), namespace="/robot")

    def tearDown(self):
        self.probe.close()

    def test_nodes_become_active_and_the_video_is_seen(self):
        for name in NAMES:
            self.probe.wait_for_state(name, "active")
        self.probe.wait(lambda: self.probe.of("front"), "an embedding of the video")
        cameras = self.probe.get("/robot/perception", "cameras").string_array_value
        assert list(cameras) == ["front", "rear"]

    def test_what_was_seen_is_remembered_and_the_page_is_served(self, proc_output):
        proc_output.assertWaitFor("The page is at http://127.0.0.1:", timeout=30)
        self.probe.wait_for_health("robot/memory: store", lambda v: int(v["moments"]) > 0)

    def test_one_that_dies_comes_back_to_active(self, proc_info):
        self.probe.wait_for_state("/robot/decoder", "active")
        process = next(
            p for p in proc_info.processes() if "decoder_node" in p.process_details["cmd"][0]
        )
        before = process.process_details["pid"]
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while process.process_details["pid"] == before:
            assert time.monotonic() < deadline, "the decoder was not started again"
            time.sleep(0.1)
        # A request could reach the service of the process that died, so the new one speaks first.
        self.probe.wait_for_health("robot/decoder: state", lambda v: v["state"] == "active")


@launch_testing.post_shutdown_test()
class TestShutdown(unittest.TestCase):
    def test_exit_codes(self, proc_info):
        # -9 is the decoder that the test killed.
        launch_testing.asserts.assertExitCodes(proc_info, allowable_exit_codes=[0, -9])
