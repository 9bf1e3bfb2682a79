"""Long streams: when each way decodes, what it stands for, and how boundaries are matched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vljepa_ros.evaluation import selection
from vljepa_ros.evaluation.clips import Name, wordings
from vljepa_ros.evaluation.figures.boundaries import f1, match
from vljepa_ros.evaluation.figures.cider import Cider
from vljepa_ros.evaluation.selection import Decode, Way
from vljepa_ros.evaluation.tasks import streams
from vljepa_ros.evaluation.tasks.streams import PerceivedStream

NAMES: tuple[Name, ...] = (("still", None, None), ("push", "red", "cube"), ("roll", "blue", "ball"))
CUTS = (0, 20, 44)  # steps at which the meaning changes
STEPS = 64
DIM = 16
CAUSAL: dict[str, Way] = {
    "uniform": selection.uniform(4),
    "cosine": selection.cosine(0.3),
    "variance": selection.variance(0.1),
    "causal": selection.causal(0.5, 3, 2, 0.8),
}
ADAPTIVE = {**CAUSAL, "ward": selection.ward(1.5)}
del ADAPTIVE["uniform"]


@pytest.fixture
def stamps() -> np.ndarray:
    return 2 + np.arange(STEPS) / 4


@pytest.fixture
def embeddings() -> np.ndarray:
    """Three meanings at right angles, with a little noise."""
    meaning = np.searchsorted(CUTS, np.arange(STEPS), side="right") - 1
    noise = np.random.default_rng(0).normal(0, 0.02, (STEPS, DIM))
    return (np.eye(DIM)[meaning] + noise).astype(np.float32)


@pytest.mark.parametrize("way", ADAPTIVE)
def test_adaptive_ways_decode_once_for_each_meaning(
    way: str, stamps: np.ndarray, embeddings: np.ndarray
) -> None:
    decodes = ADAPTIVE[way](stamps, embeddings)
    starts = [decode.start for decode in decodes]
    assert len(starts) == len(CUTS)
    assert np.abs(np.array(starts) - stamps[list(CUTS)]).max() <= 0.75
    for number, decode in enumerate(decodes):
        assert decode.embedding.argmax() == number


@pytest.mark.parametrize("way", CAUSAL)
def test_causal_ways_do_not_see_the_future(
    way: str, stamps: np.ndarray, embeddings: np.ndarray
) -> None:
    for until in (21, 30, 46):
        now = CAUSAL[way](stamps[:until], embeddings[:until])
        later = [d for d in CAUSAL[way](stamps, embeddings) if d.at <= stamps[until - 1]]
        assert [(d.at, d.start) for d in now] == [(d.at, d.start) for d in later]
        assert all(np.array_equal(a.embedding, b.embedding) for a, b in zip(now, later))


def test_uniform_decodes_stand_for_the_time_nearest_to_them(
    stamps: np.ndarray, embeddings: np.ndarray
) -> None:
    decodes = selection.uniform(4)(stamps, embeddings)
    assert len(decodes) == STEPS / 4
    assert [d.at for d in decodes[:2]] == [2.5, 3.5]
    assert [d.start for d in decodes[:2]] == [2.0, 3.0]
    np.testing.assert_array_equal(decodes[1].embedding, embeddings[6])


def test_pooled_decodes_average_what_they_stand_for(
    stamps: np.ndarray, embeddings: np.ndarray
) -> None:
    decodes = selection.pooled(8)(stamps, embeddings)
    assert (decodes[1].start, decodes[1].at) == (stamps[8], stamps[15])
    np.testing.assert_allclose(decodes[1].embedding, embeddings[8:16].mean(0), rtol=1e-5)


# Boundaries


def test_a_boundary_is_found_once_and_by_one_segment() -> None:
    found = match([(5.5, 5.0), (5.75, 5.25), (9.0, 8.5), (20.0, 19.0)], [5.2, 5.9, 8.5, 30.0])
    assert (found.fired, found.true, found.hits) == (4, 4, 3)
    assert found.delays == pytest.approx((0.3, -0.15, 0.5))
    assert f1([found]) == pytest.approx(3 / 4)


def test_a_segment_a_second_off_is_a_false_alarm() -> None:
    assert match([(5.0, 5.0)], [3.9]).hits == 0
    assert match([(5.0, 5.0)], [4.0]).hits == 1
    assert f1([match([], [])]) == 0.0


# Scores


def stream(stamps: np.ndarray, embeddings: np.ndarray) -> PerceivedStream:
    """Each meaning is one event, annotated in its middle."""
    ends = [*CUTS[1:], STEPS]
    meaning = np.searchsorted(CUTS, np.arange(STEPS), side="right") - 1
    return PerceivedStream(
        stamps, embeddings, np.zeros(STEPS, bool), (),
        np.array([stamps[(a + b) // 2] for a, b in zip(CUTS, ends)]),
        NAMES, tuple(stamps[list(CUTS[1:])]), tuple(NAMES[i] for i in meaning), 0.0,
    )  # fmt: skip


@pytest.fixture
def one(stamps: np.ndarray, embeddings: np.ndarray) -> PerceivedStream:
    return stream(stamps, embeddings)


@pytest.fixture
def cider() -> Cider:
    return Cider([wordings(name) for name in NAMES])


TEXTS = [wordings(name)[0] for name in NAMES]


def test_every_event_is_scored_against_the_decode_of_its_time(
    one: PerceivedStream, cider: Cider
) -> None:
    decodes = [Decode(float(one.stamps[c]), float(one.stamps[c]), np.zeros(DIM)) for c in CUTS]
    best = [cider.score(text, wordings(name)) for text, name in zip(TEXTS, NAMES)]
    said = streams.judge(one, decodes, TEXTS, cider)
    np.testing.assert_allclose(said.scores, best)
    assert said.found.hits == 2
    swapped = streams.judge(one, decodes, [TEXTS[0], TEXTS[2], TEXTS[1]], cider)
    assert swapped.scores[1] < best[1] and swapped.scores[2] < best[2]


def test_words_that_come_late_count_only_from_then_on(one: PerceivedStream, cider: Cider) -> None:
    def said(delay: int) -> streams.Scored:
        decodes = [
            Decode(float(one.stamps[c + delay]), float(one.stamps[c]), np.zeros(DIM)) for c in CUTS
        ]
        return streams.judge(one, decodes, TEXTS, cider)

    soon, late = said(0), said(8)
    np.testing.assert_allclose(soon.scores, late.scores)
    assert late.live[:8].sum() == 0
    assert (late.live > 1).sum() == (soon.live > 1).sum() - 8 * len(CUTS)
    assert np.median(late.found.delays) == 2.0


def words_of(embeddings: np.ndarray) -> list[str]:
    return [TEXTS[int(e[:3].argmax())] for e in embeddings]


def test_saying_it_once_is_as_good_as_saying_it_every_second(one: PerceivedStream) -> None:
    decoded: list[int] = []

    def decode_all(embeddings: np.ndarray) -> list[str]:
        decoded.append(len(embeddings))
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
        return words_of(embeddings)

    bench = streams.Trials(SimpleNamespace(decode_all=decode_all), [one, one])  # type: ignore[arg-type]
    spoken, at_1_hz = bench.say(CAUSAL["causal"]), bench.say(selection.uniform(4))
    assert sum(decoded) == len(CUTS) + STEPS / 4  # the second stream says the same
    curve = [{"parameter": 0.5, **streams.point([one, one], spoken)}]
    found = streams.fewer([one, one], spoken, at_1_hz, curve)
    assert found["times_fewer"]["value"] == pytest.approx(STEPS / 4 / len(CUTS))
    assert found["cider_difference"]["value"] == pytest.approx(0)
    assert found["best_at_equal_cider"]["times_fewer"] == found["times_fewer"]["value"]
    figures = streams.figures([one, one], spoken)
    assert figures["boundary_f1"]["value"] == 1.0
    assert figures["false_alarms_per_minute"]["value"] == 0.0
    assert 0 <= figures["delay"]["value"] <= 0.75
    constant = streams.point([one, one], bench.constant(TEXTS[0]))
    still = bench.cider.score(TEXTS[0], wordings(NAMES[0]))
    assert constant["cider"] == pytest.approx(still / 3)


def test_no_point_of_the_sweep_may_be_good_enough(one: PerceivedStream, cider: Cider) -> None:
    def said(texts: list[str]) -> list[Any]:
        decodes = [Decode(float(one.stamps[c]), float(one.stamps[c]), np.zeros(DIM)) for c in CUTS]
        return [streams.judge(one, decodes, texts, cider)]

    wrong = said(["nothing of the kind"] * 3)
    curve = [{"parameter": 1.0, **streams.point([one], wrong)}]
    found = streams.fewer([one], wrong, said(TEXTS), curve)
    assert found["best_at_equal_cider"] is None
    assert found["cider_difference"]["value"] < 0
