"""The scripts: their syntax, and what they do where the machine lacks something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("setup", "demo", "test", "env.sh", "find_ros")
SCRIPTS = [*(f"scripts/{name}" for name in NAMES), ".ci/run"]
TOOLS = """
    bash basename cat cut dirname env find grep mkdir python3 readlink rm sha256sum sort tail touch
    xargs
"""


Result = subprocess.CompletedProcess[str]


def run(*command: str | Path, env: dict[str, str] | None = None) -> Result:
    return subprocess.run(
        [str(c) for c in command], env=env, text=True, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_it(script: str) -> None:
    assert run("bash", "-n", ROOT / script).stderr == ""
    assert script.endswith(".sh") or os.access(ROOT / script, os.X_OK)


PROGRAMS = [
    str(file.relative_to(ROOT))
    for file in sorted((ROOT / "scripts").iterdir())
    if file.is_file() and file.name != "env.sh"
]


@pytest.mark.parametrize("script", PROGRAMS)
def test_help_is_the_usage_and_does_nothing(script: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")  # a checkout with nothing else in it
    before = sorted(tmp_path.rglob("*"))
    in_python = "python" in (ROOT / script).read_text().splitlines()[0] or script.endswith(".py")
    if in_python:
        pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
    program = [sys.executable] if in_python else []
    paths = [str(ROOT / "test" / "support"), *sys.path]  # whose helpers it looks for beside itself
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    result = run(*program, tmp_path / script, "--help", env=env)
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout.lower() and result.stderr == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_hooks_and_workflow_run_the_checks_of_scripts_test() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    script = (ROOT / "scripts" / "test").read_text()
    for hook in hooks:
        command = hook["entry"].removeprefix(".venv/bin/").split(" --force")[0]
        assert f"\n  {command} " in script
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["test"]["steps"][-1] == {"run": "scripts/test"}
    assert "colcon build" in str(jobs["build"]["steps"])


def test_ci_runs_the_tests_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[1:] == [
        "set -euo pipefail",
        'exec "$(dirname "${BASH_SOURCE[0]}")/../scripts/test"',
    ]


@pytest.mark.parametrize(
    ("present", "wanted", "found"),
    [
        ((), None, ""),
        (("humble", "kilted", "jazzy"), None, "kilted"),
        (("humble", "kilted", "jazzy"), "humble", "humble"),
        (("jazzy",), "kilted", "jazzy"),
        (("foxy", "galactic"), None, ""),
        (("humble/install",), None, "humble/install"),
    ],
)
def test_find_ros(tmp_path: Path, present: tuple[str, ...], wanted: str | None, found: str) -> None:
    for name in present:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "setup.bash").touch()
    env = {"PATH": os.environ["PATH"], "ROS_HOME_DIR": str(tmp_path)}
    if wanted:
        env["ROS_DISTRO"] = wanted
    result = run(ROOT / "scripts" / "find_ros", env=env)
    assert result.stdout.strip() == (str(tmp_path / found) if found else "")


class Machine:
    """A checkout on a machine of its own: only the commands that a test puts there exist."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin = folder / "checkout", folder / "bin"
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        self.bin.mkdir()
        for tool in TOOLS.split():
            real = shutil.which(tool)
            assert real is not None
            # A wrapper, not a link: Python looks for its home beside the link.
            self.put(tool, f'exec {sys.executable if tool == "python3" else real} "$@"')
        self.put("uname", "echo x86_64")
        self.put("id", "echo 1000")
        self.put("sudo", "exit 1")
        self.put("apt-get", "exit 0")

    def put(self, command: str, body: str) -> None:
        file = self.bin / command
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)

    def setup(self, profile: str = "robot", **more: str) -> Result:
        env = {"PATH": str(self.bin), "ROS_HOME_DIR": str(self.bin), "HOME": str(self.bin), **more}
        return run(self.bin / "bash", self.checkout / "scripts" / "setup", profile, env=env)

    def complete(self) -> None:
        """Put a compiler there, and a Python whose packages install and build nothing."""
        for tool in ("g++", "cmake", "make"):
            self.put(tool, "exit 0")
        self.put("python", f'echo "$@" >> {self.bin}/python-calls')
        self.put(
            "python3",
            f"""if [ "$2" != venv ]; then exec {sys.executable} "$@"; fi
            mkdir -p .venv/bin && cat {self.bin}/python > .venv/bin/python
            chmod +x .venv/bin/python && touch .venv/bin/activate""",
        )
        self.put("chmod", f'exec {shutil.which("chmod")} "$@"')
        inputs = "msg srv action cmake vljepa_ros launch config engines examples foxglove videos"
        for folder in inputs.split():
            (self.checkout / folder).mkdir()
        for file in ("CMakeLists.txt", "package.xml", "msg/A.msg"):
            (self.checkout / file).touch()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_the_right_to_install_it_prints_the_one_command(machine: Machine) -> None:
    result = machine.setup()
    assert result.returncode == 1
    assert "sudo apt-get update && sudo apt-get install --yes g++ cmake make\n" in result.stderr
    assert not (machine.checkout / ".venv").exists()


def test_with_the_right_to_install_it_installs(machine: Machine) -> None:
    machine.put("id", "echo 0")
    machine.put("apt-get", f'echo "$@" >> {machine.bin}/asked; [ "$1" = update ]')
    result = machine.setup()
    assert result.returncode == 1  # this apt-get installs nothing
    assert (machine.bin / "asked").read_text().splitlines() == [
        "update",
        "install --yes --no-install-recommends g++ cmake make",
    ]
    assert "the whole log is" in result.stderr


def test_no_wheels_for_this_processor(machine: Machine) -> None:
    machine.put("uname", "echo aarch64")
    result = machine.setup()
    assert result.returncode == 1
    assert "on this aarch64 machine install a ROS 2 distribution" in result.stderr


def test_a_failing_step_shows_the_end_of_its_log(machine: Machine) -> None:
    for tool in ("g++", "cmake", "make"):
        machine.put(tool, "exit 0")
    machine.put(
        "python3",
        f"""[ "$2" != venv ] || {{ echo no space left on device; exit 1; }}
        exec {sys.executable} "$@\"""",
    )
    result = machine.setup()
    assert result.returncode == 1
    assert "no space left on device" in result.stderr
    assert "Python environment" in result.stdout


def test_an_unknown_profile(machine: Machine) -> None:
    result = machine.setup("robots")
    assert result.returncode == 2
    assert "'robots' is neither robot nor test" in result.stderr


def test_only_what_changed_is_done_again(machine: Machine) -> None:
    machine.complete()

    def steps() -> list[str]:
        result = machine.setup()
        assert result.returncode == 0, result.stderr
        return [line.split(" ...")[0].split(" (")[0] for line in result.stdout.splitlines()]

    everything = ["Python environment", "Python packages", "CMake files of the ROS wheels"]
    everything.append("vljepa_ros")
    assert steps() == everything
    assert steps() == []
    (machine.checkout / "msg" / "A.msg").write_text("bool a")
    assert steps() == ["vljepa_ros"]
    (machine.checkout / "vljepa_ros" / "new.py").touch()
    assert steps() == ["vljepa_ros"]
    (machine.checkout / "vljepa_ros" / "new.py").write_text("edited = True")
    assert steps() == []
    (machine.checkout / "scripts" / "requirements" / "robot.txt").write_text("numpy")
    assert steps() == everything
    assert "colcon" in (machine.bin / "python-calls").read_text()


def test_the_wheels_are_of_the_release_that_is_asked_for(machine: Machine) -> None:
    machine.complete()
    calls, made = machine.bin / "python-calls", machine.checkout / ".venv" / "made"

    def lists(**environment: str) -> set[str]:
        """Which ROS is installed. Each has an environment and a build of its own."""
        calls.write_text("")
        result = machine.setup(**environment)
        assert result.returncode == 0, result.stderr
        return {word.split("/")[-1] for word in calls.read_text().split() if "/ros" in word}

    assert lists() == {"ros.txt"}
    made.touch()
    assert lists(ROS_DISTRO="jazzy") == {"ros-jazzy.txt"}
    assert not made.exists() and not (machine.checkout / ".colcon" / "build").exists()
    made.touch()
    assert lists(ROS_DISTRO="jazzy") == set() and made.exists()
    assert lists(ROS_DISTRO="humble") == {"ros.txt"}  # of which there are no wheels
    assert not made.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_env_gives_rclpy_the_package_and_the_command(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    check = (
        f". {ROOT}/scripts/env.sh && . {ROOT}/scripts/env.sh && cd {tmp_path} && set -u && "
        "python -c 'import rclpy, vljepa_ros.msg as m; print(m.Utterance.__name__)' && "
        "vljepa --version"
    )
    env = {key: os.environ[key] for key in ("HOME", "ROS_HOME_DIR") if key in os.environ}
    result = run(shell, "-c", check, env={**env, "PATH": "/usr/local/bin:/usr/bin:/bin"})
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert result.stdout.splitlines() == ["Utterance", f"vljepa_ros {version}"], result.stderr
    assert result.stderr == ""


def test_relocate_wheels_rewrites_foreign_headers_only() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from relocate_wheels import FOLDERS, relocate
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    python, numpy = FOLDERS.values()
    foreign = "/opt/python/cp312-cp312/include/python3.12;/b/site-packages/numpy/_core/include"
    text = f'X "{foreign}"'
    assert relocate(text) == f'X "{python};{numpy}"'
    assert relocate(relocate(text)) == relocate(text)
    for kept in ('"${_IMPORT_PREFIX}/include/std_msgs"', '"/usr/include/eigen3"'):
        assert relocate(kept) == kept
