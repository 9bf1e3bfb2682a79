"""Who puts changes into words: chosen, changed while running, and nothing lost by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle, with_phrases
from graph import NodeProcess, Probe, Stream, domain, noise
from speaking import Words

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.srv import Ask

PHRASES = ["a cube falls", "a ball rolls", "a hand picks a block", "nothing moves", "a red cube"]
LINE = "decoder: words"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as public ones are: no Y-decoder."""
    return make_bundle(tmp_path_factory.mktemp("mute") / "tiny", decoder=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "phrases.txt"
    path.write_text("\n".join(PHRASES))
    return path


@pytest.fixture
def words(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[Words] = []

    def make(bundle: Path, **parameters: Any) -> Words:
        made.append(Words(bundle, **parameters))
        made[-1].begin()
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_bundle_without_decoder_says_the_phrase_that_fits(
    words: Any, mute: Path, file: Path, tmp_path: Path
) -> None:
    own = tmp_path / "rear.txt"
    own.write_text("a gripper\na drawer")
    node = words(mute, phrases=[str(file), f"rear={own}"])
    for phrase in PHRASES:
        said = node.said(phrase)
        assert (said.text, said.source) == (phrase, "phrases")
        assert said.confidence == pytest.approx(1, abs=1e-2)
    assert node.said("a cube falls", "rear").text in ("a gripper", "a drawer")
    answer = node.decode("a ball rolls")
    assert (answer.success, answer.text, answer.source) == (True, "a ball rolls", "phrases")
    assert node.decode("a ball rolls", camera="rear").text in ("a gripper", "a drawer")
    node.probe.wait_for_health(LINE, lambda values: values.get("phrases") == "7")

    file.write_text("something else")
    assert node.probe.set("decoder", phrases=[str(file)]).successful
    node.node.wait_for_log("Ready: 1 phrase.")
    assert node.said("a cube falls", "rear").text == "something else"


def test_what_cannot_be_said_is_refused_with_a_sentence(words: Any, mute: Path, file: Path) -> None:
    node = words(mute, phrases=[str(file)])
    for values, sentence in (
        ({"words": "decoder"}, "has no Y-decoder; set 'words' to phrases"),
        ({"phrases": ["/nowhere/phrases.txt"]}, "The phrases /nowhere/phrases.txt cannot be read"),
        ({"words": "phrases", "phrases": [""]}, "has no phrases; name a file of phrases"),
        ({"words": "poems"}, "must be one of auto, decoder, phrases"),
    ):
        if len(values) == 2:  # one by one, they are set in turn
            assert node.probe.set("decoder", words="phrases").successful
            values = {"phrases": [""]}
        result = node.probe.set("decoder", **values)
        assert not result.successful and sentence in result.reason
    assert node.said("a cube falls").text == "a cube falls"


def test_where_there_are_no_words_at_all_it_says_so_once_and_goes_on(
    words: Any, mute: Path
) -> None:
    node = words(mute)
    node.node.wait_for_log("has neither a Y-decoder nor phrases")
    node.change("a cube falls")
    node.probe.wait_for_health("decoder: changes", lambda values: values["unsaid"] == "1")
    assert node.probe.utterances == []
    answer = node.decode("a cube falls")
    assert not answer.success and "there is no bank of phrases" in answer.message


def test_what_fits_badly_stays_unsaid_or_is_called_unfamiliar(words: Any, tmp_path: Path) -> None:
    bundle = with_phrases(make_bundle(tmp_path / "tiny", decoder=False), PHRASES, cosine=0.99)
    node = words(bundle)
    assert node.said("nothing moves").text == "nothing moves"
    node.change("two on left")
    node.probe.wait_for_health("decoder: changes", lambda values: values["unsaid"] == "1")
    assert "Nothing that is known fits: '" in node.decode("two on left").message
    assert node.probe.set("decoder", unfamiliar="something I do not know").successful
    assert node.said("two on left").text == "something I do not know"
    assert node.decode("two on left").text == "something I do not know"


def test_switching_words_while_running_loses_no_change(
    words: Any, tiny_bundle: Path, file: Path
) -> None:
    node = words(tiny_bundle, phrases=[str(file)])
    assert node.said("a cube falls").source == "decoder"

    def settled(values: dict[str, str]) -> bool:
        spoken = len({one.segment_id for one in node.probe.utterances})
        return spoken + int(values["unsaid"]) == node.segments

    for choice in ("phrases", "decoder", "none", "phrases", "auto", "none", "auto"):
        for phrase in PHRASES[:4]:  # with those after, no more than the topic's 10
            node.change(phrase)
        assert node.probe.set("decoder", words=choice).successful
        for phrase in PHRASES[:4]:
            node.change(phrase)
        node.probe.wait_for_health("decoder: changes", settled)
    assert len(node.probe.utterances) == len({one.segment_id for one in node.probe.utterances})
    assert {one.source for one in node.probe.utterances} == {"decoder", "phrases"}
    assert node.probe.set("decoder", words="none").successful
    assert "'words' of /decoder is none; set it to auto" in node.decode("a ball rolls").message
    assert node.probe.set("decoder", words="auto").successful
    last = node.said("a ball rolls")
    assert last.source == "decoder"


def test_a_camera_is_put_into_words_and_asked_without_a_decoder(mute: Path, file: Path) -> None:
    number = domain()
    perception = NodeProcess("perception_node", number, bundle=mute, max_gap=900.0)
    decoder = NodeProcess("decoder_node", number, bundle=mute, phrases=[str(file)])
    probe = Probe(number)
    try:
        perception.wait_for_log("Active.")
        decoder.wait_for_log("Active.")
        camera = Stream(probe, "camera", noise(0))
        while not probe.utterances:  # until the decoder hears changes, and we hear it
            camera.restart(noise(0))
        first = probe.utterances[0].segment_id
        for seed in range(1, 5):
            for _ in range(6):
                camera.step(noise(seed))

        def changes() -> list[Any]:
            return [change for change in probe.changes if change.segment_id >= first]

        probe.wait(lambda: len(changes()) > 2, "changes")
        probe.wait(lambda: len(probe.utterances) == len(changes()), "words for each change")
        model = Runtime(load_bundle(mute), "onnxruntime-cpu")
        bank = model.embed_text(PHRASES)
        apart = bank - bank.mean(0)
        apart /= np.linalg.norm(apart, axis=1, keepdims=True)
        for change, said in zip(changes(), probe.utterances, strict=True):
            best = int((apart @ np.asarray(change.embedding)).argmax())
            assert (said.text, said.source) == (PHRASES[best], "phrases")
        answer = probe.call(Ask, "ask", Ask.Request(question="what is red ?"))
        assert answer.success and answer.answer in PHRASES
        model.close()
    finally:
        probe.close()
        assert perception.end() == 0 and decoder.end() == 0
