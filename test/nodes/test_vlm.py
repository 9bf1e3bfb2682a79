"""A VLM puts changes into words, through the graph: beside everything else, and others stand in."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install vljepa_ros[web]")

from graph import NodeProcess, Probe, Stream, domain, noise
from speaking import Words
from vlm_server import SAYS, VlmServer

from vljepa_ros.stamps import to_ns
from vljepa_ros.words.vlm import KEY

pytestmark = pytest.mark.usefixtures("default_transports")

SECRET = "sk-very-secret-0123456789"
PICTURES = [b"\xff\xd8one", b"\xff\xd8two", b"\xff\xd8three"]


@pytest.fixture
def server() -> Iterator[VlmServer]:
    server = VlmServer()
    yield server
    server.close()


@pytest.fixture
def words(tiny_bundle: Path, server: VlmServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Words]:
    monkeypatch.setenv(KEY, SECRET)
    words = Words(tiny_bundle, vlm__url=server.url, vlm__model="llava", frames=2)
    try:
        words.begin()
        assert words.probe.set("decoder", words="vlm").successful
        yield words
    finally:
        words.close()
        assert SECRET not in words.node.log


def test_the_vlm_says_what_it_sees_and_others_where_it_does_not(
    words: Words, server: VlmServer
) -> None:
    words.node.wait_for_log(f"Pictures of changes go to {server.url}/chat/completions.")
    said = words.said("a cube falls", pictures=PICTURES)
    assert (said.text, said.source) == (SAYS, "vlm")
    expected = words.model.confidence(SAYS, words.model.embed_text(["a cube falls"])[0])
    assert said.confidence == pytest.approx(expected, abs=1e-3) and said.decode_time > 0
    assert [base64.b64decode(url.split(",")[1]) for url in server.pictures()] == PICTURES[1:]

    own = words.decode("a cube falls")  # a question has no pictures
    assert (own.success, own.source) == (True, "decoder")
    assert words.said("a cube falls").text == own.text  # a change without them
    words.node.wait_for_log("set the perception node's parameter change_frames")

    for model in ("401", "html", "nothing", "long", "redirect", "cut body"):
        assert words.probe.set("decoder", vlm__model=model).successful
        said = words.said("a cube falls", pictures=PICTURES)
        assert (said.text, said.source) == (own.text, "decoder")
    words.probe.wait_for_health("decoder: vlm", lambda values: values["failed"] == "6")
    values = words.probe.values("decoder: vlm")
    assert (values["asked"], values["answered"]) == ("7", "1")
    assert int(values["without pictures"]) >= 1
    assert words.node.log.count("questions have failed") == 1  # not one for each

    assert words.probe.set("decoder", words="auto").successful
    words.node.wait_for_log("Pictures go nowhere now.")
    asked = len(server.requests)
    assert words.said("a cube falls", pictures=PICTURES).source == "decoder"
    assert len(server.requests) == asked
    words.probe.wait(lambda: SECRET not in str(words.probe.health), "diagnostics")


def test_a_slow_vlm_holds_up_nobody_and_the_newest_change_is_next(
    words: Words, server: VlmServer
) -> None:
    assert words.probe.set("decoder", vlm__model="hold").successful
    first = words.change("a cube falls", pictures=PICTURES)
    words.probe.wait(lambda: len(server.requests) == 1, "the first question")
    second = words.change("a ball rolls", pictures=PICTURES)
    third = words.change("nothing moves", pictures=PICTURES)
    assert words.words_about(second).source == "decoder"  # at once, by who stands in
    assert words.decode("a ball rolls").success
    assert not words.about(first) and not words.about(third)
    server.release.set()
    assert [words.words_about(one).source for one in (first, third)] == ["vlm", "vlm"]
    words.probe.wait_for_health("decoder: vlm", lambda values: values["superseded"] == "1")


def test_a_vlm_that_never_answers_loses_no_change_when_the_node_goes_on(
    words: Words, server: VlmServer
) -> None:
    assert words.probe.set("decoder", vlm__model="hold", vlm__timeout=0.3).successful
    assert words.said("a cube falls", pictures=PICTURES).source == "decoder"
    words.node.wait_for_log("did not answer within 0.3 s")
    assert words.probe.set("decoder", vlm__timeout=600.0).successful
    words.change("a cube falls", pictures=PICTURES)
    words.probe.wait(lambda: len(server.requests) == 2, "the question")
    assert words.probe.transition("decoder", "deactivate")
    words.node.wait_for_log("Not decoded any more: 1 change that waited.")
    assert words.probe.transition("decoder", "activate")
    server.release.set()
    words.begin()
    assert words.said("a cube falls", pictures=PICTURES).source == "vlm"


def test_what_cannot_be_asked_is_refused_with_a_sentence(words: Words) -> None:
    result = words.probe.set("decoder", vlm__url=f"http://me:{SECRET}@host/v1")
    assert not result.successful and "more than an address" in result.reason
    assert SECRET not in result.reason
    result = words.probe.set("decoder", vlm__url="")
    assert not result.successful and "'vlm.url' is no address" in result.reason


def test_changes_carry_pictures_of_their_segment_where_they_are_asked_for(
    tiny_bundle: Path,
) -> None:
    number = domain()
    node = NodeProcess("perception_node", number, bundle=tiny_bundle, max_gap=900.0)
    probe = Probe(number)
    try:
        node.wait_for_log("Active.")
        camera = Stream(probe, "camera", noise(0))

        def changes(seeds: range) -> list[Any]:
            before = len(probe.changes)
            for seed in seeds:
                for _ in range(8):
                    camera.step(noise(seed, 1024, 512))
            probe.wait(lambda: len(probe.changes) > before, "changes")
            return list(probe.changes[before:])

        assert all(len(change.key_frames) == 0 for change in changes(range(1, 4)))
        assert probe.set("perception", change_frames=3).successful
        found = changes(range(4, 8))
        for change in found:
            stamps = [to_ns(one.header.stamp) for one in change.key_frames]
            assert stamps == sorted(set(stamps)) and 1 <= len(stamps) <= 3
            assert stamps[-1] == to_ns(change.header.stamp)
            assert stamps[0] > to_ns(change.segment_start)
            for one in change.key_frames:
                picture = cv2.imdecode(np.frombuffer(one.data, np.uint8), cv2.IMREAD_COLOR)
                assert (one.format, picture.shape) == ("jpeg", (256, 512, 3))
        assert max(len(change.key_frames) for change in found) == 3
        assert probe.set("perception", change_frames=0).successful
        assert all(len(change.key_frames) == 0 for change in changes(range(8, 11)))
        assert not probe.set("perception", change_frames=5).successful
    finally:
        probe.close()
        assert node.end() == 0
