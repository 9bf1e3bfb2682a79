"""The server over HTTP.

Invariant: it listens on this machine alone; whoever does not know the token gets a refusal and
nothing else; and it ends soon after it is asked to, also where clients wait for something.
"""

from __future__ import annotations

import hmac
import json
import socket
from typing import Any

import anyio
import uvicorn
from mcp.server import MCPServer

from vljepa_ros.errors import VLJepaError

PATH = "/mcp"
GRACE = 1  # seconds that answers may take which are on their way


class HttpServer:
    """Serves on a listening socket to who knows the token; the library sees to foreign hosts."""

    def __init__(self, server: MCPServer, listening: socket.socket, token: str) -> None:
        self._app = server.streamable_http_app(streamable_http_path=PATH)
        self._token = f"Bearer {token}".encode()
        self._open: set[anyio.CancelScope] = set()  # one for each request
        self._listening = listening
        config = uvicorn.Config(
            self._serve, interface="asgi3", log_level="warning", ws="none",
            timeout_graceful_shutdown=GRACE,
        )  # fmt: skip
        self._uvicorn = uvicorn.Server(config)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}{PATH}"

    async def serve(self) -> None:
        """Serve until `stop`."""
        await self._uvicorn.serve(sockets=[self._listening])

    def stop(self) -> None:
        """End what is under way, and then the server; in its loop."""
        for scope in self._open:
            scope.cancel()
        self._uvicorn.should_exit = True

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application: the library's, behind the token."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._token):
            await _say(send, 401, "Give the token that vljepa mcp --http has printed, in the header"
                       " 'Authorization: Bearer TOKEN'.")  # fmt: skip
            return
        begun = False

        async def send_on(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        with anyio.CancelScope() as request:
            self._open.add(request)
            try:
                await self._app(scope, receive, send_on)
            finally:
                self._open.discard(request)
        if request.cancelled_caught and begun:
            await send({"type": "http.response.body", "body": b""})  # that is all of it
        elif request.cancelled_caught:
            await _say(send, 503, "The server ends.")


async def _say(send: Any, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": sentence}).encode()})


def listen(port: int) -> socket.socket:
    """A listening socket on this machine alone; `port` 0: a free one. VLJepaError: it is taken."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise VLJepaError(
            f"--port {port} cannot be listened on ({error.strerror or error}): choose another, or "
            "0 for a free one."
        ) from None
