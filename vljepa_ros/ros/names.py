"""Names that users give to topics, namespaces and cameras, judged before ROS sees them.

Invariant: what passes is a name that rcl takes. Its own errors say neither whose value was wrong
nor what to write instead, and come as exceptions of many kinds.
"""

from __future__ import annotations

import re

from vljepa_ros.errors import VLJepaError

LONGEST = 120  # characters; ROS has room for 247, of the namespace, the topic and what is added
_PART = r"(?:[A-Za-z_]|\{node\})(?:\w|\{node\})*"
_TOPIC = re.compile(rf"(?:~/|/)?{_PART}(?:/{_PART})*", re.ASCII)
_NAMESPACE = re.compile(r"(?:/[A-Za-z_]\w*)*", re.ASCII)
_CAMERA = re.compile(r"[A-Za-z]\w*", re.ASCII)


def check_topic(whose: str, topic: str) -> None:
    """VLJepaError unless ROS takes the topic. `whose`: e.g. "Parameter 'front.topic'"."""
    if not _TOPIC.fullmatch(topic):
        raise VLJepaError(
            f"{whose}: {_shown(topic)} is not the name of a topic: write letters, digits and "
            "underscores between slashes, and begin no part with a digit, e.g. /front/image_raw."
        )
    _check_length(whose, topic)


def check_camera(whose: str, name: str) -> None:
    """VLJepaError unless topics and parameters can bear the camera's name."""
    if not _CAMERA.fullmatch(name):
        usable = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_")
        example = usable if _CAMERA.fullmatch(usable) else f"camera_{usable}".strip("_")
        raise VLJepaError(
            f"{whose}: {_shown(name)} is not a name for a camera: write letters, digits and "
            f"underscores, and begin with a letter, e.g. {example[:30]}."
        )
    _check_length(whose, name)


def checked_namespace(whose: str, text: str) -> str:
    """The namespace as ROS writes it, '/a/b', or '' for none. VLJepaError unless it is one."""
    namespace = "".join(f"/{part}" for part in text.split("/") if part)
    if not _NAMESPACE.fullmatch(namespace):
        raise VLJepaError(
            f"{whose}: {_shown(text)} is no namespace: write letters, digits and underscores "
            "between slashes, and begin no part with a digit, e.g. /robot1."
        )
    _check_length(whose, namespace)
    return namespace


def _check_length(whose: str, name: str) -> None:
    if len(name) > LONGEST:
        raise VLJepaError(
            f"{whose}: {_shown(name)} has {len(name)} characters; write at most {LONGEST}."
        )


def _shown(name: str) -> str:
    """A name as a message shows it: in quotes, and not at any length."""
    return repr(name if len(name) <= 40 else name[:40] + "…")
