"""Which stream is followed, where several nodes publish a camera."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from std_msgs.msg import Header

from vljepa_ros.client import source
from vljepa_ros.client.source import GONE, Sources
from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding, Utterance

KINDS = (SemanticEmbedding, SemanticChange, Utterance)


class Listener:
    """Sources on a clock that stands still but for `wait`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(source.time, "monotonic", lambda: self.now)
        self.warnings: list[str] = []
        self.others: list[str] = []
        self.sources = Sources(self.warnings.append, self.others.append)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def takes(self, stream_id: int, camera: str = "front", kind: Any = SemanticEmbedding) -> bool:
        return self.sources.takes(kind(camera=camera, stream_id=stream_id))

    def sign(self, stream_id: int, *cameras: str) -> None:
        self.sources.on_info(ModelInfo(stream_id=stream_id, cameras=list(cameras)))


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(monkeypatch)


def test_the_stream_that_was_heard_first_is_followed_while_it_lives(listener: Listener) -> None:
    assert listener.takes(1)
    for _ in range(20):
        listener.wait(1.0)
        listener.sign(1, "front")  # nothing is published, as nothing changes
        assert not listener.takes(2)
    assert listener.takes(1)
    assert listener.sources.refused == 20
    (warning,) = listener.warnings
    assert warning.startswith("Two perception nodes publish camera 'front'")
    assert listener.takes(2, "rear")  # another camera may come from another node
    assert not listener.others


def test_a_sign_is_enough_to_be_the_first(listener: Listener) -> None:
    listener.sign(1, "front")
    assert not listener.takes(2) and listener.takes(1)


def test_another_takes_over_when_the_first_falls_silent(listener: Listener) -> None:
    assert listener.takes(1)
    listener.wait(0.9 * GONE)
    assert not listener.takes(2)
    listener.wait(0.2 * GONE)
    assert listener.takes(2) and listener.others == ["front"]
    assert not listener.takes(1)
    assert not listener.warnings  # it was started again: there were never two


def test_another_takes_over_at_once_when_the_first_says_goodbye(listener: Listener) -> None:
    listener.sign(1, "front", "rear")
    assert listener.takes(1)
    listener.sign(1, "rear")
    assert listener.takes(2) and not listener.takes(2, "rear")
    listener.sign(1)
    assert listener.takes(2, "rear")


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.sampled_from(KINDS)), min_size=1))
def test_of_two_that_live_one_alone_is_taken(messages: list[tuple[int, Any]]) -> None:
    sources = Sources(lambda sentence: None)
    taken = [
        stream for stream, kind in messages if sources.takes(kind(camera="front", stream_id=stream))
    ]
    assert taken == [stream for stream, _ in messages if stream == messages[0][0]]


def test_what_two_decoders_say_is_heard_once(listener: Listener) -> None:
    def said(stamp: int, text: str = "a cube falls", stream_id: int = 1) -> bool:
        header = Header(stamp=Time(sec=stamp))
        return listener.sources.takes_words(
            Utterance(header=header, camera="front", text=text, stream_id=stream_id)
        )

    assert said(1) and said(2)
    assert not said(1) and not said(2)
    assert said(2, "a ball rolls") and said(3)
    assert not said(4, stream_id=2)
