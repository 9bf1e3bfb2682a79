"""For `pip install .`: the ROS-free layers and the `vljepa` command on a workstation with no ROS.

In a colcon workspace package.xml and CMakeLists.txt build the package, and this file is not used.
What stands fast is in pyproject.toml; here is what is computed: the version, the requirement
files, the shared data.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "scripts" / "requirements"


def requirements(name):
    """The packages of a requirement file and of those that it includes."""
    found = []
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        included = re.match(r"-r (\w+)\.txt", line)
        if included:
            found += requirements(included[1])
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def shared_data():
    """What lies in share/vljepa_ros of a ROS installation, for the same place of a Python one."""
    files = {"share/vljepa_ros": ["package.xml"]}
    for top in ("config", "engines", "msg"):
        for file in sorted((ROOT / top).rglob("*")):
            if file.is_file():
                folder = Path("share", "vljepa_ros", file.relative_to(ROOT).parent)
                files.setdefault(str(folder), []).append(str(file.relative_to(ROOT)))
    return list(files.items())


setup(
    version=re.search(r"<version>(.+?)</version>", (ROOT / "package.xml").read_text())[1],
    install_requires=requirements("robot"),
    extras_require={
        "export": requirements("export"),
        "train": requirements("train"),
        "memory": requirements("memory"),
        "fleet": requirements("fleet"),
        "cluster": requirements("cluster"),
        "web": requirements("web"),
        "data": requirements("data"),
        "agents": requirements("agents"),
        "openvino": ["openvino>=2025.0"],
        "tensorrt": requirements("tensorrt"),
        "tensorrt-rtx": requirements("tensorrt-rtx"),
        "test": requirements("test"),
    },
    data_files=shared_data(),
)
