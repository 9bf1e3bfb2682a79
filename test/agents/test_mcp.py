"""The MCP server on the shipped stream: in memory, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("mcp.server.mcpserver", reason="mcp is missing: pip install 'mcp>=2.3'")

import cv2
import numpy as np
from agent import Agent
from graph import DEADLINE, SECOND, NodeProcess, domain, wait
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from playing import Player

from vljepa_ros.agents.graph import Graph
from vljepa_ros.agents.server import NAMES, make_server
from vljepa_ros.cli.live.status import Gathered
from vljepa_ros.stamps import to_ns

pytestmark = [
    pytest.mark.timeout(300),  # nodes that load engines, on a busy machine
    pytest.mark.usefixtures("default_transports"),
]
ROOT = Path(__file__).resolve().parents[2]
AWAY = ROOT / "examples" / "away.py"
COMMAND = "from vljepa_ros.cli import main; main()"
HAND = "a hand passes over the table"
HANDS = ((2.2, 4.9), (31.15, 32.65))  # seconds of the video in which a hand is over the table
PATIENCE = 900.0  # seconds: a busy machine must not make a stream old
EPOCH = 1_700_000_000


class Robot:
    """The graph of the demo, with memory, that sees the shipped video."""

    def __init__(self, store: Path) -> None:
        self.domain_id = domain()
        self.nodes = [
            NodeProcess("perception_node", self.domain_id, bundle="tabletop", max_gap=PATIENCE),
            NodeProcess("decoder_node", self.domain_id, bundle="tabletop"),
            NodeProcess("memory_node", self.domain_id, bundle="tabletop", store=store),
        ]
        for node in self.nodes:
            node.wait_for_log("Active.")
        self.agent = Agent(self.domain_id)
        self.graph = Graph(self.agent.node)
        self.agent.clients.append(self.graph.client)
        self.server = make_server(self.graph, Gathered(self.agent.node, "").current)
        self.player = Player(self.domain_id, ROOT / "videos" / "tabletop.mp4", EPOCH * SECOND)

    def close(self) -> None:
        self.player.close()
        self.agent.close()
        for node in self.nodes:
            assert node.end() == 0
            assert "Traceback" not in node.log

    def time(self, seconds: float) -> float:
        """The time of the video that a stamp, in seconds, is of."""
        at, _ = min(self.player.stamps.items(), key=lambda item: abs(item[1] / SECOND - seconds))
        return at

    async def play(self, until: float) -> None:
        await asyncio.to_thread(self.player.play, until)


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Robot]:
    robot = Robot(tmp_path_factory.mktemp("mcp") / "store")
    heard = robot.player.probe.node  # what is said before it knows of the decoder, it never hears
    wait(lambda: heard.count_publishers("utterances"), "the decoder to be known")
    robot.player.play(30.0)
    yield robot
    robot.close()


def run(work: Awaitable[Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 110))  # type: ignore[arg-type]


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool answers; it is to answer."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, said(result)
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """The sentence with which a tool refuses."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, said(result)
    return said(result)


def said(result: Any) -> str:
    return "\n".join(part.text for part in result.content if part.type == "text")


def pictures(result: Any) -> list[np.ndarray]:
    found = [part for part in result.content if part.type == "image"]
    assert all(part.mime_type == "image/jpeg" for part in found)
    data = [np.frombuffer(base64.b64decode(part.data), np.uint8) for part in found]
    return [cv2.imdecode(one, cv2.IMREAD_COLOR) for one in data]


def seconds(iso: str) -> float:
    return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Ask until the answer is one."""
    end = time.monotonic() + DEADLINE
    while not (found := await condition()):
        assert time.monotonic() < end, f"waited {DEADLINE} s for {what}"
        await asyncio.sleep(0.05)
    return found


def shows_a_hand(robot: Robot, start: float, end: float) -> bool:
    """Whether a stretch of stamps, in seconds, meets one of the video in which a hand is there."""
    begin, stop = robot.time(start), robot.time(end)
    return any(begin <= until and stop >= since for since, until in HANDS)


def test_what_happened_then_wait_then_recall(robot: Robot) -> None:
    """What an agent does that comes, waits and looks back."""

    async def work() -> None:
        async with Client(robot.server) as client:
            # What has happened in the last half minute is what the robot said, in order.
            at_ns = robot.player.stamps[30.0]
            past = await call(client, "recent", seconds=30)
            told = [(seconds(e["start"]), e["text"]) for e in past["events"] if e["text"]]
            assert told == sorted(told) and len(told) >= 5
            spoken = robot.player.probe.utterances
            # What was before the decoder knew of the probe, that has not heard; and what was before
            # it knew of the agent, that has of the memory, whose moments begin a step later.
            first = min(to_ns(one.segment_start) for one in spoken) / SECOND + 1
            heard = [text for start, text in told if start > first]
            assert len(heard) >= 3 and set(heard) <= {one.text for one in spoken}
            assert any(
                "hand" in e["text"]
                and shows_a_hand(robot, seconds(e["start"]), seconds(e["start"]) + e["seconds"])
                for e in past["events"]
            )
            assert any("gripper" in text or "can" in text for _, text in told)
            assert sum("going_on" in e for e in past["events"]) == 1
            assert past["since"] < past["events"][-1]["start"]

            # It waits for the hand, and hears how near it was, better and better.
            scores: list[float] = []

            async def on_progress(score: float, total: float | None, message: str | None) -> None:
                assert total and message and f"{score:.2f} of {total:.2f}" in message
                scores.append(score)

            waiting = asyncio.create_task(
                client.call_tool(
                    "watch", {"text": HAND, "timeout": 300}, progress_callback=on_progress
                )
            )
            await until(lambda: _true(scores), "the first score")
            await robot.play(40.0)
            result = await waiting
            seen = result.structured_content
            assert not result.is_error and seen["happened"], said(result)
            assert seen["camera"] == "camera" and seen["best_score"] >= seen["threshold"]
            at = seconds(seen["time"])
            assert at > at_ns / SECOND and shows_a_hand(robot, at - 2, at)
            assert scores == sorted(scores) and len(scores) >= 2
            assert scores[-1] == pytest.approx(seen["best_score"], abs=1e-3)

            # And it finds it again, with a picture of it.
            async def found() -> Any:
                result = await client.call_tool("recall", {"text": HAND, "after": "120 s ago"})
                return not result.is_error and result.structured_content["moments"] and result

            result = await until(found, "a moment")
            (best, *others) = result.structured_content["moments"]
            assert shows_a_hand(robot, seconds(best["start"]), seconds(best["end"])), best
            assert best["score"] >= max([one["score"] for one in others], default=-1)
            assert best["ago"].endswith(" s ago")
            assert len(pictures(result)) == 1 + len(others)
            assert pictures(result)[0].shape == (240, 320, 3)

    run(work())


async def _true(value: Any) -> bool:
    return bool(value)


def test_every_tool_says_what_it_is_for(robot: Robot) -> None:
    async def work() -> None:
        async with Client(robot.server) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == list(NAMES)
            for tool in tools:
                assert tool.description and len(tool.description) > 60
                assert tool.annotations and tool.annotations.read_only_hint
                for name, schema in tool.input_schema.get("properties", {}).items():
                    assert schema.get("description"), (tool.name, name)
                    assert name not in ("context", "self")

    run(work())


def test_now_is_in_words_answers_and_a_picture(robot: Robot) -> None:
    async def work() -> None:
        async with Client(robot.server) as client:

            async def now() -> Any:
                seen = await call(client, "what_is_happening")
                return seen["cameras"] and seen["cameras"][0]["text"] and seen

            event = (await until(now, "words"))["cameras"][0]
            assert event["camera"] == "camera" and event["going_on"]
            last = robot.graph.history.segments("camera")[-1]
            assert not last.text or event["text"] == last.text
            assert abs(seconds(event["start"]) - last.start_ns / SECOND) < 0.002

            question = {"question": "How many objects are on the table?",
                        "candidates": ["none", "three"]}  # fmt: skip
            answer = await call(client, "ask", **question)
            assert answer["answer"] == answer["scores"][0]["text"] and answer["camera"] == "camera"
            assert sum(one["score"] for one in answer["scores"]) == pytest.approx(1, abs=1e-3)
            cosines = [one["cosine"] for one in answer["scores"]]
            assert cosines == sorted(cosines, reverse=True) and max(map(abs, cosines)) <= 1
            newest = robot.player.probe.embeddings[-1].header.stamp
            assert 0 <= to_ns(newest) / SECOND - seconds(answer["time"]) < 60 and answer["ago"]
            opened = await call(client, "ask", question="What is happening?")
            assert opened["answer"] and "scores" not in opened
            labels = ["a hand is over the table", "nothing is moving"]
            found = await call(client, "classify", labels=labels)
            assert sorted(one["text"] for one in found["scores"]) == sorted(labels)
            assert found["answer"] == found["scores"][0]["text"]

            result = await client.call_tool("look", {})
            (picture,) = pictures(result)
            # As the camera node's frames are, but for what JPEG leaves out.
            frame = cv2.resize(robot.player.picture[..., ::-1], picture.shape[1::-1])
            assert np.abs(picture.astype(int) - frame).mean() < 6

            state = await until(lambda: _all_told(client), "every node to tell of itself")
            (stream,) = state["streams"]
            assert stream["model_id"].startswith("tabletop-")
            assert stream["queries"] == ["What is happening?"]
            assert [one["camera"] for one in stream["cameras"]] == ["camera"]

    run(work())


async def _all_told(client: Client) -> Any:
    state = await call(client, "status")
    active = {one["name"] for one in state["nodes"] if one["state"] == "active"}
    return active == {"/perception", "/decoder", "/memory"} and state["streams"] and state


def test_a_wrong_camera_and_wrong_arguments_are_sentences(robot: Robot) -> None:
    async def work() -> None:
        async with Client(robot.server) as client:
            there = "There is no camera 'left'"
            for tool, arguments in (
                ("what_is_happening", {}), ("ask", {"question": "what?"}),
                ("classify", {"labels": ["a", "b"]}), ("watch", {"text": HAND}), ("recent", {}),
                ("recall", {"text": HAND}), ("look", {}),
            ):  # fmt: skip
                told = await refused(client, tool, camera="left", **arguments)
                assert there in told and "there are: camera" in told, (tool, told)
            for tool, arguments, words in (
                ("ask", {"question": " "}, "The question is empty"),
                ("ask", {"question": "a\0b"}, "null character"),
                ("ask", {"question": "x", "candidates": ["a", "a"]}, "'a' is there twice"),
                ("classify", {"labels": []}, "no label"),
                ("watch", {"text": ""}, "empty"),
                ("recall", {"text": HAND, "after": "noon"}, "after 'noon' is no time"),
                ("recall", {"text": HAND, "after": "1 s ago", "before": "9 s ago"}, "earlier"),
                ("recall", {"text": HAND, "limit": 0}, "greater than or equal to 1"),
                ("watch", {"text": HAND, "timeout": -1}, "greater than 0"),
                ("recent", {"seconds": 1e9}, "less than or equal"),
            ):
                told = await refused(client, tool, **arguments)
                assert words in told and "Traceback" not in told, (tool, told)

    run(work())


def test_what_does_not_happen_is_an_answer_and_a_watch_can_be_given_up(robot: Robot) -> None:
    async def work() -> None:
        async with Client(robot.server) as client:
            never = {"text": "a purple elephant sings", "threshold": 1.0}
            seen = await call(client, "watch", **never, timeout=1)
            assert not seen["happened"] and seen["threshold"] == 1.0
            assert "did not come true within 1 s" in seen["note"]

            calls = asyncio.create_task(client.call_tool("watch", {**never, "timeout": 500}))
            await until(lambda: _standing(robot, "1"), "the watch to stand")
            calls.cancel()
            await until(lambda: _standing(robot, "0"), "the watch to be given up")

    run(work())


async def _standing(robot: Robot, number: str) -> bool:
    health = robot.player.probe.health.get("perception: watches")
    pairs = [] if health is None else health.values
    return any(pair.key == "standing" and pair.value == number for pair in pairs)


def test_fifty_calls_at_once_are_all_answered(robot: Robot) -> None:
    async def work() -> None:
        async with Client(robot.server) as client:
            tools = [
                ("what_is_happening", {}), ("recent", {"seconds": 5}), ("status", {}), ("look", {}),
                ("ask", {"question": "What colour is the cube?", "candidates": ["red", "blue"]}),
                ("ask", {"question": "What is happening?"}),
                ("classify", {"labels": ["a hand", "nothing"]}), ("recall", {"text": HAND}),
                ("watch", {"text": "nothing is moving", "threshold": 0.01}),
                ("watch", {"text": HAND, "threshold": 1.0, "timeout": 0.5}),
            ]  # fmt: skip
            results = await asyncio.gather(
                *(client.call_tool(tool, arguments) for tool, arguments in tools * 5)
            )
            for (tool, _), result in zip(tools * 5, results):
                assert not result.is_error, (tool, said(result))

    run(work())


class Server:
    """`vljepa mcp` as a process."""

    def __init__(self, robot: Robot, *options: str, code: str = COMMAND, **variables: str) -> None:
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "mcp", *options], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log, cwd=tempfile.gettempdir(), text=True,
            env={**environment(robot), **variables},
        )  # fmt: skip

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def environment(robot: Robot) -> dict[str, str]:
    return {**os.environ, "ROS_DOMAIN_ID": str(robot.domain_id), "PYTHONUNBUFFERED": "1"}


async def talk(client: Client, robot: Robot) -> None:
    """What is the same over every way."""
    assert client.server_info.name == "vljepa"

    async def seen() -> Any:
        result = await client.call_tool("what_is_happening", {})
        cameras = [] if result.is_error else result.structured_content["cameras"]
        return [event for event in cameras if event["text"]]

    (now,) = await until(seen, "the camera")
    assert now["camera"] == "camera"
    # It came late; what was before it knows from the memory.
    begun = robot.player.stamps[0.0] / SECOND

    async def remembered() -> bool:
        events = (await call(client, "recent", seconds=3600))["events"]
        for event, after in pairwise(events):  # nothing is told twice
            end = seconds(event["start"]) + event["seconds"]
            assert end <= seconds(after["start"]) + 0.3, (event, after)
        return any(e["text"] and seconds(e["start"]) < begun + 25 for e in events)

    await until(remembered, "what was before")
    assert len(pictures(await client.call_tool("recall", {"text": HAND, "limit": 2}))) == 2
    waited = await client.call_tool(
        "watch", {"text": now["text"], "threshold": 0.001, "timeout": 60},
        progress_callback=_ignore,
    )  # fmt: skip
    assert waited.structured_content["happened"], said(waited)
    assert "There is no camera 'left'" in await refused(client, "look", camera="left")


async def _ignore(*_: Any) -> None:
    pass


def test_over_stdio(robot: Robot) -> None:
    async def work() -> None:
        parameters = StdioServerParameters(
            command=sys.executable, args=["-c", COMMAND, "mcp"], env=environment(robot)
        )
        async with Client(parameters) as client:
            await talk(client, robot)

    run(work())


NOISY = f"""
import os, rclpy
begin = rclpy.init
def noisy(*arguments, **options):
    print("from Python", flush=True)
    os.write(1, b"from C\\n")
    return begin(*arguments, **options)
rclpy.init = noisy
{COMMAND}
"""


def test_stdout_is_the_protocol_s_alone_and_its_end_is_the_server_s(robot: Robot) -> None:
    server = Server(robot, code=NOISY, RCUTILS_LOGGING_USE_STDOUT="1")
    try:
        begin = {
            "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
                "protocolVersion": "2025-06-18", "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        }  # fmt: skip
        out, _ = server.process.communicate(json.dumps(begin) + "\n", timeout=2 * DEADLINE)
        told = Path(server.log.name).read_text()
        assert server.process.returncode == 0, told
        (answer,) = [json.loads(line) for line in out.splitlines()]
        assert answer["result"]["serverInfo"]["name"] == "vljepa"
        assert "eyes of a robot" in answer["result"]["instructions"]
        assert "from C" in told and "from Python" in told and "Traceback" not in told
    finally:
        server.close()


def test_over_http_for_who_knows_the_token(robot: Robot) -> None:
    import httpx2

    server = Server(robot, "--http", "--port", "0")
    try:
        assert server.process.stdout is not None
        lines = [server.process.stdout.readline() for _ in range(2)]
        address = re.search(r"http://127\.0\.0\.1:\d+/mcp", lines[0])
        token = re.fullmatch(r"Authorization: Bearer (\S{20,})\n", lines[1])
        assert address and token, (lines, Path(server.log.name).read_text())

        async def work() -> None:
            for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token[1]}):
                async with httpx2.AsyncClient() as web:
                    answer = await web.post(address[0], headers=given, json={})
                assert answer.status_code == 401 and "Bearer TOKEN" in answer.json()["error"]
            right = {"Authorization": f"Bearer {token[1]}"}
            async with httpx2.AsyncClient() as web:  # a page of another site, that points here
                answer = await web.post(address[0], headers={**right, "Host": "evil.test"}, json={})
            assert answer.status_code == 421
            async with (
                httpx2.AsyncClient(headers=right, timeout=DEADLINE) as web,
                Client(streamable_http_client(address[0], http_client=web)) as client,
            ):
                await talk(client, robot)
                # It ends while somebody waits for something.
                waiting = asyncio.create_task(
                    client.call_tool("watch", {"text": HAND, "threshold": 1})
                )
                await until(lambda: _standing(robot, "1"), "the watch to stand")
                server.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(server.process.wait, 20)
                waiting.cancel()

        run(work())
        assert server.process.returncode == 0
        assert "Traceback" not in Path(server.log.name).read_text()
    finally:
        server.close()


class LanguageModel(BaseHTTPRequestHandler):
    """A stand-in behind an OpenAI-compatible server: it calls `recent`, then says what it heard."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        last = request["messages"][-1]
        call = {"name": "recent", "arguments": '{"seconds": 3600}'}
        said: dict[str, Any] = {"role": "assistant", "content": None}
        if last["role"] == "tool":
            events = json.loads(last["content"])["events"]
            said["content"] = "You missed: " + "; ".join(event["text"] for event in events)
        else:
            said["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
        body = json.dumps({"choices": [{"message": said}]}).encode()
        self.send_response(200 if request["model"] == "good" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def language_model() -> Iterator[str]:
    """Its address."""
    LanguageModel.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), LanguageModel)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_agent_tells_what_happened_while_one_was_away(
    robot: Robot, language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example, against the demo's graph; the language model alone is made up."""
    done = subprocess.run(
        [sys.executable, str(AWAY), "--minutes", "3", "--url", language_model, "--model", "good"],
        env=environment(robot), capture_output=True, text=True, timeout=2 * DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = {one.text for one in robot.player.probe.utterances}
    missed = done.stdout.strip().removeprefix("You missed: ").split("; ")
    assert len(missed) > 3 and len(said & set(missed)) > 3
    first, _ = LanguageModel.asked
    assert [tool["function"]["name"] for tool in first["tools"]] == list(NAMES)
    assert "left 3 minutes ago" in first["messages"][0]["content"]
    assert 'recent {"seconds": 3600}' in done.stderr

    away = runpy.run_path(str(AWAY))

    async def work() -> None:
        async with Client(robot.server) as client:
            assert await away["tell"](client, away["Model"](language_model, "bad"), "what?", 3) == 1

    run(work())
    told = capsys.readouterr().err
    assert "gives no answer (HTTP Error 404" in told and "Traceback" not in told
