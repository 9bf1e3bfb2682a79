"""One page that is open: its WebSocket, what waits to be sent to it, and what it has asked for.

Invariant: a page never holds more than `QUEUE` events and one picture, and nobody waits for it. A
page that falls behind by more is disconnected; it connects again and is told what it missed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from vljepa_ros.errors import VLJepaError

from .bridge import Bridge, Watching
from .requests import (
    IN_FLIGHT,
    RATE,
    WATCHES,
    Ask,
    Bucket,
    Recall,
    RequestError,
    Unwatch,
    View,
    Watch,
    parse,
)

QUEUE = 600  # events; those of about half a minute of a busy graph
Event = dict[str, Any]


def encode(event: Event) -> str:
    """An event as it is sent. ValueError where it holds a number that JSON does not have."""
    return json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Page:
    """Everything here runs in the server's loop. `looked()` is called when `camera` changes."""

    def __init__(
        self, socket: web.WebSocketResponse, bridge: Bridge, looked: Callable[[], None]
    ) -> None:
        self.camera = ""  # whose pictures it shows; empty: it is not to be seen
        self._socket = socket
        self._bridge = bridge
        self._looked = looked
        self._queue: deque[str] = deque()
        self._picture: bytes | None = None
        self._news = asyncio.Event()
        self._overrun = False
        self._bucket = Bucket(time.monotonic())
        self._asked = 0  # questions and searches without an answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: dict[int, Watching] = {}
        self._numbers = itertools.count(1)

    # -------------------------------------------------------------- to the page

    def push(self, text: str) -> None:
        """Queue an event."""
        if len(self._queue) >= QUEUE:
            self._overrun = True
        else:
            self._queue.append(text)
        self._news.set()

    def show(self, frame: bytes) -> None:
        """The newest picture takes the place of one that waits."""
        self._picture = frame
        self._news.set()

    async def run(self) -> None:
        """Until the page or the server ends the connection."""
        writer = asyncio.ensure_future(self._write())
        try:
            await self._read()
        finally:
            for task in (writer, *self._tasks):
                task.cancel()
            for watching in self._watches.values():
                watching.cancel()
            await asyncio.gather(writer, *self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        while not self._socket.closed:
            await self._news.wait()
            self._news.clear()
            while self._queue and not self._overrun:
                await self._socket.send_str(self._queue.popleft())
            if self._overrun:
                await self._socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow")
                return
            picture, self._picture = self._picture, None
            if picture is not None:
                await self._socket.send_bytes(picture)

    # -------------------------------------------------------------- from the page

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.TEXT:
                try:
                    self._take(message.data)
                except RequestError as error:
                    self._answer(error.id, {"ok": False, "error": str(error)})
            elif message.type is WSMsgType.BINARY:
                self._answer(None, {"ok": False, "error": "Requests are JSON texts."})
            else:
                return  # an error, too large a message for instance, has closed it

    def _take(self, message: str) -> None:
        allowed = self._bucket.take(time.monotonic())  # what is not a request counts, too
        request = parse(message)
        if not allowed:
            raise RequestError(
                f"That is more than {RATE:g} requests per second; wait a moment.", request.id
            )
        if isinstance(request, View):
            self.camera = request.camera
            self._looked()
            self._answer(request.id, {"ok": True})
        elif isinstance(request, Unwatch):
            self._unwatch(request)
        elif isinstance(request, Watch):
            self._watch(request)
        elif self._asked >= IN_FLIGHT:
            raise RequestError(
                f"{IN_FLIGHT} requests have no answer yet; wait for one of them.", request.id
            )
        else:
            self._asked += 1
            self._start(self._serve(request))

    async def _serve(self, request: Ask | Recall) -> None:
        started = time.monotonic()
        try:
            if isinstance(request, Ask):
                result = await asyncio.wrap_future(self._bridge.ask(request))
            else:
                result = await asyncio.wrap_future(self._bridge.recall(request))
        except VLJepaError as error:
            self._answer(request.id, {"ok": False, "error": str(error)})
        else:
            seconds = time.monotonic() - started
            self._answer(request.id, {"ok": True, "seconds": seconds, **result})
        finally:
            self._asked -= 1

    def _watch(self, request: Watch) -> None:
        if len(self._watches) >= WATCHES:
            raise RequestError(f"A page may have {WATCHES} watches; end one of them.", request.id)
        number, loop = next(self._numbers), asyncio.get_running_loop()

        def on_score(values: Event) -> None:  # in the executor's thread
            event = encode({"type": "watch", "watch": number, **values})
            self._bridge.to_loop(loop, lambda: self.push(event))

        watching = self._watches[number] = self._bridge.watch(request, on_score)
        self._answer(request.id, {"ok": True, "watch": number, **asdict(request), "id": request.id})
        self._start(self._follow(number, watching))

    async def _follow(self, number: int, watching: Watching) -> None:
        try:
            moment: Event = await asyncio.wrap_future(watching.result)
            end = {"fired": True, "message": "", **moment}
        except VLJepaError as error:
            end = {"fired": False, "message": str(error)}
        finally:
            self._watches.pop(number, None)
        self.push(encode({"type": "watch_end", "watch": number, **end}))

    def _unwatch(self, request: Unwatch) -> None:
        watching = self._watches.get(request.watch)
        if watching is None:
            raise RequestError(f"This page has no watch {request.watch}.", request.id)
        watching.cancel()
        self._answer(request.id, {"ok": True})

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(self, id: int | None, content: Event) -> None:
        self.push(encode({"type": "answer", **content, "id": id}))
