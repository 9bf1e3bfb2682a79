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

from vljepa_ros.console import console
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
            f"vljepa mcp needs the package mcp, version 2 or later ({error}): pip install 'mcp>=2'."
        ) from None
    try:
        import rclpy

        import vljepa_ros.msg  # noqa: F401
    except ImportError as error:
        raise needs_ros("mcp", error) from error
    from vljepa_ros.agents import server as serving
    from vljepa_ros.agents.node import AgentNode

    token = _token() if http else ""
    listening = serving.listen(port) if http else None
    init_ros([])
    node = AgentNode(inside)
    spinner = Spinner(node)
    try:
        server = serving.make_server(node.graph)
        if wire is not None:
            _run(lambda: serving.serve_stdio(server, wire), signals.on_stop)
        elif listening is not None:
            web = serving.http_server(server, token)
            address = f"http://127.0.0.1:{listening.getsockname()[1]}{serving.PATH}"
            console.print(f"Serving on {address}, for who sends the header")
            console.print(f"Authorization: Bearer {token}")
            signals.on_stop(partial(setattr, web, "should_exit", True))
            _run(lambda: web.serve(sockets=[listening]))
    finally:
        spinner.end()
        rclpy.try_shutdown()


def _run(
    serve: Callable[[], Awaitable[Any]],
    on_stop: Callable[[Callable[[], Any]], Any] = lambda stop: None,
) -> None:
    """Serve until it returns. `on_stop` gets what ends it, for another thread."""
    import anyio
    from anyio.from_thread import BlockingPortal

    async def until_stopped() -> None:
        async with BlockingPortal() as portal:
            with anyio.CancelScope() as scope:
                on_stop(lambda: portal.call(scope.cancel))
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
