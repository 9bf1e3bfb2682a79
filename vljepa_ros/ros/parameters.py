"""Parameters as data: name, default, meaning and range, declared and checked in one place.

Invariant: a value that a node reads has its declared type and lies in its declared range.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from vljepa_ros.errors import VLJepaError

Value = bool | int | float | str | list[str]
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class ParameterError(VLJepaError):
    """A parameter has the wrong type or lies outside its range."""


@dataclass(frozen=True)
class Spec:
    """One parameter. `live`: it can change while the node runs. `low`, `high`: of numbers."""

    name: str
    default: Value
    description: str
    live: bool = False
    low: float | None = None
    high: float | None = None
    choices: Sequence[str] = ()

    def checked(self, value: Any) -> Any:
        """`value` in this parameter's type; a whole number will do for a number."""
        if isinstance(self.default, list):
            return self._checked_list(value)
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            hint = "; put quotes around it" if kind is str and value is not None else ""
            raise ParameterError(
                f"Parameter '{self.name}' must be {_KINDS[kind]}, not {value!r}{hint}."
            )
        number: Any = value
        if self.low is not None and self.high is not None and not self.low <= number <= self.high:
            raise ParameterError(
                f"Parameter '{self.name}' must be in {self.low:g}..{self.high:g}, not {value:g}."
            )
        if self.choices and value not in self.choices:
            raise ParameterError(
                f"Parameter '{self.name}' must be one of {', '.join(self.choices)}, not '{value}'."
            )
        return value

    def _checked_list(self, value: Any) -> list[str]:
        """A list of texts; ROS knows no type of an empty one, and hands it on as anything."""
        wanted = f"Parameter '{self.name}' must be a list of texts"
        if isinstance(value, str):
            raise ParameterError(f"{wanted}; write [{value}] for one.")
        if value is None or (isinstance(value, Sequence) and len(value) == 0):
            if self.default != [""]:
                raise ParameterError(f"{wanted} with at least one, e.g. {self.default}.")
            return [""]
        if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
            raise ParameterError(f"{wanted}, not {value!r}; put quotes around each.")
        return list(value)

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        note = "Can change while running." if self.live else "Read-only: set it before the start."
        described = ParameterDescriptor(
            name=self.name, description=f"{self.description} {note}", read_only=not self.live
        )
        if self.low is not None and self.high is not None:
            if isinstance(self.default, float):
                bounds = FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
                described.floating_point_range = [bounds]
            else:
                limits = IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)
                described.integer_range = [limits]
        if self.choices:
            described.additional_constraints = "one of " + ", ".join(self.choices)
        return described


def declare(node: Node, specs: Iterable[Spec]) -> list[str]:
    """Declare the parameters on the node; returns what is wrong with the values it was given.

    A wrong value leaves the default in place, so that the node comes up and can say what is wrong.
    """
    given = overrides(node)
    problems = []
    for spec in specs:
        value = spec.default
        if spec.name in given:
            try:
                value = spec.checked(given[spec.name])
            except ParameterError as error:
                problems.append(str(error))
        # The override is read above, where a whole number will do for a number.
        node.declare_parameter(spec.name, value, spec.descriptor(), ignore_override=True)
    return problems


def unknown(node: Node, spare: Iterable[Spec] = ()) -> list[str]:
    """A sentence for each parameter that the node was given and does not have.

    None for those in `spare` that were given their default: nothing is lost.
    """
    declared = list(node.get_parameters_by_prefix(""))
    harmless = {spec.name: spec.default for spec in spare}
    sentences = []
    for name, value in overrides(node).items():
        if name in declared or name.startswith("qos_overrides."):
            continue
        if name in harmless and value == harmless[name]:
            continue
        close = difflib.get_close_matches(name, declared, 1)
        hint = f"; did you mean '{close[0]}'?" if close else "."
        sentences.append(f"Parameter '{name}' does not exist{hint}")
    return sentences


def overrides(node: Node) -> Mapping[str, Any]:
    """The values given on the command line, in parameter files and by the constructor."""
    # rclpy has no public way to see an override before its parameter is declared.
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


def values(node: Node, specs: Iterable[Spec]) -> dict[str, Any]:
    """The current values by name."""
    found = {}
    for spec in specs:
        value = node.get_parameter(spec.name).value
        found[spec.name] = list(value) if isinstance(spec.default, list) else value
    return found
