"""Parameters that `vljepa up` gives its nodes over those of the file: its options, and `--set`.

Invariant: a value that leaves here has its parameter's type, and is for a node that is started.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from vljepa_ros.errors import VLJepaError

if TYPE_CHECKING:
    from vljepa_ros.ros.parameters import Spec

Values = dict[str, dict[str, Any]]  # by node and parameter
HOW_TO_START = {"memory": "--memory", "web": "--web", "camera": "--video"}


def parsed(settings: Iterable[str], started: Collection[str]) -> Values:
    """The values of `NODE.PARAM=VALUE`, for the nodes that are `started`.

    VLJepaError for what is no such text, names no node or parameter, or has a value that the
    parameter does not take.
    """
    found: Values = {}
    for text in settings:
        target, equals, value = text.partition("=")
        node, dot, name = target.strip().partition(".")
        if not (equals and dot and name):
            raise VLJepaError(f"--set '{text}': write NODE.PARAM=VALUE, e.g. perception.rate=2.")
        specs = _specs()
        if node not in specs:
            raise VLJepaError(f"--set '{text}': there is no node '{node}'{_instead(node, specs)}")
        if node not in started:
            raise VLJepaError(
                f"--set '{text}': the {node} node is not started; add {HOW_TO_START[node]}."
            )
        found.setdefault(node, {})[name] = _value(text, specs[node], name, value.strip())
    return found


def merged(options: Mapping[str, Mapping[str, Any]], settings: Values) -> Values:
    """Both, by the nodes of `options`; a setting is closer to the point than an option."""
    return {node: {**values, **settings.get(node, {})} for node, values in options.items()}


def refuse_unknown(node: Any, settings: Mapping[str, Any]) -> None:
    """VLJepaError for a parameter that the node, which is there by now, does not have."""
    known = sorted(node.get_parameters_by_prefix(""))
    for name in settings:
        if not node.has_parameter(name):
            what = f"{node.get_name()}.{name}"
            raise VLJepaError(f"--set {what}: there is no such parameter{_instead(name, known)}")


def _value(text: str, specs: Sequence[Spec], name: str, value: str) -> Any:
    """A value in the parameter's type."""
    spec = next((one for one in specs if one.name == name), None)
    if spec is None:
        camera, dot, _ = name.partition(".")
        spec = next((one for one in _of_camera(camera) if one.name == name), None) if dot else None
    if spec is None:
        names = [one.name for one in specs]
        raise VLJepaError(f"--set '{text}': there is no parameter '{name}'{_instead(name, names)}")
    return spec.checked(_read(value, spec))


def _read(value: str, spec: Spec) -> Any:
    """What a text stands for where a parameter of this kind is wanted."""
    if isinstance(spec.default, str):
        return value
    try:
        return float(value) if isinstance(spec.default, float) else yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        return value


def _instead(name: str, there: Collection[str]) -> str:
    """The end of a sentence about a name that is none: the ones that are near, else all."""
    close = difflib.get_close_matches(name, list(there), 1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there are: {', '.join(there)}."


def _of_camera(camera: str) -> Sequence[Spec]:
    from vljepa_ros.nodes.perception.parameters import camera_specs

    return camera_specs(camera)


def _specs() -> dict[str, Sequence[Spec]]:
    """The parameters of each node; of perception without those of its cameras."""
    from vljepa_ros.nodes.decoder import DecoderNode
    from vljepa_ros.nodes.memory.node import SPECS as MEMORY
    from vljepa_ros.nodes.perception.parameters import COMMON
    from vljepa_ros.nodes.video import SPECS as CAMERA
    from vljepa_ros.web.node import SPECS as WEB

    return {
        "perception": COMMON, "decoder": DecoderNode.specs, "memory": MEMORY, "camera": CAMERA,
        "web": WEB,
    }  # fmt: skip
