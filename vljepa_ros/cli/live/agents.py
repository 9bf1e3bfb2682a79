"""`vljepa mcp`: what the robot perceives as tools for language models.

Invariant: over stdio nothing but the protocol goes to stdout, whoever else prints there, libraries
in C, too; and the server ends with its client, or on SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import IO, Any

import typer

from vljepa_ros.console import console, notice
from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.names import checked_namespace
from vljepa_ros.ros.process import Signals, Spinner, init_ros, needs_ros, set_fastdds

PORT = 8481  # beside the page's
TOKEN = "VLJEPA_MCP_TOKEN"  # of the environment, as a command line can be read by everybody
SHORTEST_TOKEN = 12  # characters


def mcp(
    http: bool = typer.Option(
        False, "--http", help="Serve over HTTP, on this machine alone, instead of stdin and stdout."
    ),
    port: int = typer.Option(
        PORT, min=0, max=65535, help="Port to serve on with --http; 0: a free one."
    ),
    namespace: str = typer.Option("", help="Namespace of the perception node."),
) -> None:
    """Serve what the robot perceives to agents: tools of the Model Context Protocol (MCP)."""
    inside = checked_namespace("--namespace", namespace)
    signals = Signals()
    wire = None if http else _claim_stdout()
    set_fastdds()
    try:
        import mcp.server.mcpserver  # noqa: F401
    except ImportError as error:
        raise VLJepaError(
            f"vljepa mcp needs the package mcp, version 2.3 or later ({error}): "
            "pip install 'mcp>=2.3'."
        ) from None
    try:
        import rclpy

        import vljepa_ros.msg  # noqa: F401
    except ImportError as error:
        raise needs_ros("mcp", error) from error
    from vljepa_ros.agents.http import HttpServer, listen
    from vljepa_ros.agents.node import AgentNode
    from vljepa_ros.agents.server import make_server, serve_stdio

    from .status import Gathered

    token = _token() if http else ""
    listening = listen(port) if http else None
    init_ros([])
    node = AgentNode(inside)
    spinner = Spinner(node)
    try:
        server = make_server(node.graph, Gathered(node, inside).current)
        if wire is not None:
            if sys.stdin.isatty():
                notice("An agent starts this itself, and speaks to it: see docs/mcp.md.")
            _run(partial(serve_stdio, server, wire), signals)
        elif listening is not None:
            web = HttpServer(server, listening, token)
            console.print(f"Serving on {web.url}, for who sends the header")
            console.print(f"Authorization: Bearer {token}")
            _run(web.serve, signals, web.stop)
    finally:
        spinner.end()
        rclpy.try_shutdown()


def _run(
    serve: Callable[[], Awaitable[Any]], signals: Signals, stop: Callable[[], Any] | None = None
) -> None:
    """Serve until it returns by itself, or a signal comes. `stop`: what ends it, in its loop."""
    import anyio
    from anyio.from_thread import BlockingPortal

    async def until_stopped() -> None:
        async with BlockingPortal() as portal:
            with anyio.CancelScope() as scope:
                signals.on_stop(lambda: portal.call(stop or scope.cancel))
                await serve()

    anyio.run(until_stopped)


def _claim_stdout() -> IO[str]:
    """What stdout was; what anybody writes there from now on goes to stderr."""
    sys.stdout.flush()
    wire = open(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    os.dup2(2, 1)
    return wire


def _token() -> str:
    """What clients must know: that of the environment, or one that is made up."""
    token = os.environ.get(TOKEN, "")
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise VLJepaError(
            f"The token in {TOKEN} must be {SHORTEST_TOKEN} or more letters and digits; without it "
            "one is made up."
        )
    return token or secrets.token_urlsafe(24)
