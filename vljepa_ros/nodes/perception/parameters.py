"""The perception node's parameters, and the perceiver's settings that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vljepa_ros.perception.images import Levels
from vljepa_ros.perception.settings import Settings
from vljepa_ros.ros.lifecycle import AUTOSTART, ENGINES
from vljepa_ros.ros.names import check_camera, check_topic
from vljepa_ros.ros.parameters import ParameterError, Spec

COMMON = (
    AUTOSTART,
    *ENGINES,
    Spec("cameras", ["camera"], "Names of the cameras."),
    Spec("rate", 0.0, "Steps per second and camera; 0: the bundle's sample rate.",
         live=True, low=0, high=1000),
    Spec("queries", [""], "Standing questions; none: the bundle's default. A bundle "
         "without a query takes none.", live=True),
    Spec("gate_threshold", -1.0, "Novelty gate: grey levels (0..255) of a block mean that are new; "
         "0: everything is; -1: learnt from each camera's noise, and never under the bundle's.",
         live=True, low=-1, high=255),
    Spec("gate_max_age", 10.0, "Seconds after which a clip is encoded although nothing is new.",
         live=True, low=0, high=86400),
    Spec("change_threshold", 0.0, "Change detector: Ward cost that equals a change score of 1; "
         "0: the bundle's.", live=True, low=0, high=1e6),
    Spec("candidate", 0, "Change detector: newest steps that are held against as many before them; "
         "0: the bundle's.", live=True, low=0, high=1000),
    Spec("min_segment", 0, "Change detector: steps in the shortest segment; 0: the bundle's.",
         live=True, low=0, high=100000),
    Spec("hysteresis", 0.0, "Change detector: the score must fall below this before the next "
         "change, unless the last one is two candidates ago or the meaning twice as far from what "
         "was said; 0: the bundle's.", live=True, low=0, high=1),
    Spec("labels", [""], "Standing labels, scored at every step on the topic labels; none: none.",
         live=True),
    Spec("label_template", "", "Sentence around each label, with {} where it goes; empty: the "
         "bundle's.", live=True),
    Spec("change_frames", 0, "Pictures of the new segment that a change carries, for a decoder "
         "that shows them to a VLM; 0: none.", live=True, low=0, high=4),
    Spec("max_gap", 3.0, "Seconds without a frame after which a stream begins anew.",
         live=True, low=0.01, high=86400),
)  # fmt: skip


def camera_specs(camera: str) -> tuple[Spec, ...]:
    """The parameters of one camera."""
    return (
        Spec(f"{camera}.topic", "", "Image topic; empty: <camera>/image_raw, with /compressed "
             "where the transport is."),
        Spec(f"{camera}.transport", "raw", "Type of the topic.", choices=("raw", "compressed")),
        Spec(f"{camera}.rate", 0.0, "Steps per second of this camera; 0: the parameter rate.",
             live=True, low=0, high=1000),
        Spec(f"{camera}.black", 0, "16-bit images: the lowest value that matters; it and what is "
             "below it is black.", low=0, high=65534),
        Spec(f"{camera}.white", 65535, "16-bit images: the highest value that matters; it and what "
             "is above it is white.", low=1, high=65535),
    )  # fmt: skip


def levels(values: Mapping[str, Any], camera: str) -> Levels:
    """(black, white) of a camera's 16-bit images. ParameterError unless white is above black."""
    black, white = values[f"{camera}.black"], values[f"{camera}.white"]
    if white <= black:
        raise ParameterError(
            f"Parameter '{camera}.white' must be above '{camera}.black' ({black}), not {white}."
        )
    return black, white


def check_names(values: Mapping[str, Any]) -> None:
    """VLJepaError unless ROS can bear the names of the cameras and of their topics."""
    names = values["cameras"]
    if not names or len(set(names)) != len(names):
        raise ParameterError("Parameter 'cameras' must name at least one camera, and each once.")
    for name in names:
        check_camera("Parameter 'cameras'", name)
        if topic := values[f"{name}.topic"]:
            check_topic(f"Parameter '{name}.topic'", topic)


def settings(values: Mapping[str, Any]) -> Settings:
    """The perceiver's settings from parameter values, where 0, -1 and empty mean the bundle's."""
    rates = {n: values[f"{n}.rate"] for n in values["cameras"] if values[f"{n}.rate"] > 0}
    optional = {
        name: values[name] or None
        for name in ("rate", "change_threshold", "candidate", "min_segment", "hysteresis")
    }
    threshold = values["gate_threshold"]
    return Settings(
        rates=rates,
        queries=tuple(query for query in values["queries"] if query.strip()),
        gate_threshold=None if threshold < 0 else threshold,
        gate_max_age=values["gate_max_age"],
        max_gap=values["max_gap"],
        **optional,
    )
