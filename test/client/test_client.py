"""SemanticClient against servers that misbehave on purpose: its three forms, and its ends."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

import rclpy
from agent import EXECUTORS, Agent, Stub, answered
from builtin_interfaces.msg import Time
from graph import DEADLINE, Probe, domain, wait
from hypothesis import given
from hypothesis import strategies as st
from rclpy.time import Time as RclpyTime

from vljepa_ros.client import SemanticClient, SemanticError, SemanticTimeout, calls
from vljepa_ros.client.semantics import _stamp
from vljepa_ros.msg import SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.srv import Pin

SHORT = 1.0  # seconds until a server that is not there is given up


def impatient(agent: Agent) -> SemanticClient:
    """A client that gives servers up after `SHORT` seconds, once it has found them."""
    client = agent.client()
    answered(lambda: client.ask("are you there?"))
    answered(lambda: client.watch("are you there?"))
    client._caller.timeout = SHORT
    return client


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def stub(domain_id: int) -> Iterator[Stub]:
    stub = Stub(domain_id)
    yield stub
    stub.end()


@pytest.fixture(params=EXECUTORS)
def agent(domain_id: int, stub: Stub, request: pytest.FixtureRequest) -> Iterator[Agent]:
    agent = Agent(domain_id, request.param)
    yield agent
    agent.close()


@pytest.fixture
def lonely() -> Iterator[Callable[..., Agent]]:
    """Makes agents in domains in which nobody serves."""
    agents: list[Agent] = []

    def make(executor: str = "single", sim_time: bool = False) -> Agent:
        agents.append(Agent(domain(), executor, sim_time))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


# ------------------------------------------------------------------ the three forms


def test_a_thread_waits(agent: Agent) -> None:
    answer = agent.client().ask("which one?", ["this", "that"]).wait(DEADLINE)
    assert (answer.success, answer.answer) == (True, "this")


def test_a_future_calls_back_in_the_executors_thread(agent: Agent) -> None:
    got: queue.Queue[Any] = queue.Queue()
    call = agent.client().ask("hello")
    call.add_done_callback(lambda done: got.put((done.result().answer, threading.get_ident())))
    answer, thread = got.get(timeout=DEADLINE)
    assert (answer, call.done(), call.cancelled()) == ("hello", True, False)
    assert thread != threading.get_ident()


@pytest.mark.parametrize("kind", ["subscription", "timer", "service"])
def test_a_callback_awaits(agent: Agent, domain_id: int, kind: str) -> None:
    client, got = agent.client(), queue.Queue()

    async def question(message: Any = None, response: Any = None) -> Any:
        first = await client.ask("first")
        second = await client.watch("second")
        got.put((first.answer, second.text))
        return response

    probe = Probe(domain_id)
    if kind == "timer":
        agent.run(question)
    elif kind == "subscription":
        client.on_utterance(question)
        publisher = probe.node.create_publisher(Utterance, "utterances", 10)
        probe.wait(lambda: publisher.get_subscription_count() == 2, "it, and the probe itself")
        publisher.publish(Utterance(text="something"))
    else:
        agent.node.create_service(Pin, "anything", question)
        probe.call(Pin, "anything", Pin.Request())
    assert got.get(timeout=DEADLINE) == ("first", "second")
    probe.close()  # not before: a message that is still under way ends with its publisher


def test_of_two_streams_of_a_camera_one_is_heard(agent: Agent, domain_id: int) -> None:
    client, got = agent.client(), queue.Queue()
    listening = [
        client.on_embedding(lambda message: got.put(message.segment_id)),
        client.on_change(lambda message: got.put(message.segment_id)),
        client.on_utterance(lambda message: got.put(message.segment_id)),
    ]
    probe = Probe(domain_id)
    publishers = [
        (kind, probe.node.create_publisher(kind, topic, 10))
        for kind, topic in (
            (SemanticEmbedding, "embeddings"),
            (SemanticChange, "changes"),
            (Utterance, "utterances"),
        )
    ]
    probe.wait(
        lambda: all(p.get_subscription_count() == 2 for _, p in publishers),
        "it, and the probe itself",
    )
    heard = []
    for kind, publisher in publishers:  # stream 1 has the odd numbers
        for number in range(1, 6):
            publisher.publish(kind(camera="front", segment_id=number, stream_id=2 - number % 2))
        heard += [got.get(timeout=DEADLINE) for _ in range(3)]
    assert heard == [1, 3, 5] * 3
    assert got.empty()
    for one in listening:
        one.cancel()
    probe.close()


def test_an_exception_reaches_the_coroutine(agent: Agent) -> None:
    client, got = agent.client(), queue.Queue()

    async def question() -> None:
        try:
            await client.ask("refuse there is no camera")
        except SemanticError as error:
            got.put(str(error))

    agent.run(question)
    assert got.get(timeout=DEADLINE) == "there is no camera"


def test_waiting_inside_a_callback_is_refused(agent: Agent) -> None:
    client, got = agent.client(), queue.Queue()

    def blocks() -> None:
        call = client.ask("hello")
        try:
            call.wait(DEADLINE)
        except SemanticError as error:
            got.put(str(error))
        call.add_done_callback(lambda done: got.put(done.result().answer))

    agent.run(blocks)
    assert "await" in got.get(timeout=DEADLINE)
    assert got.get(timeout=DEADLINE) == "hello"


def test_fifty_of_each_at_once(agent: Agent) -> None:
    client = agent.client()
    asked = [client.ask(f"question {k}") for k in range(50)]
    watched = [client.watch(f"condition {k}") for k in range(50)]
    assert [call.wait(DEADLINE).answer for call in asked] == [f"question {k}" for k in range(50)]
    assert [call.wait(DEADLINE).text for call in watched] == [f"condition {k}" for k in range(50)]
    wait(lambda: client.pending == 0, "nothing to be left over")


# ------------------------------------------------------------------ watches


def test_scores_come_until_it_is_true(agent: Agent) -> None:
    scores: list[tuple[float, int]] = []
    moment = agent.client().watch(
        "after 3", on_feedback=lambda score, stamp_ns: scores.append((round(score, 6), stamp_ns))
    ).wait(DEADLINE)  # fmt: skip
    assert moment.text == "after 3"
    assert scores == [(k / 10, (k + 1) * 10**9) for k in range(len(scores))]
    assert scores  # the last one may be overtaken by the result


def test_feedback_may_be_a_coroutine(agent: Agent) -> None:
    client, got = agent.client(), queue.Queue()

    async def on_feedback(score: float, stamp_ns: int) -> None:
        answer = await client.ask("hello")
        got.put(answer.answer)

    client.watch("after 5", on_feedback=on_feedback).wait(DEADLINE)
    assert got.get(timeout=DEADLINE) == "hello"


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [("refuse not within 5 s", SemanticTimeout, "not within 5 s"),
     ("abort the node was deactivated", SemanticError, "the node was deactivated"),
     ("reject", SemanticError, "refused to watch"),
     ("forget", SemanticError, "no longer knows the watch")],
)  # fmt: skip
def test_a_watch_that_does_not_come_true(
    agent: Agent, text: str, kind: type, sentence: str
) -> None:
    with pytest.raises(SemanticError, match=sentence) as raised:
        agent.client(timeout=4.0).watch(text).wait(DEADLINE)
    assert type(raised.value) is kind


def test_cancelling_a_watch_cancels_it_at_the_server(agent: Agent, stub: Stub) -> None:
    client = agent.client()
    before = stub.count("cancelled")
    started = threading.Event()
    call = client.watch("after 100000", on_feedback=lambda score, stamp_ns: started.set())
    assert started.wait(DEADLINE)
    call.cancel()
    with pytest.raises(SemanticError, match=r"/watch was cancelled\."):
        call.wait(DEADLINE)
    assert call.cancelled()
    stub.wait_for("cancelled", before + 1)
    wait(lambda: client.pending == 0, "nothing to be left over")


def test_a_watch_that_is_cancelled_before_it_was_accepted(agent: Agent, stub: Stub) -> None:
    client = agent.client()
    client.watch("anything").wait(DEADLINE)  # the server was found
    before = stub.count("cancelled")
    client.watch("silent").cancel()
    stub.wait_for("cancelled", before + 1)


def test_a_watch_that_is_cancelled_before_it_was_sent(lonely: Callable[..., Agent]) -> None:
    client = lonely().client()
    client.watch("anything").cancel()
    assert client.pending == 0


def test_a_watch_without_scores_goes_on(agent: Agent, stub: Stub) -> None:
    """No camera moves: the server is asked whether it lives, and does."""
    call = agent.client(timeout=5.0).watch("silent")  # asked after 2.5 s, and given 2.5 s
    with pytest.raises(SemanticTimeout, match=r"no result after 5\.5 s"):
        call.wait(5.5)
    assert not call.done()


# ------------------------------------------------------------------ servers that fail


@pytest.mark.parametrize("sim_time", [False, True])
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("call", "name"), [("ask", "/ask"), ("watch", "/watch"), ("recall", "/recall")]
)
def test_nobody_serves(
    lonely: Callable[..., Agent], executor: str, sim_time: bool, call: str, name: str
) -> None:
    client = lonely(executor, sim_time).client(timeout=SHORT)
    with pytest.raises(SemanticError, match=f"Nobody offered {name} within 1 s: start the "):
        getattr(client, call)("anything").wait(DEADLINE)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("call", ["ask", "watch"])
def test_a_server_dies_in_the_middle(
    lonely: Callable[..., Agent], executor: str, call: str
) -> None:
    agent = lonely(executor)
    stub = Stub(agent.context.get_domain_id())
    try:
        client = impatient(agent)
        with pytest.raises(SemanticError, match=f"/{call} did not answer within"):
            getattr(client, call)("die").wait(DEADLINE)
        assert stub.process.wait(DEADLINE) == 1
    finally:
        stub.end()


def test_an_answer_that_is_too_late_is_nobodys(agent: Agent, stub: Stub) -> None:
    client = impatient(agent)
    with pytest.raises(SemanticError, match="/ask did not answer within 1 s"):
        client.ask("late 1.5").wait(DEADLINE)
    later = agent.client()
    assert later.ask("late 1").wait(DEADLINE).answer == "late 1"  # the other one came meanwhile
    assert client.pending == 0


def test_a_call_is_cancelled(agent: Agent) -> None:
    client = agent.client()
    call = client.ask("never")
    call.cancel()
    with pytest.raises(SemanticError, match=r"/ask was cancelled\."):
        call.wait(DEADLINE)
    assert client.pending == 0


def test_a_coroutine_that_awaits_hears_of_the_cancellation(agent: Agent) -> None:
    client, got = agent.client(), queue.Queue()

    async def question() -> None:
        call = client.ask("never")
        got.put(call)
        try:
            await call
        except SemanticError as error:
            got.put(str(error))

    agent.run(question)
    got.get(timeout=DEADLINE).cancel()
    assert got.get(timeout=DEADLINE) == "/ask was cancelled."


def test_nobody_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STILL", 0.2)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(), args=[])
    node = rclpy.create_node("agent", context=context)
    client = SemanticClient(node)
    with pytest.raises(SemanticError, match="Nobody spins /agent"):
        client.ask("hello").wait(DEADLINE)
    client.destroy()
    node.destroy_node()
    rclpy.shutdown(context=context)


# ------------------------------------------------------------------ the rest


@pytest.mark.parametrize(
    ("kind", "topic"),
    [(SemanticEmbedding, "embedding"), (SemanticChange, "change"), (Utterance, "utterance")],
)
def test_messages_come_in_order_until_cancelled(
    agent: Agent, domain_id: int, kind: Any, topic: str
) -> None:
    got: queue.Queue[int] = queue.Queue()
    probe = Probe(domain_id)
    publisher = probe.node.create_publisher(kind, f"{topic}s", 100)
    listen = getattr(agent.client(), f"on_{topic}")
    listening = listen(lambda message: got.put(message.segment_id))
    probe.wait(lambda: publisher.get_subscription_count() == 2, "the agent, and the probe itself")
    for k in range(20):
        publisher.publish(kind(segment_id=k))
    assert [got.get(timeout=DEADLINE) for _ in range(20)] == list(range(20))
    listening.cancel()
    listening.cancel()
    probe.wait(lambda: publisher.get_subscription_count() == 1, "the agent to be gone")
    probe.close()


def test_another_namespace(lonely: Callable[..., Agent]) -> None:
    agent = lonely()
    stub = Stub(agent.context.get_domain_id(), "--ros-args", "-r", "__ns:=/robot1")
    try:
        for name in ("robot1", "/robot1/"):
            client = agent.client(name)
            assert answered(lambda client=client: client.ask("hello")).answer == "hello"
            assert answered(lambda client=client: client.watch("hello")).text == "hello"
    finally:
        stub.end()
    with pytest.raises(SemanticError, match="'robot 1' is no namespace"):
        SemanticClient(agent.node, "robot 1")


def test_destroying_takes_everything_back(agent: Agent, stub: Stub) -> None:
    def entities() -> list[int]:
        node = agent.node
        return [len(list(e)) for e in (node.clients, node.subscriptions, node.timers)]

    before = entities()
    cancelled = stub.count("cancelled")
    client, started = agent.client(), threading.Event()
    client.on_change(lambda message: None)
    asked = client.ask("never")
    watched = client.watch("after 100000", on_feedback=lambda score, stamp_ns: started.set())
    assert started.wait(DEADLINE)
    client.destroy()
    client.destroy()
    for call in (asked, watched, client.ask("anything"), client.watch("anything")):
        with pytest.raises(SemanticError, match=r"destroyed|cancelled"):
            call.wait(DEADLINE)
    stub.wait_for("cancelled", cancelled + 1)
    wait(lambda: entities() == before, "the client's entities to be gone")
    assert client.pending == 0


def test_destroying_complains_of_no_call_that_was_left(
    agent: Agent, capfd: pytest.CaptureFixture[str]
) -> None:
    client = agent.client()
    client.ask("never")
    client.destroy()
    gc.collect()
    assert "never retrieved" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [("ask", {"question": 3}, "question must be a string, not int"),
     ("ask", {"question": "a\0b"}, "question holds a null character"),
     ("ask", {"question": "\ud800"}, "question is not valid Unicode"),
     ("ask", {"question": "which?", "candidates": "red"}, "candidates must be a list of strings"),
     ("ask", {"question": "which?", "candidates": [None]}, "each of candidates must be a string"),
     ("classify", {"labels": {"a", "b"}}, "labels must be a list of strings, not set"),
     ("watch", {"text": "a", "timeout": -1.0}, "timeout must be seconds from 0"),
     ("watch", {"text": "a", "timeout": float("inf")}, "timeout must be a finite number"),
     ("watch", {"text": "a", "threshold": "0.5"}, "threshold must be a finite number"),
     ("recall", {"text": "a", "after": "noon"}, "after must be a finite number, not 'noon'"),
     ("recall", {"text": "a", "before": 2**31}, "before must be seconds from 0"),
     ("recall", {"text": "a", "limit": -1}, "limit must be a whole number from 0 on"),
     ("embed_text", {"texts": "a"}, "texts must be a list of strings"),
     ("pin", {"id": None}, "id must be a string, not NoneType")],
)  # fmt: skip
def test_what_ros_cannot_carry_is_refused(
    lonely: Callable[..., Agent], method: str, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SemanticError, match=sentence):
        getattr(lonely().client(), method)(**arguments).wait(DEADLINE)


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_keep_their_value(stamp_ns: int) -> None:
    stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    assert _stamp(stamp, "after") is stamp
    assert _stamp(RclpyTime(nanoseconds=stamp_ns), "after") == stamp
    seconds = _stamp(stamp_ns // 10**9, "after")
    assert (seconds.sec, seconds.nanosec) == (stamp.sec, 0)
    assert _stamp(None, "after") == Time()
