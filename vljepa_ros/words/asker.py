"""Asks a VLM beside everything else: a thread, and for each camera one question at a time.

Invariant: every question that was put is settled once, unless the asker is cancelled, which says
how many were left. Nobody waits for a server but this thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .vlm import Endpoint, VlmError, describe

log = logging.getLogger(__name__)
About = TypeVar("About")


class SupersededError(VlmError):
    """A newer change came while the question waited."""


@dataclass(frozen=True)
class Answer(Generic[About]):
    """What came of a question `about` something: a sentence, or why there is none.

    `seconds`: from the request to the answer; 0 where none was sent.
    """

    about: About
    outcome: str | VlmError
    seconds: float


@dataclass(frozen=True)
class _Question(Generic[About]):
    endpoint: Endpoint
    pictures: Sequence[bytes]
    about: About


class Asker(Generic[About]):
    """The thread. `settle` gets the answers in it. `close` ends it."""

    def __init__(self, settle: Callable[[Answer[About]], None]) -> None:
        self._settle = settle
        self._session: Any = None
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by camera
        self._waiting: dict[str, _Question[About]] = {}  # the newest, by camera
        self._open = 0  # questions that are not settled
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vlm", daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """Questions that are not settled."""
        return self._open

    def put(self, camera: str, endpoint: Endpoint, pictures: Sequence[bytes], about: About) -> None:
        """Ask about pictures, JPEG, at once, or when the camera's last question is answered.

        One that waits already is superseded.
        """
        self._count(1)
        question = _Question(endpoint, pictures, about)
        self._loop.call_soon_threadsafe(self._begin, camera, question)

    def cancel(self) -> int:
        """Ask nothing more, and forget what is under way; how many questions that were."""
        return asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()

    def close(self) -> None:
        """Cancel, and end the thread."""
        self.cancel()
        if self._session is not None:
            asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -------------------------------------------------------------- in the thread

    def _begin(self, camera: str, question: _Question[About]) -> None:
        if camera not in self._tasks:
            self._tasks[camera] = self._loop.create_task(self._ask(camera, question))
            return
        old = self._waiting.pop(camera, None)
        self._waiting[camera] = question
        if old is not None:
            self._end(old, SupersededError("A newer change came first."), 0.0)

    async def _ask(self, camera: str, question: _Question[About] | None) -> None:
        """A question, and those that come for the camera while it is under way."""
        while question is not None:
            began = time.monotonic()
            outcome: str | VlmError
            try:
                outcome = await describe(self._opened(), question.endpoint, question.pictures)
            except VlmError as error:
                outcome = error
            except Exception as error:  # nobody else would end the question
                log.exception("A question to the VLM failed.")
                outcome = VlmError(f"The VLM cannot be asked ({type(error).__name__}).")
            self._end(question, outcome, time.monotonic() - began)
            question = self._waiting.pop(camera, None)
        del self._tasks[camera]

    def _opened(self) -> Any:
        """The session, without cookies, and with a connection for each request."""
        import aiohttp

        if self._session is None:
            connector = aiohttp.TCPConnector(force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _end(self, question: _Question[About], outcome: str | VlmError, seconds: float) -> None:
        self._settle(Answer(question.about, outcome, seconds))
        self._count(-1)

    async def _cancel(self) -> int:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._waiting.clear()
        with self._lock:
            left, self._open = self._open, 0
        return left

    def _count(self, more: int) -> None:
        with self._lock:
            self._open += more
