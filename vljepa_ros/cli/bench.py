"""`vljepa bench`: how fast the parts are here. Speed is measured here, never in a test."""

from __future__ import annotations

import typer

from vljepa_ros.bench.cost import cost
from vljepa_ros.bench.engines import engines
from vljepa_ros.bench.memory import memory
from vljepa_ros.bench.node import node
from vljepa_ros.bench.services import services

from .usage import Group

app = typer.Typer(
    cls=Group,
    help="Measure how fast the parts are on this machine.",
    no_args_is_help=True,
    add_completion=False,
)
for command in (cost, engines, services, memory, node):
    app.command()(command)
