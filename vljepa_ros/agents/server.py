"""The server: which tools there are, and the ways to reach them.

Invariant: it serves one graph. Over stdio nothing but the protocol is on stdout; over HTTP it
listens on this machine alone, and whoever does not know the token gets a refusal and nothing else.
"""

from __future__ import annotations

import functools
import hmac
import inspect
import json
import socket
from collections.abc import Awaitable, Callable
from typing import IO, Any

import anyio
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.types import ToolAnnotations

from vljepa_ros import __version__
from vljepa_ros.errors import VLJepaError

from .graph import Graph
from .tools import Tools

INSTRUCTIONS = """\
These tools are the eyes of a robot: a model watches its cameras all the time and says in short
sentences what happens, whenever that changes. You only look and ask; nothing here moves the robot.
Begin with what_is_happening; recent tells what was before, recall finds it in a longer past, with
pictures; watch waits for something to happen. Times are in UTC and as ages. Scores are of a small
model that can be wrong: check what matters with look."""
NAMES = (
    "what_is_happening", "ask", "classify", "watch", "recent", "recall", "look", "status",
)  # fmt: skip
PATH = "/mcp"


def make_server(graph: Graph) -> MCPServer:
    """A server whose tools look at the graph."""
    server = MCPServer(
        "vljepa", title="A robot's eyes", version=__version__, instructions=INSTRUCTIONS,
        log_level="WARNING",
    )  # fmt: skip
    tools = Tools(graph)
    for name in NAMES:
        tool = getattr(tools, name)
        server.tool(
            name=name, description=inspect.getdoc(tool),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )(_in_sentences(tool))  # fmt: skip
    return server


def _in_sentences(tool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The tool; what it cannot do reaches the language model as a sentence."""

    @functools.wraps(tool)
    async def call(*given: Any, **named: Any) -> Any:
        try:
            return await tool(*given, **named)
        except VLJepaError as error:
            raise ToolError(str(error)) from None

    return call


async def serve_stdio(server: MCPServer, wire: IO[str]) -> None:
    """Serve one client over stdin and `wire`, until it closes stdin."""
    async with stdio_server(stdout=anyio.wrap_file(wire)) as (read, write):
        lowlevel = server._lowlevel_server
        await lowlevel.run(read, write, lowlevel.create_initialization_options())


def http_app(server: MCPServer, token: str) -> Any:
    """The server as an ASGI application that asks every request for the token."""
    app = server.streamable_http_app(streamable_http_path=PATH)
    wanted = f"Bearer {token}".encode()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, wanted):
                await _refuse(send)
                return
        await app(scope, receive, send)

    return guarded


async def _refuse(send: Any) -> None:
    said = json.dumps({"error": "Give the token that vljepa mcp --http has printed, in the header "
                       "'Authorization: Bearer TOKEN'."}).encode()  # fmt: skip
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def listen(port: int) -> socket.socket:
    """A listening socket on this machine alone; `port` 0: a free one. VLJepaError: it is taken."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise VLJepaError(
            f"--port {port} cannot be listened on ({error.strerror or error}): choose another, or "
            "0 for a free one."
        ) from None


def http_server(server: MCPServer, token: str) -> uvicorn.Server:
    """The server for `serve(sockets=[...])`; it ends when `should_exit` is set."""
    config = uvicorn.Config(
        http_app(server, token), log_level="warning", timeout_graceful_shutdown=1, ws="none",
    )  # fmt: skip
    return uvicorn.Server(config)
