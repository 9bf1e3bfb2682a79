"""From the pages' requests to the graph: out of the server's loop, into the executor's thread.

Invariant: everything of ROS happens in the executor's thread, and neither side ever waits for the
other: results come as futures.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage

from vljepa_ros.client import SemanticClient
from vljepa_ros.errors import VLJepaError
from vljepa_ros.stamps import to_ns

from .requests import Ask, Recall, Watch

log = logging.getLogger(__name__)
Event = dict[str, Any]


def seconds(stamp: Any) -> float:
    """A stamp in seconds, as the pages get it."""
    return to_ns(stamp) / 1e9


def number(value: Any) -> float | None:
    """A number that JSON has, to four digits; None for one that is not finite."""
    finite = float(value)
    return round(finite, 4) if math.isfinite(finite) else None


class Watching:
    """A watch that was begun. `result`: what came true, or a VLJepaError that says why not."""

    def __init__(self, bridge: Bridge) -> None:
        self.result: Future[Event] = Future()
        self.handle: Any = None  # the client's; of the executor's thread
        self._bridge = bridge

    def cancel(self) -> None:
        """End it; from any thread, also twice."""
        self._bridge.in_executor(self._cancel)

    def _cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()


class Bridge:
    """What the pages may have of the graph; called from any thread.

    `on_picture(camera, stamp, jpeg)` gets the pictures of the cameras that are looked at, in the
    executor's thread.
    """

    def __init__(self, node: Node, on_picture: Callable[[str, float, bytes], None]) -> None:
        self._node = node
        self._client = SemanticClient(node)
        self._on_picture = on_picture
        self._wanted: frozenset[str] = frozenset()
        self._pictures: dict[str, Any] = {}  # subscriptions by camera

    def ask(self, request: Ask) -> Future[Event]:
        """The answer to a question, with a score for each candidate."""
        return self._call(
            lambda: self._client.ask(request.question, request.candidates, request.camera), _answer
        )

    def recall(self, request: Recall) -> Future[Event]:
        """The moments that fit best, with thumbnails in base64."""
        cameras = [request.camera] if request.camera else []
        return self._call(
            lambda: self._client.recall(request.text, cameras, limit=request.limit), _moments
        )

    def watch(self, request: Watch, on_score: Callable[[Event], None]) -> Watching:
        """Watch for a condition; `on_score` gets its score at each step."""
        watching = Watching(self)

        def on_feedback(score: float, stamp_ns: int) -> None:
            on_score({"score": number(score), "stamp": stamp_ns / 1e9})

        def begin() -> Any:
            watching.handle = self._client.watch(
                request.text, request.camera, request.threshold, on_feedback=on_feedback
            )
            return watching.handle

        self._call(begin, _fired, watching.result)
        return watching

    def look(self, cameras: frozenset[str]) -> None:
        """Receive the pictures of these cameras, and of no other."""
        self._wanted = cameras
        self.in_executor(self._subscribe)

    def end(self) -> None:
        """The executor spins no more: cancel the watches, and give up the rest."""
        self._client.destroy()

    # -------------------------------------------------------------- between the threads

    def in_executor(self, job: Callable[[], None]) -> None:
        """Run `job` in the executor's thread, soon; never where the node has ended."""
        executor = self._node.executor
        if executor is not None:
            executor.create_task(job)

    @staticmethod
    def to_loop(loop: asyncio.AbstractEventLoop, job: Callable[[], None]) -> None:
        """Run `job` in the server's loop, soon; never where that has ended."""
        with suppress(RuntimeError):  # it was closed
            loop.call_soon_threadsafe(job)

    def _call(
        self, begin: Callable[[], Any], read: Callable[[Any], Event],
        done: Future[Event] | None = None,
    ) -> Future[Event]:  # fmt: skip
        """`begin()` in the executor's thread; `read` of its result, once that is there."""
        future: Future[Event] = Future() if done is None else done
        future.set_running_or_notify_cancel()  # so that nobody can cancel it under our hands

        def finish(response: Any) -> None:
            try:
                result = read(response.result())
            except VLJepaError as error:
                future.set_exception(error)
            except Exception:
                log.exception("A request of a page failed.")
                future.set_exception(VLJepaError("The request failed; see the web node's log."))
            else:
                future.set_result(result)

        def job() -> None:
            try:
                response = begin()
            except VLJepaError as error:
                future.set_exception(error)
            else:
                response.add_done_callback(finish)

        self.in_executor(job)
        return future

    # -------------------------------------------------------------- pictures

    def _subscribe(self) -> None:
        for camera in set(self._pictures) - self._wanted:
            self._node.destroy_subscription(self._pictures.pop(camera))
        for camera in self._wanted - set(self._pictures):
            self._pictures[camera] = self._node.create_subscription(
                CompressedImage, f"{camera}/thumbnail",
                lambda message, camera=camera: self._on_picture(
                    camera, seconds(message.header.stamp), bytes(message.data)
                ),
                qos_profile_sensor_data,
            )  # fmt: skip


def _answer(response: Any) -> Event:
    return {
        "answer": response.answer,
        "scores": [number(score) for score in response.scores],
        "cosines": [number(cosine) for cosine in response.cosines],
        "threshold": number(response.threshold),
        "stamp": seconds(response.stamp),
        "familiarity": number(response.familiarity),
        "note": response.message,
    }


def _fired(moment: Any) -> Event:
    return {
        "score": number(moment.score),
        "start": seconds(moment.start),
        "end": seconds(moment.end),
        "familiarity": number(moment.familiarity),
    }


def _moments(response: Any) -> Event:
    return {"moments": [_moment(moment) for moment in response.moments]}


def _moment(moment: Any) -> Event:
    thumbnail = moment.thumbnail
    return {
        "camera": moment.camera,
        "robot": moment.robot,
        "segment": moment.segment_id,
        "start": seconds(moment.start),
        "end": seconds(moment.end),
        "text": moment.text,
        "score": number(moment.score),
        "familiarity": number(moment.familiarity),
        "pinned": moment.pinned,
        "thumbnail": base64.b64encode(bytes(thumbnail.data)).decode(),
    }
