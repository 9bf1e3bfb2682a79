"""The web server: who may see the page, the page's files, and the pages that are open.

Invariant: it runs in a thread and a loop of its own; what comes from other threads only schedules
something there. Nobody without the token, where there is one, gets more than a refusal; no page of
another site gets anything.

The WebSocket `/ws` carries JSON objects with a `type`. To the page:

    hello     limits: what web_requests.py says; history: seconds of it
    info      model_id, backend, precision, embedding_dim, clip_frames, image_size, sample_rate, queries,
              watch_threshold, familiarity_threshold
    health    services: {ask, decode, recall: whether there is one}; nodes: {name: {level, message}};
              cameras: {name: {level, message, rate_in, rate_out, dropped, age}}; words: {level, message},
              where the decoder tells whether it can speak; once a second
    history   camera, query, steps: [[stamp, score, segment, reused, familiarity]], changes, words;
              when it opens
    step      camera, query, stamp, familiarity, score, segment, reused, latency
    change    camera, query, stamp, familiarity, segment, start, score
    words     camera, query, stamp, familiarity, segment, start, text, confidence, source,
              seconds
    labels    version, labels, template: the standing labels
    scores    camera, stamp, version, best, scores: how well each standing label fits
    watch     watch, score, stamp: at each step, for a watch of this page
    watch_end watch, fired, message; if it fired, score, start, end, familiarity
    answer    id, ok; if not, error: a sentence (its id is null where the request had none)
    binary    4 bytes, the length of a JSON object {camera, stamp}, big-endian; that; a JPEG

From the page, each with an `id` that its answer carries:

    ask       camera, question, candidates -> answer, scores, stamp, seconds, familiarity, note
    watch     camera, text, threshold      -> watch: its number
    unwatch   watch
    recall    camera, text, limit          -> moments: [{camera, robot, segment, start, end, text, score,
                                              familiarity, pinned, thumbnail: a JPEG in base64}],
                                              seconds
    view      camera: whose pictures to send; empty: none

Stamps are seconds, numbers that are not finite null.
"""  # noqa: E501

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import json
import socket
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, web

from vljepa_ros.errors import VLJepaError

from . import requests as limits
from .bridge import Bridge
from .history import SECONDS, History
from .page import Event, Page, encode

PAGES = 16  # open at once
FOLDER = Path(__file__).resolve().parent / "static"
TYPES = {
    ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml",
}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ServerError(VLJepaError):
    """The server cannot start."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. ServerError with a sentence where that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (TypeError, UnicodeError):  # what Python makes of it depends on its version
        raise ServerError(f"Cannot listen on {host!r}: that is not a host's name.") from None
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "something listens there already; choose another 'port', or 0 for "
            "one that is free",
            errno.EACCES: "this user may not; choose a 'port' from 1024 on",
            errno.EADDRNOTAVAIL: "this machine does not have that address; choose another 'host'",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise ServerError(f"Cannot listen on {host}, port {port}: {reason}.") from None


class WebServer:
    """Serves the page. `token`: what a visitor must know; empty: nothing.

    ServerError where it cannot listen; `failed(why)` is called where it ends by itself, by
    its thread. `push` and `show` may be called from any.
    """

    def __init__(
        self, host: str, port: int, token: str, bridge: Bridge, failed: Callable[[str], None]
    ) -> None:
        self._files = {
            "" if file.name == "index.html" else file.name: file
            for file in FOLDER.iterdir()
            if file.suffix in TYPES
        }
        self._only_local = is_loopback(host)
        self._token = token
        self._bridge = bridge
        self._failed = failed
        self._socket = listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._cookie = f"vljepa_{self.port}"  # browsers keep one jar for all ports of a machine
        self._history = History()
        self._latest: dict[str, Event] = {}  # by type, of what stands until it is told anew
        self._pages: set[Page] = set()
        self._sockets: set[web.WebSocketResponse] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    @property
    def pages(self) -> int:
        """How many pages are open."""
        return len(self._pages)

    def push(self, event: Event) -> None:
        """Tell every page, and those that open later."""
        self._bridge.to_loop(self._loop, lambda: self._push(event))

    def show(self, camera: str, stamp: float, jpeg: bytes) -> None:
        """A camera's newest picture."""
        self._bridge.to_loop(self._loop, lambda: self._show(camera, stamp, jpeg))

    def end(self, timeout: float = 2.0) -> None:
        """Say goodbye to the pages and stop listening."""
        self._bridge.to_loop(self._loop, self._stop.set)
        self._thread.join(timeout)

    # -------------------------------------------------------------- the loop

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            self._failed(traceback.format_exc())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(middlewares=[guard])
        app.router.add_get("/ws", self._connect)
        app.router.add_get("/{name:[^/]*}", self._file)
        app.on_response_prepare.append(_add_headers)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        await self._stop.wait()
        goodbyes = [
            page.close(code=WSCloseCode.GOING_AWAY, message=b"the web node ends")
            for page in self._sockets
        ]
        if goodbyes:
            await asyncio.wait([asyncio.ensure_future(bye) for bye in goodbyes], timeout=0.5)
        await runner.cleanup()

    def _push(self, event: Event) -> None:
        if event["type"] in ("step", "change", "words"):
            self._history.add(event)
        elif event["type"] in ("info", "health", "labels"):
            self._latest[event["type"]] = event
        text = encode(event) if self._pages else ""
        for page in self._pages:
            page.push(text)

    def _show(self, camera: str, stamp: float, jpeg: bytes) -> None:
        head = json.dumps({"camera": camera, "stamp": stamp}).encode()
        frame = len(head).to_bytes(4, "big") + head + jpeg
        for page in self._pages:
            if page.camera == camera:
                page.show(frame)

    def _looked(self) -> None:
        self._bridge.look(frozenset(page.camera for page in self._pages if page.camera))

    # -------------------------------------------------------------- who may

    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what comes from elsewhere, or without the token."""
        # Another site's name may have been made to point here.
        if self._only_local and not is_loopback(_host(f"//{request.host}")[1]):
            return _refuse(403, "This page is not for that name; open it as 127.0.0.1.")
        origin = request.headers.get("Origin")
        if origin is not None and _host(origin)[0] != request.host:
            return _refuse(403, "Pages of another site may not use this one.")
        given = request.query.get("token")
        if self._token and not self._knows(given or request.cookies.get(self._cookie, "")):
            return _refuse(401, "Open this page with the address that the web node has logged.")
        response = await handler(request)
        if self._token and given and not response.prepared:
            response.set_cookie(self._cookie, given, httponly=True, samesite="Strict")
        return response

    def _knows(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())

    # -------------------------------------------------------------- what there is

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file = self._files.get(request.match_info["name"])
        if file is None:
            return _refuse(404, "There is no such page.")
        return web.Response(
            body=file.read_bytes(), content_type=TYPES[file.suffix], charset="utf-8"
        )

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        # Larger messages than a request may be are let in, so that they get an answer.
        page_socket = web.WebSocketResponse(
            heartbeat=20, max_msg_size=16 * limits.MESSAGE, compress=False
        )
        if not page_socket.can_prepare(request).ok:
            return _refuse(400, "This address is for the page's WebSocket.")
        await page_socket.prepare(request)
        if len(self._pages) >= PAGES:
            reason = f"{PAGES} pages are open already; close one of them."
            await page_socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=reason.encode())
            return page_socket
        page = Page(page_socket, self._bridge, self._looked)
        for event in (self._hello(), *self._latest.values(), *self._history.events()):
            page.push(encode(event))
        self._pages.add(page)
        self._sockets.add(page_socket)
        try:
            await page.run()
        finally:
            self._pages.discard(page)
            self._sockets.discard(page_socket)
            self._looked()
        return page_socket

    @staticmethod
    def _hello() -> Event:
        return {
            "type": "hello",
            "history": SECONDS,
            "limits": {
                "message": limits.MESSAGE, "text": limits.TEXT, "candidates": limits.CANDIDATES,
                "candidate": limits.CANDIDATE, "moments": limits.MOMENTS, "rate": limits.RATE,
                "burst": limits.BURST, "in_flight": limits.IN_FLIGHT, "watches": limits.WATCHES,
            },
        }  # fmt: skip


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _host(url: str) -> tuple[str, str]:
    """Of a URL the host with its port, and the host alone; empty where it is none."""
    try:
        parts = urlsplit(url)
        return parts.netloc, parts.hostname or ""
    except ValueError:
        return "", ""


def _refuse(status: int, sentence: str) -> web.Response:
    return web.Response(status=status, text=sentence + "\n")
