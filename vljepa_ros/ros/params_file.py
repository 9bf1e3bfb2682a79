"""Parameter files, judged before ROS reads them: it runs on defaults where nothing in one fits.

Invariant: a file that passes holds parameters for the nodes that are started, and no entry that
means one of them but misses it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vljepa_ros.errors import VLJepaError

NODES = ("perception", "decoder", "memory", "web", "camera")  # that this package has
_KEY = "ros__parameters"


def check_params(file: Path, namespace: str = "", started: Sequence[str] = NODES[:2]) -> None:
    """VLJepaError unless the file holds parameters for nodes of this package in `namespace`.

    `started`: which of them will run; none may be meant by an entry and missed by it.
    """
    if not file.is_file():
        raise VLJepaError(f"There is no parameter file {file}; name one that exists.")
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise VLJepaError(f"The parameter file {file} is not valid YAML: {reason}.") from None
    keys = list(_keys(content)) if isinstance(content, Mapping) else []
    if not keys:
        raise VLJepaError(
            f"{file} is not a parameter file: no node in it has '{_KEY}'; copy the package's "
            "config/perception.yaml and change what you need."
        )
    for node in started:
        meant = [key for key in keys if key.rsplit("/", 1)[-1] == node]
        if meant and not any(_fits(key, f"{namespace}/{node}") for key in meant):
            raise VLJepaError(
                f"{file}: '{meant[0]}' is not the node {namespace}/{node} that is started; write "
                f"/**/{node}, which is right in every namespace."
            )
    if not any(_fits(key, f"{namespace}/{node}") for key in keys for node in NODES):
        last = keys[0].rsplit("/", 1)[-1]
        close = (difflib.get_close_matches(last, NODES, 1) or NODES)[0]
        raise VLJepaError(
            f"{file} has parameters for {', '.join(keys[:3])} and for no node of this package; "
            f"write e.g. /**/{close}."
        )


def _keys(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """The names that have parameters, as they are written, of namespaces within namespaces too."""
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            if _KEY in value:
                yield name
            yield from _keys({k: v for k, v in value.items() if k != _KEY}, name)


def _fits(key: str, node: str) -> bool:
    """Whether rcl gives the parameters of `key` to the node of that full name."""
    pattern = re.escape("/" + key.lstrip("/"))
    pattern = pattern.replace(r"/\*\*", r"(/\w+)*").replace(r"/\*", r"/\w+")
    return re.fullmatch(pattern, node, re.ASCII) is not None
