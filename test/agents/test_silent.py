"""The MCP server where nobody perceives, a camera falls silent, or a node is killed: sentences."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("mcp.server.mcpserver", reason="mcp is missing: pip install 'mcp>=2.3'")

from agent import Agent
from graph import DEADLINE, NodeProcess, Probe, Stream, domain, noise
from mcp import Client

from vljepa_ros.agents import graph as graph_module
from vljepa_ros.agents.graph import Graph
from vljepa_ros.agents.server import make_server
from vljepa_ros.cli.live.status import Gathered
from vljepa_ros.client import SemanticClient

PATIENCE = 900.0  # seconds: a busy machine must not make a stream old
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("ask", {"question": "what?", "candidates": ["a", "b"]}), ("classify", {"labels": ["a", "b"]}),
    ("watch", {"text": "a cube falls"}), ("recall", {"text": "a cube falls"}),
]  # fmt: skip
HEARD: list[tuple[str, dict[str, Any]]] = [
    ("what_is_happening", {}), ("recent", {}), ("look", {}), ("status", {}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is not waited for as long as on a robot."""
    monkeypatch.setattr(graph_module, "SemanticClient", partial(SemanticClient, timeout=1.0))
    monkeypatch.setattr(graph_module, "LOOK", 0.3)
    monkeypatch.setattr(graph_module, "GONE", 1.5)


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent(domain())
    yield agent
    agent.close()


def joined(agent: Agent) -> Graph:
    graph = Graph(agent.node)
    agent.clients.append(graph.client)
    return graph


def served(agent: Agent, graph: Graph) -> Any:
    return make_server(graph, Gathered(agent.node, "").current)


def run(work: Awaitable[Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 4 * DEADLINE))  # type: ignore[arg-type]


async def told(client: Client, tool: str, **arguments: Any) -> str:
    """The sentence with which a tool refuses."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result
    (part,) = result.content
    assert "Traceback" not in part.text and part.text.endswith(".")
    return part.text


async def status(client: Client) -> Any:
    return (await client.call_tool("status", {})).structured_content


def test_where_nobody_perceives(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "JOINING", 0.5)

    async def work() -> None:
        async with Client(served(agent, joined(agent))) as client:
            calls = [told(client, tool, **given) for tool, given in (*ASKED, *HEARD)]
            sentences = await asyncio.gather(*calls)
            for (tool, _), said in zip((*ASKED, *HEARD), sentences):
                words = "Nobody offered /" if (tool, _) in ASKED else "Nobody perceives in ROS"
                assert words in said and "start" in said, (tool, said)

    run(work())


def test_what_falls_silent_and_what_is_killed(
    agent: Agent, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = agent.context.get_domain_id()
    node = NodeProcess("perception_node", number, bundle=tiny_bundle, max_gap=PATIENCE)
    node.wait_for_log("Active.")
    probe = Probe(number)
    stream = Stream(probe, "camera", noise(0))
    graph = joined(agent)

    async def notes(client: Client, words: str) -> dict[str, Any]:
        """What the tool says, once a note has these words."""
        end = time.monotonic() + DEADLINE
        while True:
            result = await client.call_tool("what_is_happening", {})
            assert not result.is_error, result
            seen: dict[str, Any] = result.structured_content
            if any(words in note for note in seen.get("notes", [])):
                return seen
            assert time.monotonic() < end, seen
            await asyncio.sleep(0.05)

    async def work() -> None:
        async with Client(served(agent, graph)) as client:
            # It sees, and nobody puts it into words.
            monkeypatch.setattr(graph_module, "SILENT", PATIENCE)
            while graph.history.now_ns("camera") is None:  # it may have found the stream later
                stream.step(noise(0))
            seen = await notes(client, "An open answer needs the decoder node")
            assert seen["cameras"][0]["text"] == "" and seen["cameras"][0]["going_on"]
            past = (await client.call_tool("recent", {})).structured_content
            assert "no memory node runs" in " ".join(past["notes"]) and past["events"]
            # The camera sends nothing any more.
            monkeypatch.setattr(graph_module, "SILENT", 0.2)
            assert (await notes(client, "Camera 'camera' has shown nothing for"))["cameras"] == []
            assert "has shown nothing for" in await told(client, "look")
            # The node dies while it watches.
            watching = asyncio.create_task(
                told(client, "watch", text="a cube falls", threshold=1.0, timeout=300)
            )
            while probe.node.count_subscribers("watch/_action/feedback") == 0:
                await asyncio.sleep(0.01)
            node.process.send_signal(signal.SIGKILL)
            assert "has ended" in await watching
            refusals = await asyncio.gather(*(told(client, tool, **given) for tool, given in ASKED))
            for (tool, _), said in zip(ASKED, refusals):
                assert "Nobody offered" in said or "has ended" in said, (tool, said)
            seen = await notes(client, "has given no sign for")
            assert seen["cameras"] == []
            assert "has ended or hangs" in await told(client, "look")
            end = time.monotonic() + DEADLINE
            while any(one["state"] == "active" for one in (await status(client))["nodes"]):
                assert time.monotonic() < end, "it is still called active"
                await asyncio.sleep(0.05)
            past = (await client.call_tool("recent", {})).structured_content
            assert any("has ended or hangs" in note for note in past["notes"])

    try:
        run(work())
    finally:
        node.end()
        probe.close()
