"""The container files name what there is: files, packages, stages, services and parameters.

Nothing is built here: no Docker daemon is needed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from parameter_files import check_parameters

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
REQUIREMENTS = ROOT / "scripts" / "requirements"
PAGE = (ROOT / "docs" / "containers.md").read_text("utf-8")
OPTIONAL = {"tf2_ros_py", "visualization_msgs"}  # of ROS: what a node does without
SERVICES = {"camera", "perception", "decoder", "memory", "web"}
EXECUTABLES = {"camera": "video_node"}  # others are named as their service
PARAMS = "/params.yaml"


@dataclass
class Stage:
    """One `FROM` of a Dockerfile, and what stands below it: instruction and arguments."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.steps if name == instruction]


class Dockerfile:
    """The stages of a Dockerfile by their names, and its build arguments with their defaults."""

    def __init__(self, name: str) -> None:
        self.stages: dict[str, Stage] = {}
        self.arguments: dict[str, str] = {}
        text = (DOCKER / name).read_text("utf-8")
        text = re.sub(r"^ *#.*\n", "", text, flags=re.M).replace("\\\n", " ")
        for line in filter(None, map(str.strip, text.splitlines())):
            instruction, _, rest = line.partition(" ")
            rest = " ".join(rest.split())
            if instruction == "FROM":
                base, _, stage = rest.partition(" AS ")
                assert stage and stage not in self.stages
                self.stages[stage] = Stage(base)
                continue
            if instruction == "ARG":
                self.arguments |= [rest.split("=", 1)]
            if self.stages:
                list(self.stages.values())[-1].steps.append((instruction, rest))

    def chain(self, name: str) -> list[Stage]:
        """A stage and those that it stands on, of this file, and that it copies from."""
        stage = self.stages[name]
        others = [stage.base, *re.findall(r"--from=(\S+)", " ".join(stage.of("COPY")))]
        return [stage, *(s for o in others if o in self.stages for s in self.chain(o))]

    def steps(self, name: str, instruction: str) -> list[str]:
        return [step for stage in self.chain(name) for step in stage.of(instruction)]


FILES = {name: Dockerfile(name) for name in ("Dockerfile", "Dockerfile.jetpack6")}
IMAGES = [("Dockerfile", "robot"), ("Dockerfile", "cuda"), ("Dockerfile.jetpack6", "robot")]


def in_context(path: Path) -> bool:
    """Whether .dockerignore, which leaves out all that it does not name, lets a file through."""
    rules = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    rules = [rule for rule in rules if rule and rule[0] != "#"]
    assert rules[0] == "*" and rules[-1] == "**/__pycache__"
    name = path.relative_to(ROOT).as_posix()
    return any(fnmatch(name, rule[1:]) or name.startswith(f"{rule[1:]}/") for rule in rules[1:-1])


def requirement(file: str) -> str:
    return (REQUIREMENTS / f"{file}.txt").read_text("utf-8")


@pytest.mark.parametrize(("file", "image"), IMAGES)
def test_what_is_copied_is_there(file: str, image: str) -> None:
    copied = set()
    for step in FILES[file].steps(image, "COPY"):
        *sources, target = step.split()
        stage = re.fullmatch(r"--from=(.+)", sources[0])
        if stage is not None:
            assert stage[1] in FILES[file].stages
            continue
        for source in sources:
            path = (ROOT / source).resolve()
            assert path.exists() and (path == ROOT or in_context(path)), source
            assert path.is_file() or target.endswith("/")
            copied.add(source)
    assert {".", "docker/entrypoint"} <= copied


def test_the_context_has_what_is_built_and_installed() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text("utf-8")
    (installed,) = re.findall(r"install\(DIRECTORY (\w+ [\w ]+)\n", cmake)
    sources = re.findall(r"^  ((?:msg|srv|action)/\w+\.\w+)$", cmake, re.M)
    files = re.findall(r"\b((?:cmake|examples)/\w+\.\w+)\b", cmake)
    assert sources and files
    for name in ("CMakeLists.txt", "package.xml", "vljepa_ros", *installed.split(), *sources):
        assert in_context(ROOT / name), name
    for name in files:
        assert in_context(ROOT / name) and (ROOT / name).is_file(), name
    for name in (".git", ".venv", ".colcon", "test", "docs"):
        assert not in_context(ROOT / name), name


@pytest.mark.parametrize(("file", "image"), IMAGES)
def test_apt_installs_what_package_xml_names(file: str, image: str) -> None:
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    named = {str(one.text) for tag in ("depend", "exec_depend") for one in package.findall(tag)}
    python = {name for name in named if name.startswith("python3-")}
    run = " ".join(step for stage in runtime(file, image) for step in stage.of("RUN"))
    found = {name.replace("-", "_") for name in re.findall(r'"ros-\$ROS_DISTRO-([\w-]+)"', run)} - {
        "ros_core"
    }
    assert found == named - python | OPTIONAL
    of_pip = {"python3-opencv": "opencv-python-headless", "python3-yaml": "PyYAML"}
    for name in python:
        assert f"\n{of_pip.get(name, name.removeprefix('python3-'))}>=" in requirement("robot")
    from_ros = FILES[file].stages["runtime" if file == "Dockerfile" else "jetpack"].base
    assert from_ros.endswith("-ros-core") or '"ros-$ROS_DISTRO-ros-core"' in run


def runtime(file: str, image: str) -> list[Stage]:
    """The stages that an image stands on, without those that it copies from."""
    found, stages = [], FILES[file].stages
    while image in stages:
        found.append(stages[image])
        image = stages[image].base
    return found


@pytest.mark.parametrize(("file", "image"), IMAGES)
def test_pip_installs_what_the_requirements_name(file: str, image: str) -> None:
    run = " ".join(FILES[file].steps(image, "RUN"))
    tensorrt = FILES[file].arguments.get("TENSORRT", "")
    names = re.findall(r'--requirement "?/requirements/([\w$-]+)\.txt"?', run)
    expected = {"robot", "memory", "web"}
    if image == "cuda":
        expected |= {"$TENSORRT"}
        assert requirement(tensorrt).count("pycuda>=") == 1
        assert {"TENSORRT"} == {
            name for name in re.findall(r"\$(\w+)\.txt", run) if name in FILES[file].arguments
        }
    if file == "Dockerfile.jetpack6":
        expected |= {"jetpack"}  # without TensorRT, which the base image has
        assert "grep --invert-match '^tensorrt' /requirements/tensorrt.txt" in run
        left = [line for line in requirement("tensorrt").splitlines() if line[:8] != "tensorrt"]
        assert [line.split(">=")[0] for line in left if line[0] != "#"] == ["onnx", "pycuda"]
    assert set(names) == expected
    for name in expected - {"$TENSORRT", "jetpack"}:
        assert (REQUIREMENTS / f"{name}.txt").is_file()
    for step in FILES[file].steps(image, "RUN"):
        for given in re.findall(r"pip install ([^&]+)", step):  # nothing that no file names
            plain = [word for word in shlex.split(given) if not word.startswith("-")]
            folders = ("/requirements/", "/constraints.txt", "/wheels")
            assert all(word.startswith(folders) for word in plain), plain


def test_the_extras_are_the_requirement_files() -> None:
    setup = (ROOT / "setup.py").read_text("utf-8")
    for name in ("tensorrt", "tensorrt-rtx", "memory", "web"):
        assert f'"{name}": requirements("{name}")' in setup
    rtx = requirement("tensorrt-rtx").splitlines()
    assert [line for line in requirement("tensorrt").splitlines() if line in rtx] == [
        "onnx>=1.16", "pycuda>=2024.1"
    ]  # fmt: skip


def test_the_page_names_the_versions_of_the_files() -> None:
    rows = re.findall(r"^\| (`.+?) \| (`.+?) \|", PAGE, re.M)
    told = {
        name: value
        for names, values in rows
        for name, value in zip(re.findall(r"`(.+?)`", names), re.findall(r"`(.+?)`", values))
    }
    arguments = FILES["Dockerfile"].arguments | FILES["Dockerfile.jetpack6"].arguments
    internal = {"DEBIAN_FRONTEND", "ROS_APT_SOURCE", "ROS_APT_SOURCE_SHA256"}
    assert told == {k: v for k, v in arguments.items() if k not in internal}
    assert f"`l4t-jetpack:{arguments['L4T']}`" in PAGE
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert arguments["ROS_DISTRO"] in ci["jobs"]["build"]["strategy"]["matrix"]["distribution"]


# ------------------------------------------------------------------ compose


def merged(*names: str) -> dict[str, Any]:
    """The services of compose files, as Compose lays a later one over those before it."""

    def over(below: Any, above: Any) -> Any:
        if isinstance(below, dict) and isinstance(above, dict):
            return below | {key: over(below.get(key), value) for key, value in above.items()}
        return above

    found: dict[str, Any] = {}
    for name in names:
        found = over(found, yaml.safe_load((DOCKER / name).read_text("utf-8")))
    return found


COMPOSED = {
    "": {"robot"}, "compose.cuda.yaml": {"robot", "cuda"}, "compose.jetpack6.yaml": {"jetpack6"}
}  # fmt: skip


@pytest.mark.parametrize("overlay", COMPOSED)
def test_services_run_nodes_that_there_are(overlay: str) -> None:
    compose = merged("compose.yaml", *filter(None, [overlay]))
    cmake = (ROOT / "CMakeLists.txt").read_text("utf-8")
    (nodes,) = re.findall(r"foreach\(node ([\w ]+)\)", cmake)
    assert set(compose["services"]) == SERVICES
    for name, service in compose["services"].items():
        program, *arguments = service["command"]
        assert program == EXECUTABLES.get(name, f"{name}_node") and program in nodes.split()
        assert arguments == ["--ros-args", "--params-file", PARAMS]
        assert service["network_mode"] == "host" and service["ipc"] == "host"
        mounts = dict(mount.split(":")[:2] for mount in map(defaults, service["volumes"]))
        sources = {target: source for source, target in mounts.items()}
        assert (DOCKER / sources[PARAMS]).is_file()
        for source in mounts:
            assert source[0] in "./" or source in compose["volumes"]
        if name != "camera":
            assert {"cache", "memory"} <= set(mounts)
            assert mounts["cache"] == "/home/robot/.cache"
            assert mounts["memory"] == "/home/robot/.local/share/vljepa"


def defaults(text: str) -> str:
    """What Compose reads where the shell says nothing else."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)


@pytest.mark.parametrize("overlay", COMPOSED)
def test_services_are_built_from_stages_that_there_are(overlay: str) -> None:
    images: dict[str, Any] = {}
    for service in merged("compose.yaml", *filter(None, [overlay]))["services"].values():
        build = service["build"]
        assert (DOCKER / build["context"]).resolve() == ROOT
        file = FILES[Path(build["dockerfile"]).name]
        assert (ROOT / build["dockerfile"]).is_file() and build["target"] in file.stages
        assert set(build["args"]) <= set(file.arguments)
        for name, value in build["args"].items():
            assert defaults(value) == file.arguments[name]
        assert images.setdefault(service["image"], build) == build  # one way to make each
    assert set(images) == {f"vljepa_ros:{name}" for name in COMPOSED[overlay]}


def test_the_volumes_belong_to_the_robot_s_user() -> None:
    targets = {
        defaults(mount).split(":")[1]
        for service in merged("compose.yaml")["services"].values()
        for mount in service["volumes"]
    }
    for file, image in IMAGES:
        stages = runtime(file, image)
        (made,) = [step for stage in stages for step in stage.of("RUN") if "useradd" in step]
        folders = made.split("--owner=robot ")[1].split()
        assert {target for target in targets if target.startswith("/home/")} <= set(folders)
        assert stages[0].of("USER") == ["robot"]


def test_the_parameters_are_those_of_the_nodes() -> None:
    text = (DOCKER / "params.yaml").read_text("utf-8")
    values = check_parameters(text, "docker/params.yaml")
    assert {node for node in values if "bundle" in values[node]} == {
        "perception", "decoder", "memory"
    }  # fmt: skip
    assert {values[node].get("bundle", "tabletop") for node in values} == {"tabletop"}
    share = "/opt/vljepa/share/vljepa_ros/"
    source = values["camera"]["source"]
    assert source.startswith(share) and (ROOT / source.removeprefix(share)).is_file()
    assert source in PAGE


# ------------------------------------------------------------------ entry point


def test_the_entry_point_runs_a_command_where_all_is_found(tmp_path: Path) -> None:
    text = (DOCKER / "entrypoint").read_text("utf-8")
    entry = tmp_path / "entrypoint"
    entry.write_text(text.replace("/opt/", f"{tmp_path}/opt/"))
    entry.chmod(0o755)
    assert os.access(DOCKER / "entrypoint", os.X_OK)
    for name, line in (("ros/x/setup.bash", "export ROS=$#"),
                       ("vljepa/local_setup.bash", f"export PYTHONPATH={ROOT}")):  # fmt: skip
        made = tmp_path / "opt" / name
        made.parent.mkdir(parents=True)
        made.write_text(f"{line}\n")
    node = tmp_path / "opt" / "vljepa" / "lib" / "vljepa_ros" / "some_node"
    venv = tmp_path / "opt" / "venv" / "bin"
    for folder in (node.parent, venv):
        folder.mkdir(parents=True)
    (venv / "python3").symlink_to(sys.executable)
    node.write_text('#!/bin/sh\necho "$$ $ROS $*"\nenv\n')
    node.chmod(0o755)

    def entered(**environment: str) -> dict[str, str]:
        with subprocess.Popen(
            [entry, "some_node", "--ros-args", "-p", "a:=b c"], cwd=tmp_path, text=True,
            env={"PATH": os.environ["PATH"], "ROS_DISTRO": "x", **environment},
            stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        first, *lines = printed.splitlines()
        assert first == f"{process.pid} 1 --ros-args -p a:=b c"  # in its place: signals reach it
        return dict(line.split("=", 1) for line in lines if "=" in line)

    environment = entered()
    assert environment["FASTDDS_BUILTIN_TRANSPORTS"].startswith("DEFAULT?")
    assert Path(environment["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()
    environment = entered(FASTDDS_BUILTIN_TRANSPORTS="UDPv4")
    assert environment["FASTDDS_BUILTIN_TRANSPORTS"] == "UDPv4"
