"""A running graph as coroutines of asyncio: what was heard of it, and what it answers.

Invariant: every coroutine here ends, within its time, with a result or a VLJepaError of one
sentence; one that is cancelled gives up what it had asked for.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from vljepa_ros.client import Call, SemanticClient, SemanticTimeout
from vljepa_ros.errors import VLJepaError
from vljepa_ros.msg import ModelInfo
from vljepa_ros.stamps import to_ns

from .history import History

JOINING = 5.0  # seconds in which what there is may still be found
GONE = 3.5  # seconds without a sign of the stream, which comes every second
SILENT = 2.0  # seconds without a step after which a camera's last one is no longer now
LOOK = 3.0  # seconds to wait for a picture
TICK = 0.05


class Graph:
    """What an agent has of the graph in `namespace` (empty: the node's own).

    `node` is spun by another thread, until `close` was called.
    """

    def __init__(self, node: Any, namespace: str = "") -> None:
        self.client = SemanticClient(node, namespace)
        self.history = History()
        self.info: ModelInfo | None = None  # the newest
        self._node = node
        self._where = namespace.strip("/")
        self._joined = time.monotonic()
        self._sign = -float("inf")  # time.monotonic() of the stream's last sign
        self.client.on_info(self._on_info)
        self.client.on_embedding(self.history.on_step)
        self.client.on_change(self.history.on_change)
        self.client.on_utterance(self.history.on_words)

    def close(self) -> None:
        """Cancel the watches and give up the rest; the node is to spin a moment longer."""
        self.client.destroy()

    # -------------------------------------------------------------- what there is

    def now_ns(self, camera: str = "") -> int:
        """What time it is by the camera's stamps; where it was not heard, by the ROS clock."""
        heard = self.history.now_ns(camera)
        return int(self._node.get_clock().now().nanoseconds) if heard is None else heard

    @property
    def heard_for(self) -> float:
        """Seconds since the graph was joined."""
        return time.monotonic() - self._joined

    @property
    def joining(self) -> bool:
        """Whether what is there may not have been found yet."""
        return self.heard_for < JOINING

    @property
    def gone(self) -> bool:
        """Whether the perception node gives no sign."""
        return time.monotonic() - self._sign > GONE

    async def cameras(self, camera: str = "") -> list[str]:
        """The camera that is meant; empty: all. VLJepaError where there is none."""
        while self.info is None and self.joining:
            await asyncio.sleep(TICK)
        if self.info is None:
            raise VLJepaError(self._nobody())
        known = list(self.info.cameras) or self.history.cameras()
        if not camera:
            return known
        if camera not in known:
            raise VLJepaError(
                f"There is no camera '{camera[:40]}'; there are: {', '.join(known) or 'none'}."
            )
        return [camera]

    async def camera(self, camera: str = "") -> str:
        """The one camera that is meant; empty: the only one."""
        found = await self.cameras(camera)
        if len(found) != 1:
            raise VLJepaError(f"Name one of the cameras: {', '.join(found) or 'there is none'}.")
        return found[0]

    def silence(self, camera: str) -> str:
        """Why what the camera showed last is not now, in a sentence; empty: it is."""
        seconds = self.history.silent_for(camera)
        if seconds <= SILENT:
            return ""
        if self.gone:
            return (
                "The perception node has ended or hangs: it has given no sign for "
                f"{time.monotonic() - self._sign:.0f} s. Start it again."
            )
        if seconds == float("inf"):
            return f"Camera '{camera}' has shown nothing yet; see that it publishes images."
        return f"Camera '{camera}' has shown nothing for {seconds:.0f} s; see whether it has ended."

    async def offers(self, service: str) -> bool:
        """Whether somebody offers a service in the graph's namespace."""
        name = self._node.resolve_service_name(self._name(service))
        while name not in {found for found, _ in self._node.get_service_names_and_types()}:
            if not self.joining:
                return False
            await asyncio.sleep(TICK)
        return True

    def _name(self, base: str) -> str:
        return f"/{self._where}/{base}" if self._where else base

    def _nobody(self) -> str:
        where = f" in namespace /{self._where}" if self._where else ""
        domain = os.environ.get("ROS_DOMAIN_ID", "0")
        return (
            f"Nobody perceives{where} in ROS domain {domain}: start vljepa up or the launch file, "
            "with the same ROS_DOMAIN_ID, and see in the log of the perception node that it is "
            "active."
        )

    def _on_info(self, info: ModelInfo) -> None:
        self.info, self._sign = info, time.monotonic()

    # -------------------------------------------------------------- what it answers

    async def result(self, call: Call) -> Any:
        """The result of a call of the client, which is given up where this is cancelled."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        call.add_done_callback(lambda call: _tell(loop, done.set))
        try:
            await done.wait()
        finally:
            call.cancel()  # unless it has settled
        return call.result()

    async def watch(
        self, text: str, camera: str, threshold: float, seconds: float,
        on_best: Callable[[float], Awaitable[None]],
    ) -> Any:  # fmt: skip
        """The Moment at which `text` becomes true; SemanticTimeout after `seconds`.

        `on_best` gets the best score so far, whenever there is a better one.
        """
        loop, scores = asyncio.get_running_loop(), asyncio.Queue[float | None]()

        def on_feedback(score: float, stamp_ns: int) -> None:
            _tell(loop, lambda: scores.put_nowait(score))

        call = self.client.watch(text, camera, threshold, seconds, on_feedback)
        call.add_done_callback(lambda call: _tell(loop, lambda: scores.put_nowait(None)))
        # The node counts by the ROS clock, which may stand still.
        late = loop.call_later(seconds + JOINING, call.cancel)
        best = -float("inf")
        try:
            while (score := await scores.get()) is not None:
                if score > best:
                    best = score
                    await on_best(best)
        finally:
            late.cancel()
            call.cancel()
        if call.cancelled():
            raise SemanticTimeout(
                f"'{text}' did not come true within {seconds:g} s, and the node that watches did "
                "not say so itself: see whether its clock runs."
            )
        return call.result()

    async def picture(self, camera: str) -> tuple[int, bytes]:
        """What the camera shows now: stamp in nanoseconds and a small JPEG."""
        loop = asyncio.get_running_loop()
        shown: asyncio.Future[tuple[int, bytes]] = loop.create_future()

        def take(stamp_ns: int, jpeg: bytes) -> None:
            if not shown.done():
                shown.set_result((stamp_ns, jpeg))

        def on_picture(message: Any) -> None:
            stamp_ns, jpeg = to_ns(message.header.stamp), bytes(message.data)
            _tell(loop, lambda: take(stamp_ns, jpeg))

        listening = self.client.on_picture(on_picture, camera)
        try:
            return await asyncio.wait_for(shown, LOOK)
        except asyncio.TimeoutError:
            raise VLJepaError(
                self.silence(camera)
                or f"Camera '{camera}' has shown no picture within {LOOK:g} s; try again."
            ) from None
        finally:
            listening.cancel()


def _tell(loop: asyncio.AbstractEventLoop, job: Callable[[], Any]) -> None:
    """Run `job` in the loop, soon; never where that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(job)
