"""The server: which tools there are, and how they are served over stdin and stdout.

Invariant: it serves one graph, and every tool only reads.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import IO, Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.types import ToolAnnotations

from vljepa_ros import __version__
from vljepa_ros.errors import VLJepaError

from .graph import Graph
from .tools import Report, Tools

INSTRUCTIONS = """\
These tools are the eyes of a robot: a model watches its cameras all the time and says in short
sentences what happens, whenever that changes. You only look and ask; nothing here moves the robot.
Begin with what_is_happening; recent tells what was before, recall finds it in a longer past, with
pictures; watch waits for something to happen. Times are in UTC and as ages. Scores are of a small
model that can be wrong: check what matters with look."""
NAMES = (
    "what_is_happening", "ask", "classify", "watch", "recent", "recall", "look", "status",
)  # fmt: skip


def make_server(graph: Graph, report: Report) -> MCPServer:
    """A server whose tools look at the graph; `report`: how its nodes are."""
    server = MCPServer(
        "vljepa", title="A robot's eyes", version=__version__, instructions=INSTRUCTIONS,
        log_level="WARNING",
    )  # fmt: skip
    tools = Tools(graph, report)
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
