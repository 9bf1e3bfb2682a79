"""How the graph is, from what its nodes say of themselves on /diagnostics."""

from __future__ import annotations

import time

from pydantic import BaseModel, Field

from .graph import GONE, Graph

LEVELS = ("ok", "warning", "error", "stale")


class Part(BaseModel):
    """A node, or a camera."""

    name: str
    state: str = Field(description="ok, warning, error, or stale: nothing comes from it")
    message: str = Field(description="what is wrong, and what to do")
    facts: dict[str, str] = Field(description="rates in Hz, ages in seconds, counts")


class State(BaseModel):
    """How the robot's perception is."""

    model: str = Field(description="which model perceives, and on what")
    questions: list[str] = Field(description="the standing questions that it answers")
    cameras: list[Part]
    nodes: list[Part]
    notes: list[str] = Field(description="what is wrong, in sentences; empty: all is well")


FACTS = ("rate in (Hz)", "rate out (Hz)", "frame age (s)", "dropped", "changes", "familiarity")


def state_of(graph: Graph) -> State:
    """The state of the graph as far as it has been heard."""
    info = graph.info
    assert info is not None
    oldest = time.monotonic() - GONE
    nodes, cameras = [], []
    for name, (heard, status) in sorted(graph.health.items()):
        node, _, part = name.partition(": ")
        level = LEVELS[min(ord(status.level), 3)] if heard >= oldest else "stale"
        message = status.message if heard >= oldest else "It says nothing any more: it has ended."
        if part == "state":
            nodes.append(Part(name=f"/{node}", state=level, message=message, facts={}))
        elif part.startswith("camera ") and node.endswith("perception"):
            facts = {p.key: p.value for p in status.values if p.key in FACTS}
            name = part.removeprefix("camera ")
            cameras.append(Part(name=name, state=level, message=message, facts=facts))
    known = {part.name for part in cameras}
    notes = []
    for camera in info.cameras:
        if camera not in known:
            cameras.append(Part(name=camera, state="ok", message="", facts={}))
        if silence := graph.silence(camera):
            notes.append(silence)
    return State(
        model=f"{info.model_id} on {info.backend} ({info.precision})",
        questions=[query for query in info.queries if query],
        cameras=cameras, nodes=nodes, notes=notes,
    )  # fmt: skip
