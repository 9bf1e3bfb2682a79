"""Perception and decoder, and as asked memory, page and camera, each in a process of its own.

The nodes configure and activate themselves (parameter `autostart`), so that one which was
respawned comes back to active. Asked from here, the request after a respawn can reach the service
of the process that has just died, and is never answered; nor are transition events seen for sure
while discovery is under way. The nodes log what became of their transitions. With autostart:=false
they are managed from outside: by ros2 lifecycle, a lifecycle manager or launch events.
"""

import os
from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription
from vljepa_ros.ros.names import checked_namespace
from vljepa_ros.ros.params_file import check_params
from vljepa_ros.ros.process import fastdds_settings

ARGUMENTS = {
    "params_file": (None, "Parameter file for all nodes."),
    "namespace": ("", "Namespace of all nodes."),
    "autostart": ("true", "Configure and activate the nodes when they start."),
    "use_sim_time": ("false", "Take the time from /clock."),
    "bundle": ("", "Model bundle: a folder, a shipped name, or a Hub id; empty: params_file's."),
    "backend": ("", "What runs the engines; empty: params_file's."),
    "cameras": ("", "Names of the cameras, e.g. front,rear; empty: params_file's."),
    "video": ("", "Video file, folder of images or device to play as the first camera."),
    "memory": ("false", "Remember what was seen, on disk: the memory node and its service recall."),
    "web": ("false", "Serve a page to look at, on the web node's address."),
    "web_port": ("", "Port of the page; 0: one that is free; empty: params_file's."),
    "log_level": ("info", "debug, info, warn, error or fatal."),
    "use_respawn": ("false", "Start a node again when its process dies."),
}


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"Launch argument '{name}' must be true or false, not '{value}'.")
    return value.lower() in ("true", "1")


def _port(value: str) -> dict[str, int]:
    if value and not (value.isdecimal() and int(value) < 65536):
        raise ValueError(f"Launch argument 'web_port' must be 0 to 65535, not '{value}'.")
    return {"port": int(value)} if value else {}


def _cameras(value: str) -> list[str]:
    return [name.strip() for name in value.strip("[]").split(",") if name.strip()]


def _nodes(context: LaunchContext) -> list:
    """The nodes for the arguments' values, which override those of the parameter file."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    cameras = _cameras(given["cameras"])
    namespace = checked_namespace("Launch argument 'namespace'", given["namespace"])
    started = [
        "perception", "decoder", *(n for n in ("memory", "web") if _flag(n, given[n])),
        *(["camera"] if given["video"] else []),
    ]  # fmt: skip
    check_params(Path(given["params_file"]), namespace, started)
    clock = {"use_sim_time": _flag("use_sim_time", given["use_sim_time"])}
    model = {key: given[key] for key in ("bundle", "backend") if given[key]}
    model["autostart"] = _flag("autostart", given["autostart"])
    common = {
        "package": "vljepa_ros",
        "namespace": namespace,
        "output": "screen",
        "arguments": ["--ros-args", "--log-level", given["log_level"]],
    }
    again = {"respawn": _flag("use_respawn", given["use_respawn"]), "respawn_delay": 1.0}
    own: dict = {"perception": dict(model), "decoder": dict(model)}
    if cameras:
        own["perception"]["cameras"] = cameras
    if _flag("memory", given["memory"]):
        own["memory"] = {k: v for k, v in model.items() if k != "backend"}  # it has no engines
    actions: list = [
        LifecycleNode(
            executable=f"{name}_node",
            name=name,
            parameters=[given["params_file"], {**clock, **values}],
            **again,
            **common,
        )
        for name, values in own.items()
    ]
    if _flag("web", given["web"]):
        file = [given["params_file"], {**clock, **_port(given["web_port"])}]
        actions.append(Node(executable="web_node", name="web", parameters=file, **again, **common))
    if given["video"]:
        source = {"source": _absolute(given["video"])}
        if cameras:
            source["camera"] = cameras[0]
        actions.append(
            Node(
                executable="video_node",
                name="camera",
                parameters=[given["params_file"], {**clock, **source}],
                **common,
            )
        )
    return actions


def _absolute(video: str) -> str:
    """A device's number as it is, a path made absolute: the node has a folder of its own."""
    return video if video.isdigit() else os.path.abspath(video)


def generate_launch_description() -> LaunchDescription:
    """The launch description."""
    default_file = PathJoinSubstitution(
        [FindPackageShare("vljepa_ros"), "config", "perception.yaml"]
    )
    arguments = [
        DeclareLaunchArgument(
            name, default_value=default_file if default is None else default, description=text
        )
        for name, (default, text) in ARGUMENTS.items()
    ]
    fastdds = [SetEnvironmentVariable(name, value) for name, value in fastdds_settings().items()]
    return LaunchDescription([*arguments, *fastdds, OpaqueFunction(function=_nodes)])
