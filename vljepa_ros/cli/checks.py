"""What `vljepa doctor` looks at. Invariant: a check says what it found; it never raises."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from vljepa_ros.ros.process import FASTDDS_TRANSPORTS, FASTDDS_VARIABLE
from vljepa_ros.ros.shared_memory import FOLDER, dead_ports

WORKS, NOTE, BROKEN = "works", "note", "broken"


@dataclass(frozen=True)
class Check:
    """One finding. `state`: WORKS, NOTE (the robot runs without it) or BROKEN (it does not)."""

    name: str
    state: str
    found: str
    fix: str = ""


def run_checks(bundle: str) -> Iterator[Check]:
    """Every check in the order of the report; `bundle` is what `find_bundle` takes."""
    yield _python()
    yield from _ros()
    for module, package in (
        ("numpy", "numpy"),
        ("yaml", "PyYAML"),
        ("cv2", "opencv-python-headless"),
        ("simplejpeg", "simplejpeg"),
        ("onnxruntime", "onnxruntime"),
        ("tokenizers", "tokenizers"),
    ):
        yield _module(package, module, f"pip install {package}")
    yield _optional("qdrant-edge-py", "only needed by the memory node: pip install qdrant-edge-py")
    yield _optional("av", "only needed to read video files: pip install av")
    yield _optional("pyarrow", "only needed to read LeRobot data sets: pip install pyarrow")
    yield _optional("rosbags", "only needed to index bags: pip install rosbags")
    yield _optional("qdrant-client", "only needed for a fleet's server: pip install qdrant-client")
    yield _optional("ray", "only needed to index on a cluster: pip install ray")
    yield _optional("aiohttp", "only needed by the web node: pip install aiohttp")
    yield _optional("mcp", "only needed by vljepa mcp: pip install mcp")
    yield _optional("onnx", "only needed to build TensorRT engines: pip install onnx")
    yield _optional("torch", "only needed to train and export models")
    yield _bundle(bundle)
    yield _video()


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    return Check("Python", WORKS, found)


def _module(name: str, module: str, fix: str) -> Check:
    """Whether a module that the robot needs imports, and its version."""
    try:
        version = getattr(import_module(module), "__version__", None) or metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    except Exception as error:  # a broken binary raises whatever it likes, and the report goes on
        return Check(name, BROKEN, f"does not import ({_line(error)})", fix)
    return Check(name, WORKS, version)


def _optional(name: str, purpose: str) -> Check:
    """A package's version, without importing it: some take seconds."""
    try:
        return Check(name, WORKS, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, NOTE, "not installed", purpose)


def _ros() -> Iterator[Check]:
    rclpy = _module(
        "rclpy", "rclpy",
        "run `. scripts/env.sh` after scripts/setup, or source your ROS distribution's set-up file",
    )  # fmt: skip
    yield _distribution(rclpy)
    yield rclpy
    yield _attempt("RMW", _rmw, "set RMW_IMPLEMENTATION to one that is installed")
    build = "build the package (scripts/setup, or colcon build) and source it"
    yield _attempt("interfaces", _interfaces, build)
    yield _attempt("nodes", _nodes, build)
    yield _transport()
    yield _shared_memory()
    yield Check("ROS_DOMAIN_ID", WORKS, os.environ.get("ROS_DOMAIN_ID", "0 (the default)"))


def _distribution(rclpy: Check) -> Check:
    try:
        return Check("ROS 2", WORKS, f"Python wheels (ros-rclpy {metadata.version('ros-rclpy')})")
    except metadata.PackageNotFoundError:
        if name := os.environ.get("ROS_DISTRO"):
            return Check("ROS 2", WORKS, f"distribution {name}")
        if rclpy.state == WORKS:
            return Check("ROS 2", WORKS, "a workspace of its own (ROS_DISTRO is not set)")
        return Check("ROS 2", BROKEN, "none", rclpy.fix)


def _attempt(name: str, look: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name, WORKS, look())
    except Exception as error:  # as in _module
        return Check(name, BROKEN, _line(error), fix)


def _rmw() -> str:
    import rclpy

    return str(rclpy.get_rmw_implementation_identifier())


def _interfaces() -> str:
    kinds = {"messages": "msg", "services": "srv", "actions": "action"}
    modules = {name: import_module(f"vljepa_ros.{kind}") for name, kind in kinds.items()}
    counts = {
        name: sum(isinstance(vars(module)[key], type) and "_" not in key for key in vars(module))
        for name, module in modules.items()
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _nodes() -> str:
    names = ("perception_node", "decoder_node", "memory_node", "video_node", "web_node")
    for name in names:
        import_module(f"vljepa_ros.nodes.{name}")
    return ", ".join(names)


def _transport() -> Check:
    value = os.environ.get(FASTDDS_VARIABLE)
    if value is None:
        return Check(
            FASTDDS_VARIABLE,
            NOTE,
            "not set: camera drivers with Fast DDS's default lose large images",
            "vljepa and the launch file set it for themselves; for a driver: "
            f"export {FASTDDS_VARIABLE}='{FASTDDS_TRANSPORTS}'",
        )
    return Check(FASTDDS_VARIABLE, WORKS, value)


def _shared_memory() -> Check:
    name = "shared memory"
    if dead := dead_ports():
        return Check(
            name,
            BROKEN,
            f"{len(dead)} dead ports of Fast DDS, left by killed processes: they hang others",
            f"rm {' '.join(map(str, dead))}",
        )
    return Check(name, WORKS, f"no dead port of Fast DDS in {FOLDER}")


def _bundle(source: str) -> Check:
    fix = "vljepa bundle verify says more; a new clone brings the shipped bundle back"
    try:
        from vljepa_ros.bundle.locate import find_bundle
        from vljepa_ros.bundle.spec import load_bundle
        from vljepa_ros.inference.verify import verify_bundle

        folder = find_bundle(source)
        problems = verify_bundle(folder)
        if problems:
            return Check("bundle", BROKEN, " ".join(problems), fix)
        found = f"{load_bundle(folder, verify=False).model_id}, verified, in {folder}"
    except Exception as error:  # as in _module
        return Check("bundle", BROKEN, _line(error), fix)
    return Check("bundle", WORKS, found)


def _video() -> Check:
    shipped = sorted(file for folder in _shares("videos") for file in folder.glob("[!.]*.mp4"))
    if not shipped:
        return Check("video", NOTE, "the shipped video is not here", "name one: --video FILE")
    try:
        from vljepa_ros.recordings.video import VideoSource

        VideoSource(shipped[0])
    except Exception as error:  # as in _module
        return Check("video", NOTE, _line(error), "pip install --upgrade av")
    return Check("video", WORKS, str(shipped[0]))


def _shares(name: str) -> list[Path]:
    """Where a folder of the package may lie: installed shares, then the source tree."""
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    installed = [Path(p) / "share" / "vljepa_ros" / name for p in [*prefixes, sys.prefix]]
    return [*installed, Path(__file__).resolve().parents[2] / name]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
