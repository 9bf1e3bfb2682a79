"""What the web node is made of: which requests it takes, what it keeps, who may wait for whom."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install aiohttp")

from hypothesis import given
from hypothesis import strategies as st

from vljepa_ros.web import history as web_history
from vljepa_ros.web import requests as web_requests
from vljepa_ros.web.history import History
from vljepa_ros.web.page import QUEUE, Page
from vljepa_ros.web.requests import Ask, Bucket, Recall, RequestError, Unwatch, View, Watch, parse
from vljepa_ros.web.server import ServerError, is_loopback, listen

# ------------------------------------------------------------------ the address


@pytest.mark.parametrize("host", ["é" * 70, "a..b", "999.1.1.1", "\udcff"])
def test_a_host_that_is_none_is_one_sentence(host: str) -> None:
    with pytest.raises(ServerError, match=r"^Cannot listen on "):
        listen(host, 0)


# ------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("fields", "request_"),
    [
        ({"type": "ask", "question": " what\n is it? "}, Ask(7, "", "what is it?", ())),
        ({"type": "ask", "question": "", "candidates": ["a cup"]}, Ask(7, "", "", ("a cup",))),
        (
            {"type": "ask", "camera": "front", "question": "é", "candidates": ["一つ", "مكعب"]},
            Ask(7, "front", "é", ("一つ", "مكعب")),
        ),
        ({"type": "watch", "text": "it falls"}, Watch(7, "", "it falls", 0.0)),
        ({"type": "watch", "text": "it falls", "threshold": 1}, Watch(7, "", "it falls", 1.0)),
        ({"type": "unwatch", "watch": 3}, Unwatch(7, 3)),
        ({"type": "recall", "text": "a hand"}, Recall(7, "", "a hand", 12)),
        ({"type": "recall", "text": "a", "camera": "c", "limit": 1}, Recall(7, "c", "a", 1)),
        ({"type": "view", "camera": "front"}, View(7, "front")),
        ({"type": "view", "camera": ""}, View(7, "")),
    ],
)
def test_a_request_is_read(fields: dict[str, Any], request_: Any) -> None:
    assert parse(json.dumps({"id": 7, **fields})) == request_


@pytest.mark.parametrize(
    ("message", "words", "id"),
    [
        ("{", "not JSON", None),
        ("[" * 5000, "not JSON", None),
        ("[1]", "not a JSON object", None),
        ("{}", "'id' must be", None),
        ('{"id": true, "type": "ask"}', "'id' must be", None),
        ('{"id": -1, "type": "ask"}', "'id' must be", None),
        ('{"id": 7}', "'type' must be one of ask, watch, unwatch, recall, view", 7),
        ('{"id": 7, "type": "drive"}', "'type' must be one of", 7),
        ('{"id": 7, "type": ["ask"]}', "'type' must be one of", 7),
        ('{"id": 7, "type": "ask"}', "The question must be a text", 7),
        ('{"id": 7, "type": "ask", "question": "  "}', "The question is empty", 7),
        (json.dumps({"id": 7, "type": "ask", "question": "a" * 10000}), "10000 characters", 7),
        ('{"id": 7, "type": "ask", "question": "a\\u0000b"}', "control character", 7),
        ('{"id": 7, "type": "ask", "question": "\\ud800"}', "control character", 7),
        ('{"id": 7, "type": "ask", "question": "a", "candidates": "b"}', "a list of texts", 7),
        ('{"id": 7, "type": "ask", "question": "a", "candidates": [1]}', "must be a text", 7),
        (json.dumps({"id": 7, "type": "ask", "question": "a", "candidates": ["b"] * 33}),
         "33 possible answers; give at most 32", 7),
        (json.dumps({"id": 7, "type": "ask", "question": "a", "candidates": ["b"] * 10000}),
         "larger than 16 KiB", None),
        ('{"id": 7, "type": "ask", "question": "a", "camera": 1}', "must be a text", 7),
        ('{"id": 7, "type": "watch", "text": "a", "threshold": 2}', "in 0..1", 7),
        ('{"id": 7, "type": "watch", "text": "a", "threshold": NaN}', "in 0..1", 7),
        ('{"id": 7, "type": "watch", "text": "a", "threshold": "1"}', "in 0..1", 7),
        ('{"id": 7, "type": "unwatch"}', "'watch' must be a whole number", 7),
        ('{"id": 7, "type": "view", "camera": "a b"}', "is not a name for a camera", 7),
        ('{"id": 7, "type": "recall", "text": "a", "limit": 25}', "in 1..24", 7),
        ('{"id": 7, "type": "recall", "text": "a", "limit": 1.5}', "a whole number", 7),
    ],
)  # fmt: skip
def test_what_is_not_a_request_is_one_sentence(message: str, words: str, id: int | None) -> None:
    with pytest.raises(RequestError, match=r"^[A-Z'].*[.]$") as caught:
        parse(message)
    assert words in str(caught.value)
    assert caught.value.id == id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
FIELDS = ("question", "candidates", "text", "threshold", "watch", "limit", "camera")


@given(
    kind=st.sampled_from(["ask", "watch", "unwatch", "recall", "view"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON),
)
def test_whatever_is_sent_fits_a_message_or_is_refused(kind: str, fields: dict[str, Any]) -> None:
    try:
        request = parse(json.dumps({"id": 1, "type": kind, **fields}))
    except RequestError:
        return
    for value in vars(request).values():
        for text in value if isinstance(value, tuple) else [value]:
            if isinstance(text, str):
                assert "\0" not in text and len(text.encode()) <= 4 * web_requests.TEXT
            else:
                assert 0 <= text <= web_requests.LARGEST_ID


@given(st.lists(st.floats(0, 2), max_size=200))
def test_no_more_requests_than_the_rate_allows(waits: list[float]) -> None:
    now, allowed = 0.0, 0
    bucket = Bucket(now)
    for wait in waits:
        now += wait
        allowed += bucket.take(now)
    assert allowed <= web_requests.BURST + now * web_requests.RATE + 1e-6
    assert allowed >= min(len(waits), web_requests.BURST)


# ------------------------------------------------------------------ history


def step(stamp: float, camera: str = "camera", kind: str = "step") -> dict[str, Any]:
    return {
        "type": kind, "camera": camera, "query": "q", "stamp": stamp, "score": 0.5, "segment": 1,
        "reused": False, "familiarity": -1.0,
    }  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5000), st.sampled_from(["a", "b"]),
            st.sampled_from(["step", "change", "words"]),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_the_history_is_in_order_and_no_longer_than_it_says(
    events: list[tuple[float, str, str]],
) -> None:
    history = History()
    for event in events:
        history.add(step(*event))
    for stream in history.events():
        stamps = [stamp for stamp, *_ in stream["steps"]]
        assert stamps == sorted(stamps)
        if stamps:
            mine = [s for s, camera, kind in events if camera == stream["camera"]
                    and kind == "step"]  # fmt: skip
            assert stamps[-1] == mine[-1]
            assert stamps[-1] - stamps[0] <= web_history.SECONDS


def test_the_history_is_bounded_in_steps_and_streams() -> None:
    history = History()
    for k in range(web_history.STEPS + 10):
        history.add(step(k * 0.001))
    assert len(history.events()[0]["steps"]) == web_history.STEPS
    assert history.events()[0]["steps"][-1][0] == (web_history.STEPS + 9) * 0.001
    for k in range(web_history.STREAMS + 3):
        history.add(step(1.0, f"camera{k}"))
    cameras = [event["camera"] for event in history.events()]
    assert cameras == [f"camera{k}" for k in range(3, web_history.STREAMS + 3)]


def test_a_jump_back_in_time_takes_the_future_along() -> None:
    history = History()
    for stamp in (10.0, 11.0, 12.0):
        history.add(step(stamp))
        history.add(step(stamp, kind="words"))
    history.add(step(11.0, kind="change"))
    history.add(step(10.5))
    content = history.events()[0]
    assert [stamp for stamp, *_ in content["steps"]] == [10.0, 10.5]
    assert [said["stamp"] for said in content["words"]] == [10.0]
    assert content["changes"] == []


# ------------------------------------------------------------------ a page that is slow


class Stuck:
    """A WebSocket whose other end takes what it is sent only while `flows` is set."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.sent: list[str | bytes] = []
        self.closed = False
        self.code: int | None = None
        self.ended = asyncio.Event()

    async def send_str(self, text: str) -> None:
        await self.flows.wait()
        self.sent.append(text)

    send_bytes: Any = send_str

    async def close(self, code: int, message: bytes) -> None:
        self.closed, self.code = True, code
        self.ended.set()

    def __aiter__(self) -> Stuck:
        return self

    async def __anext__(self) -> Any:
        await self.ended.wait()
        raise StopAsyncIteration


def test_a_page_that_falls_too_far_behind_is_disconnected() -> None:
    async def scene() -> None:
        socket = Stuck()
        page = Page(socket, None, lambda: None)  # type: ignore[arg-type]
        running = asyncio.ensure_future(page.run())
        for k in range(QUEUE):
            page.push(str(k))
        socket.flows.set()
        while len(socket.sent) < QUEUE:
            await asyncio.sleep(0)
        assert socket.sent == [str(k) for k in range(QUEUE)] and not socket.closed
        socket.flows.clear()
        for k in range(QUEUE + 1):
            page.push(str(k))
        socket.flows.set()
        await running
        assert socket.code == 1013  # try again later
        assert len(socket.sent) <= QUEUE + 1

    asyncio.run(scene())


def test_only_the_newest_picture_waits() -> None:
    async def scene() -> None:
        socket = Stuck()
        page = Page(socket, None, lambda: None)  # type: ignore[arg-type]
        running = asyncio.ensure_future(page.run())
        for k in range(100):
            page.show(b"%d" % k)
        page.push("first")
        socket.flows.set()
        while len(socket.sent) < 2:
            await asyncio.sleep(0)
        assert socket.sent == ["first", b"99"]
        socket.ended.set()
        await running

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.7", False), ("robot", False), ("", False),
        ("127.0.0.1.example.org", False),
    ],
)  # fmt: skip
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
