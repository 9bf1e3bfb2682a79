"""What a page may ask for, and how much of it.

Invariant: what `parse` lets through has the types and sizes named here, whatever was sent. There
is no request that moves a robot, changes a parameter or writes a file.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.names import check_camera

MESSAGE = 16 * 1024  # bytes
TEXT = 500  # characters of a question, a condition or a search
CANDIDATES = 32
CANDIDATE = 200  # characters
CAMERA = 100  # characters
MOMENTS = 24  # that a search may show
RATE, BURST = 5.0, 10  # requests per second, and at once
IN_FLIGHT = 4  # questions and searches of one page
WATCHES = 8  # of one page
LARGEST_ID = 2**53 - 1  # that JavaScript counts to


class RequestError(VLJepaError):
    """A request cannot be carried out. `id`: the request's; None where it could not be read."""

    def __init__(self, sentence: str, id: int | None = None) -> None:
        super().__init__(sentence)
        self.id = id


@dataclass(frozen=True)
class Ask:
    """A question about what a camera sees now; empty: what is seen, of a bundle asked nothing."""

    id: int
    camera: str
    question: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Watch:
    """A condition in words. `threshold`: cosine, 0..1; 0: the bundle's calibrated one."""

    id: int
    camera: str
    text: str
    threshold: float


@dataclass(frozen=True)
class Unwatch:
    """End a watch of this page."""

    id: int
    watch: int


@dataclass(frozen=True)
class Recall:
    """Search the memory. `camera` empty: all of them. `limit`: 1..MOMENTS."""

    id: int
    camera: str
    text: str
    limit: int


@dataclass(frozen=True)
class View:
    """Which camera's pictures the page shows; empty: none, it is not to be seen."""

    id: int
    camera: str


Request = Ask | Watch | Unwatch | Recall | View


class Bucket:
    """A token bucket: `RATE` requests per second, `BURST` at once."""

    def __init__(self, now: float) -> None:
        self._tokens = float(BURST)
        self._time = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed. `now`: seconds of a clock that never goes back."""
        self._tokens = min(float(BURST), self._tokens + (now - self._time) * RATE)
        self._time = now
        allowed = self._tokens >= 1
        self._tokens -= allowed
        return allowed


def parse(message: str) -> Request:
    """One message as a request. RequestError, with the request's id where it has one."""
    if len(message.encode(errors="surrogatepass")) > MESSAGE:
        raise RequestError(f"The message is larger than {MESSAGE // 1024} KiB; send less.")
    try:
        data = json.loads(message)
    except (ValueError, RecursionError):
        raise RequestError("The message is not JSON.") from None
    if not isinstance(data, dict):
        raise RequestError("The message is not a JSON object.")
    id = data.get("id")
    if type(id) is not int or not 0 <= id <= LARGEST_ID:
        raise RequestError("The request's 'id' must be a whole number.")
    kind = data.get("type")
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise RequestError(f"The request's 'type' must be one of {', '.join(_READERS)}.", id)
    try:
        return read(id, data)
    except VLJepaError as error:
        raise RequestError(str(error), id) from None


def _ask(id: int, data: dict[str, Any]) -> Ask:
    candidates = data.get("candidates", [])
    if not isinstance(candidates, list):
        raise RequestError("'candidates' must be a list of texts.")
    if len(candidates) > CANDIDATES:
        raise RequestError(
            f"There are {len(candidates)} possible answers; give at most {CANDIDATES}."
        )
    texts = tuple(_text(c, "A possible answer", CANDIDATE) for c in candidates)
    question = data.get("question")
    text = _text(question, "The question", TEXT) if question != "" else ""
    return Ask(id, _camera(data), text, texts)


def _watch(id: int, data: dict[str, Any]) -> Watch:
    text = _text(data.get("text"), "The condition", TEXT)
    return Watch(id, _camera(data), text, _threshold(data))


def _unwatch(id: int, data: dict[str, Any]) -> Unwatch:
    return Unwatch(id, _whole(data, "watch", -1, 0, LARGEST_ID))


def _recall(id: int, data: dict[str, Any]) -> Recall:
    text = _text(data.get("text"), "The search", TEXT)
    return Recall(id, _camera(data), text, _whole(data, "limit", 12, 1, MOMENTS))


def _view(id: int, data: dict[str, Any]) -> View:
    camera = _camera(data)
    if camera:  # it becomes part of a topic's name
        check_camera("'camera'", camera)
    return View(id, camera)


_READERS: dict[str, Callable[[int, dict[str, Any]], Request]] = {
    "ask": _ask, "watch": _watch, "unwatch": _unwatch, "recall": _recall, "view": _view,
}  # fmt: skip


def _camera(data: dict[str, Any]) -> str:
    camera = data.get("camera", "")
    return _text(camera, "The camera's name", CAMERA) if camera else ""


def _text(value: Any, what: str, longest: int) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{what} must be a text.")
    text = " ".join(value.split())
    if not text:
        raise RequestError(f"{what} is empty.")
    if len(text) > longest:
        raise RequestError(f"{what} has {len(text)} characters; give at most {longest}.")
    # A text with either of these cannot be a ROS message.
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise RequestError(f"{what} has a control character; leave it out.")
    return text


def _whole(data: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = data.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"'{name}' must be a whole number in {low}..{high}.")
    return value


def _threshold(data: dict[str, Any]) -> float:
    value = data.get("threshold", 0)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise RequestError("'threshold' must be a number in 0..1; 0: the calibrated one.")
    return float(value)
