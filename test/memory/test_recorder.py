"""Steps, changes, words and pictures into moments: every step once, in whatever order they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.recorder import PATIENCE, TAIL, Recorder
from vljepa_ros.memory.thumbnails import DENSE, LEVELS, Shelf
from vljepa_ros.perception.change import ChangeDetector

DIM = 8
PERIOD = 250_000_000
SECOND = 1_000_000_000
MEANINGS = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].astype(np.float32)


@dataclass
class Listener:
    """What a recorder kept and said."""

    moments: list[Moment] = field(default_factory=list)
    late: dict[str, tuple[str, float]] = field(default_factory=dict)

    def recorder(self) -> Recorder:
        return Recorder(
            "robot", self.moments.append, lambda id, *words: self.late.__setitem__(id, words)
        )

    def texts(self) -> list[str]:
        """The words of every moment, early or late."""
        return [self.late.get(m.id, (m.text,))[0] for m in self.moments]


@dataclass(frozen=True)
class Truth:
    """One segment as it should be remembered."""

    segment_id: int
    stamps: tuple[int, ...]
    embeddings: np.ndarray


Event = tuple[str, tuple[Any, ...]]  # a method of the recorder, and its arguments


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], list[Event], list[Event], list[Truth]]:
    """Steps, changes and words of a real change detector, and the segments that they mean.

    Meanings last some steps each; in between, time may jump ahead or back, which restarts the
    detector as it does in the perceiver.
    """
    candidate = draw(st.integers(1, 6))
    detector = ChangeDetector(0.3, candidate, draw(st.integers(1, 5)), 0.9)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    now = 1000 * SECOND
    steps: list[Event] = []
    changes: list[Event] = []
    words: list[Event] = []
    owner: list[tuple[int, int, np.ndarray]] = []  # segment, stamp, embedding
    jumps = st.sampled_from([0] * 6 + [9, -400])
    part = st.tuples(st.integers(0, DIM - 1), st.integers(1, 12), jumps)
    for meaning, length, jump in draw(st.lists(part, min_size=1, max_size=8)):
        if jump:
            now += jump * SECOND + draw(st.integers(0, 7)) * PERIOD
            detector.restart()
        run = len(owner)
        for _ in range(length):
            now += PERIOD
            embedding = MEANINGS[meaning] + 0.05 * rng.normal(size=DIM).astype(np.float32)
            embedding /= np.linalg.norm(embedding)
            found = detector.update(now, embedding)
            owner.append((found.segment_id, now, embedding))
            if found.changed:
                begin = found.segment_start_ns
                changes.append(
                    ("change", ("camera", "query", found.segment_id, begin,
                                found.previous_segment_id, found.previous_segment_start_ns))
                )  # fmt: skip
                said = (f"segment {found.segment_id}", 0.5)
                words.append(("words", ("camera", "query", found.segment_id, *said)))
                for i in range(len(owner)):  # brute force, within what the detector looks back
                    back = len(owner) - candidate <= i and owner[i][1] > begin
                    if back and (not jump or i >= run):
                        owner[i] = (found.segment_id, *owner[i][1:])
            steps.append(("step", ("camera", "query", now, found.segment_id, embedding)))
    truth = []
    for segment_id in sorted({s for s, _, _ in owner}):
        its = [(stamp, e) for s, stamp, e in owner if s == segment_id]
        truth.append(
            Truth(segment_id, tuple(t for t, _ in its), np.stack([e for _, e in its]))
        )  # fmt: skip
    return steps, changes, words, truth


def in_order(steps: list[Event], changes: list[Event], words: list[Event]) -> list[Event]:
    """As a node publishes them: a change after the step that found it, words after the change."""
    first = {step[1][3]: i for i, step in reversed(list(enumerate(steps)))}
    events = [((i, 0), step) for i, step in enumerate(steps)]
    events += [((first[c[1][2]], 1), c) for c in changes]
    events += [((first[w[1][2]], 2), w) for w in words]
    return [event for _, event in sorted(events, key=lambda pair: pair[0])]


def play(events: list[Event]) -> Listener:
    listener = Listener()
    recorder = listener.recorder()
    for method, arguments in events:
        getattr(recorder, method)(*arguments)
    recorder.flush()
    return listener


@given(streams())
def test_every_step_is_in_one_moment_and_means_are_those_of_brute_force(
    stream: tuple[list[Event], list[Event], list[Event], list[Truth]],
) -> None:
    steps, changes, words, truth = stream
    listener = play(in_order(steps, changes, words))
    moments = listener.moments
    assert [m.segment_id for m in moments] == [t.segment_id for t in truth]
    assert sum(len(t.stamps) for t in truth) == len(steps)
    for moment, one in zip(moments, truth, strict=True):
        assert (moment.start_ns, moment.end_ns) == (one.stamps[0], one.stamps[-1])
        mean = one.embeddings.astype(np.float64).sum(0)
        assert np.abs(moment.embedding - mean / np.linalg.norm(mean)).max() < 1e-6
        assert moment.embedding.dtype == np.float32
    assert listener.texts() == [f"segment {t.segment_id}" for t in truth]


@given(streams(), st.data())
def test_the_order_of_changes_and_words_among_the_steps_changes_nothing(
    stream: tuple[list[Event], list[Event], list[Event], list[Truth]], data: st.DataObject
) -> None:
    steps, changes, words, _ = stream
    usual = play(in_order(steps, changes, words))
    # Each of the three keeps its own order, as topics do; between them anything may happen.
    at = {
        kind: sorted(
            data.draw(st.lists(st.integers(0, len(steps)), min_size=n, max_size=n), label=kind)
        )
        for kind, n in (("changes", len(changes)), ("words", len(words)))
    }
    late = {c[1][2]: next(i for i, s in enumerate(steps) if s[1][3] == c[1][2]) for c in changes}
    events: list[tuple[float, Event]] = [(i, step) for i, step in enumerate(steps)]
    for position, change in zip(at["changes"], changes, strict=True):
        events.append((min(position, late[change[1][2]] + PATIENCE) - 0.5, change))
    events += [(i - 0.25, w) for i, w in zip(at["words"], words, strict=True)]
    mixed = play([event for _, event in sorted(events, key=lambda pair: pair[0])])
    assert len(mixed.moments) == len(usual.moments)
    for a, b in zip(mixed.moments, usual.moments, strict=True):
        assert (a.id, a.segment_id, a.end_ns) == (b.id, b.segment_id, b.end_ns)
        assert np.array_equal(a.embedding, b.embedding)
    assert mixed.texts() == usual.texts()


@given(streams(), st.data())
def test_lost_messages_mix_nothing(
    stream: tuple[list[Event], list[Event], list[Event], list[Truth]], data: st.DataObject
) -> None:
    steps, changes, words, _ = stream
    events = in_order(steps, changes, words)
    kept = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    events = [event for event, there in zip(events, kept, strict=True) if there]
    moments = play(events).moments
    heard = [arguments for method, arguments in events if method == "step"]
    # In the order of the steps, disjoint, and each step that was heard in one of them.
    position = {arguments[2]: i for i, arguments in enumerate(heard)}
    if len(position) < len(heard):  # time jumped back onto a stamp: order alone cannot be told
        return
    spans = [(position[m.start_ns], position[m.end_ns]) for m in moments]
    assert [i for first, last in spans for i in range(first, last + 1)] == list(range(len(heard)))
    for moment, (first, last) in zip(moments, spans, strict=True):
        mean = np.sum([h[4] for h in heard[first : last + 1]], axis=0, dtype=np.float64)
        assert np.abs(moment.embedding - mean / np.linalg.norm(mean)).max() < 1e-6
        stamps = [h[2] for h in heard[first : last + 1]]
        assert stamps == sorted(stamps)  # no moment spans a jump back in time


def step(recorder: Recorder, at: int, segment_id: int, embedding: Any = None) -> None:
    if embedding is None:
        embedding = MEANINGS[segment_id % DIM]
    recorder.step("camera", "query", at * SECOND, segment_id, embedding)


def test_a_moment_is_as_familiar_as_its_steps_in_the_mean() -> None:
    listener = Listener()
    recorder = listener.recorder()
    for at, familiarity in enumerate((0.25, 0.75, 0.5, 1.0), 1):
        recorder.step("camera", "query", at * SECOND, 1, MEANINGS[1], familiarity)
    recorder.step("camera", "query", 5 * SECOND, 2, MEANINGS[2], 0.0)
    recorder.change("camera", "query", 2, 3 * SECOND, 1, SECOND)  # it began with the fourth step
    recorder.flush()
    assert [m.familiarity for m in listener.moments] == [0.5, 0.5]


def test_a_change_that_never_comes_delays_a_moment_and_loses_nothing() -> None:
    listener = Listener()
    recorder = listener.recorder()
    recorder.change("camera", "query", 1, SECOND, 0, 0)
    for at in range(1, 6):
        step(recorder, at, 1)
    for at in range(6, 6 + PATIENCE):
        step(recorder, at, 2)
        assert not listener.moments
    step(recorder, 6 + PATIENCE, 2)
    assert [(m.start_ns // SECOND, m.end_ns // SECOND) for m in listener.moments] == [(1, 5)]
    recorder.change("camera", "query", 2, 4 * SECOND, 1, SECOND)  # too late: nothing happens
    recorder.flush()
    ends = [(m.start_ns // SECOND, m.end_ns // SECOND) for m in listener.moments]
    assert ends == [(1, 5), (6, 6 + PATIENCE)]


def test_a_segment_whose_own_steps_are_all_lost_is_cut_out_of_the_one_before() -> None:
    listener = Listener()
    recorder = listener.recorder()
    for at in range(1, 8):
        step(recorder, at, 1)
    step(recorder, 12, 3)
    recorder.change("camera", "query", 2, 4 * SECOND, 1, SECOND)
    recorder.change("camera", "query", 3, 6 * SECOND, 2, 4 * SECOND)
    recorder.flush()
    found = [(m.segment_id, m.start_ns // SECOND, m.end_ns // SECOND) for m in listener.moments]
    assert found == [(1, 1, 4), (2, 5, 6), (3, 7, 12)]


def test_a_perception_node_that_starts_again_begins_a_new_moment() -> None:
    """Its numbers begin anew, be it within a higher segment or within the first."""
    for last in (1, 3):
        for early in (False, True):  # the change, before its first step or after
            listener = Listener()
            recorder = listener.recorder()
            for segment in range(1, last + 1):
                recorder.change("camera", "query", segment, segment * 10 * SECOND,
                                segment - 1, (segment - 1) * 10 * SECOND)  # fmt: skip
                for at in range(segment * 10, segment * 10 + 5):
                    step(recorder, at, segment)
            change = ("camera", "query", 1, 100 * SECOND, 0, 0)
            if early:
                recorder.change(*change)
            step(recorder, 100, 1)
            step(recorder, 101, 1)
            if not early:
                recorder.change(*change)
            recorder.words("camera", "query", 1, "again", 0.5)
            recorder.flush()
            starts = [m.start_ns // SECOND for m in listener.moments]
            assert starts == [*range(10, 10 * last + 1, 10), 100]
            assert listener.texts() == [""] * last + ["again"]


def test_time_that_jumps_back_within_one_number_begins_a_new_moment() -> None:
    listener = Listener()
    recorder = listener.recorder()
    for at in (10, 11, 12, 5, 6):
        step(recorder, at, 1)
    recorder.flush()
    spans = [(m.start_ns // SECOND, m.end_ns // SECOND) for m in listener.moments]
    assert spans == [(10, 12), (5, 6)]


def test_hours_take_no_more_memory_and_the_mean_stays_exact() -> None:
    listener = Listener()
    recorder = listener.recorder()
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(3 * TAIL, DIM)).astype(np.float32) + 1
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    for at, embedding in enumerate(embeddings, 1):
        step(recorder, at, 1, embedding)
    segment = recorder._streams["camera", "query"]._segments[-1]
    assert len(segment._tail) == TAIL
    recorder.change("camera", "query", 2, (2 * TAIL + 1) * SECOND, 1, SECOND)
    step(recorder, 3 * TAIL + 1, 2, embeddings[0])
    mean = embeddings[: 2 * TAIL + 1].astype(np.float64).sum(0)
    assert listener.moments[0].end_ns == (2 * TAIL + 1) * SECOND
    assert np.abs(listener.moments[0].embedding - mean / np.linalg.norm(mean)).max() < 1e-6


def test_cameras_and_queries_do_not_meet() -> None:
    listener = Listener()
    recorder = listener.recorder()
    for camera in ("front", "rear"):
        for query in ("what?", "why?"):
            recorder.step(camera, query, SECOND, 1, MEANINGS[0])
            recorder.words(camera, query, 1, f"{camera} {query}", 1.0)
    recorder.flush()
    assert len({m.id for m in listener.moments}) == 4
    assert all(m.text == f"{m.camera} {m.query}" for m in listener.moments)


def test_a_step_that_comes_twice_counts_once_and_opposites_have_a_direction() -> None:
    listener = Listener()
    recorder = listener.recorder()
    for at, embedding in ((1, MEANINGS[0]), (1, MEANINGS[0]), (2, -MEANINGS[0])):
        step(recorder, at, 1, embedding)
    recorder.flush()
    assert np.allclose(listener.moments[0].embedding, -MEANINGS[0])


def test_words_after_the_stream_has_ended_still_reach_the_moment() -> None:
    listener = Listener()
    recorder = listener.recorder()
    step(recorder, 1, 1)
    recorder.flush()
    recorder.words("camera", "query", 1, "late", 0.25)
    assert listener.late == {listener.moments[0].id: ("late", 0.25)}
    recorder.words("camera", "query", 7, "of nothing", 0.25)
    assert len(listener.late) == 1


def test_the_thumbnail_is_the_one_nearest_to_the_middle() -> None:
    listener = Listener()
    recorder = listener.recorder()
    for at in range(1, 30):
        recorder.thumbnail("camera", at * SECOND, str(at).encode())
        step(recorder, at, 1 if at < 20 else 2)
    recorder.change("camera", "query", 2, 17 * SECOND, 1, SECOND)
    recorder.flush()
    assert [m.thumbnail for m in listener.moments] == [b"9", b"23"]


def test_the_thumbnail_is_of_the_same_run() -> None:
    """Time jumps back onto stamps that were there before."""
    listener = Listener()
    recorder = listener.recorder()
    for run, segment, stamps in (("a", 1, range(1, 12)), ("b", 2, range(4, 16))):
        begin, previous = stamps[0] * SECOND, (segment - 1) * SECOND
        recorder.change("camera", "query", segment, begin, segment - 1, previous)
        for at in stamps:
            recorder.thumbnail("camera", at * SECOND, f"{run}{at}".encode())
            step(recorder, at, segment)
    recorder.flush()
    assert [m.thumbnail for m in listener.moments] == [b"a6", b"b9"]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.data())
def test_each_step_has_its_own_picture_whatever_another_node_sends(
    steps: list[tuple[bool, bool]], data: st.DataObject
) -> None:
    """Pictures come before or after their steps, and those of another node in between."""
    listener = Listener()
    recorder = listener.recorder()
    for at, (before, other) in enumerate(steps, 1):
        if other:  # of stamps that are no step's, or of one that has its picture
            stray = data.draw(st.sampled_from([at * SECOND - 1, max(1, at - 3) * SECOND]))
            if stray != at * SECOND:
                recorder.thumbnail("camera", stray, b"stray")
        if before:
            recorder.thumbnail("camera", at * SECOND, str(at).encode())
        step(recorder, at, at)
        recorder.change("camera", "query", at, at * SECOND, at - 1, (at - 1) * SECOND)
        if not before:
            recorder.thumbnail("camera", at * SECOND, str(at).encode())
    recorder.flush()
    kept = {m.start_ns // SECOND: m.thumbnail for m in listener.moments}
    assert all(picture == str(at).encode() for at, picture in kept.items())


def test_no_moment_spans_two_sources() -> None:
    """The other node's numbers go on as if they were the first one's."""
    listener = Listener()
    recorder = listener.recorder()
    for at in range(1, 5):
        step(recorder, at, 3)
        recorder.step("rear", "query", at * SECOND, 1, MEANINGS[0])
    recorder.begin_anew("camera")
    for at in range(5, 9):
        step(recorder, at, 3)
        recorder.step("rear", "query", at * SECOND, 1, MEANINGS[0])
    recorder.flush()
    spans = [(m.camera, m.start_ns // SECOND, m.end_ns // SECOND) for m in listener.moments]
    assert sorted(spans) == [("camera", 1, 4), ("camera", 5, 8), ("rear", 1, 8)]


@given(st.integers(1, 20_000), st.data())
def test_a_shelf_stays_small_and_has_a_picture_near_every_middle(
    count: int, data: st.DataObject
) -> None:
    shelf = Shelf()
    for at in range(count):
        shelf.put(at, str(at).encode())
    assert len({p for level in shelf._levels for p in level}) <= DENSE * LEVELS
    start = data.draw(st.integers(0, count - 1))
    middle = (start + count - 1) / 2
    found = int(shelf.nearest(start, count - 1))
    assert abs(found - middle) <= max(1, (count - middle) / DENSE * 2)
