"""What is said of long streams, how often, how truly, how soon, and at what cost.

Section 5 of docs/results.md.

The protocol is that of the paper's section on selective decoding: every annotation is scored by
CIDEr against the decode that stands for its time. Here an annotation is a true event, its time
the middle of the event, and its references are all wordings of it. A decode stands for the time
nearest to it (uniform) or for its segment. Because a robot has no use for words that come late,
the live score is given beside: at every step what was said last, against what is true.

Invariant: nothing here was used to calibrate; the embeddings are those of the perceiver, gate
included, and its changes are those that the robot would have spoken at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings import offline
from vljepa_ros.stamps import SECOND_NS
from vljepa_ros.tabletop import store
from vljepa_ros.tabletop.episode import Episode

from .. import selection
from ..baselines import Habits
from ..clips import Name, name_of, wordings
from ..figures import bootstrap
from ..figures.boundaries import Matched, f1, match
from ..figures.cider import Cider
from ..selection import Decode, Way
from .captions import decode

UNIFORM_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # steps from one decode to the next
THRESHOLDS = {
    "cosine": np.geomspace(0.02, 1.0, 12),
    "variance": np.geomspace(0.02, 0.6, 12),
    "ward": np.geomspace(0.4, 4.0, 12),
}
FACTORS = np.geomspace(0.25, 4.0, 17)  # of the detector's calibrated threshold; 1 is among them


@dataclass(frozen=True)
class PerceivedStream:
    """One stream as perceived: stamps `[S]` in s, embeddings `[S, E]`, and the truth.

    `spoken_at`: stamps of the perceiver's changes. `marks` `[A]`: the annotations' times, of the
    events `names`; `bounds`: where events begin; `true` `[S]`: the event of each step.
    """

    stamps: np.ndarray
    embeddings: np.ndarray
    reused: np.ndarray
    spoken_at: tuple[float, ...]
    marks: np.ndarray
    names: tuple[Name, ...]
    bounds: tuple[float, ...]
    true: tuple[Name, ...]
    overhead: float  # s of a step in gate and detector

    @property
    def minutes(self) -> float:
        """From the first step to the last."""
        return float(self.stamps[-1] - self.stamps[0]) / 60


def perceive(model: Runtime, episode: Episode) -> PerceivedStream:
    """Run an episode through the perceiver, as the node runs a camera."""
    perceiver = Perceiver(model, ["camera"], Settings())

    def damaged(_: offline.RecordedFrame, reason: str) -> None:
        raise ValueError(reason)

    stamps_ns = episode.stamps * 1e9
    frames = (
        offline.RecordedFrame("camera", stamp_ns, "", stamp_ns, partial(episode.frame, number))
        for number, stamp_ns in enumerate((SECOND_NS + np.rint(stamps_ns).astype(int)).tolist())
    )
    steps = [one for _, _, of in offline.perceive(frames, perceiver, damaged) for one in of]
    stamps = np.array([offline.seconds(step.stamp_ns) for step in steps])
    spent = perceiver.stages.percentiles()
    objects = episode.object_names
    marks, names = [], []
    for event in episode.events:
        mark = (event.start + event.end) / 2 + store.NAMED_AFTER
        if stamps[0] <= mark <= stamps[-1]:
            marks.append(mark)
            names.append(name_of(event, objects))
    return PerceivedStream(
        stamps,
        np.stack([step.embedding for step in steps]),
        np.array([step.encoded == 0 for step in steps]),
        tuple(float(t) for t, step in zip(stamps, steps, strict=True) if step.change is not None),
        np.array(marks),
        tuple(names),
        tuple(event.start for event in episode.events if event.start > stamps[0]),
        tuple(name_of(store.current_event(episode, float(t)), objects) for t in stamps),
        spent["window"][0] + spent["detect"][0],
    )


@dataclass(frozen=True)
class Scored:
    """What one way of selecting said of one stream.

    `scores` `[A]`: CIDEr-D of each annotation; `live` `[S]`: of each step.
    """

    decodes: int
    scores: np.ndarray
    live: np.ndarray
    found: Matched


def judge(
    stream: PerceivedStream, decodes: Sequence[Decode], texts: Sequence[str], cider: Cider
) -> Scored:
    """Score the decodes of a stream, with their texts, in the order of time."""
    starts = np.array([one.start for one in decodes])
    at = np.array([one.at for one in decodes])

    def score(times: np.ndarray, since: np.ndarray, names: Sequence[Name]) -> np.ndarray:
        current = np.maximum(0, np.searchsorted(since, times + 1e-6) - 1)
        return np.array([
            cider.score(texts[i], wordings(name)) for i, name in zip(current, names, strict=True)
        ])  # fmt: skip

    live = score(stream.stamps, at, stream.true)
    live[stream.stamps < at[0] - 1e-6] = 0.0  # nothing was said yet
    opened = [(one.at, one.start) for one in decodes[1:]]
    return Scored(len(decodes), score(stream.marks, starts, stream.names), live,
                match(opened, stream.bounds))  # fmt: skip


def point(streams: Sequence[PerceivedStream], said: Sequence[Scored]) -> dict[str, float]:
    """One point of a curve: decodes a minute, CIDEr-D, live CIDEr-D and boundary F1."""
    return {
        "decodes_per_minute": sum(s.decodes for s in said) / sum(s.minutes for s in streams),
        "cider": float(np.concatenate([s.scores for s in said]).mean()),
        "live_cider": float(np.concatenate([s.live for s in said]).mean()),
        "boundary_f1": f1([s.found for s in said]),
    }


def figures(streams: Sequence[PerceivedStream], said: Sequence[Scored]) -> dict[str, Any]:
    """The figures of `point` with intervals, and precision, recall, delay and false alarms."""
    minutes = np.array([s.minutes for s in streams])
    hits, fired, true = (
        np.array([getattr(s.found, name) for s in said]) for name in ("hits", "fired", "true")
    )
    number = np.arange(len(said))
    delays = [(i, delay) for i, s in enumerate(said) for delay in s.found.delays]
    result: dict[str, Any] = {
        "decodes_per_minute": bootstrap.ratio([s.decodes for s in said], minutes),
        "cider": bootstrap.mean(
            np.concatenate([s.scores for s in said]),
            np.repeat(number, [len(s.scores) for s in said]),
        ),
        "live_cider": bootstrap.mean(
            np.concatenate([s.live for s in said]), np.repeat(number, [len(s.live) for s in said])
        ),
        "boundary_f1": bootstrap.ratio(2 * hits, fired + true),
        "boundary_precision": bootstrap.ratio(hits, fired),
        "boundary_recall": bootstrap.ratio(hits, true),
        "false_alarms_per_minute": bootstrap.ratio(fired - hits, minutes),
    }
    if delays:
        episodes, seconds = zip(*delays)
        result["delay"] = bootstrap.median(seconds, episodes)
    return result


class Trials:
    """The streams and the decoder, to try ways of selecting on; texts are decoded once."""

    def __init__(self, model: Runtime, streams: Sequence[PerceivedStream]) -> None:
        self.model, self.streams = model, streams
        self.cider = Cider([wordings(name) for stream in streams for name in stream.names])
        self._texts: dict[bytes, str] = {}

    def say(self, way: Way) -> list[Scored]:
        """What a way of selecting says of each stream."""
        chosen = [way(stream.stamps, stream.embeddings) for stream in self.streams]
        keys = [one.embedding.astype(np.float32) for decodes in chosen for one in decodes]
        new = list(
            {key.tobytes(): key for key in keys if key.tobytes() not in self._texts}.values()
        )
        if new:
            unit = np.stack(new) / np.linalg.norm(np.stack(new), axis=1, keepdims=True)
            texts = decode(self.model, unit.astype(np.float32))
            self._texts.update((key.tobytes(), text) for key, text in zip(new, texts, strict=True))
        return [
            judge(
                stream,
                decodes,
                [self._texts[one.embedding.astype(np.float32).tobytes()] for one in decodes],
                self.cider,
            )
            for stream, decodes in zip(self.streams, chosen, strict=True)
        ]

    def constant(self, text: str) -> list[Scored]:
        """One sentence for everything, never decoded."""
        nothing = Decode(-1.0, -1.0, np.zeros(0))
        return [judge(stream, [nothing], [text], self.cider) for stream in self.streams]


def long_streams(
    model: Runtime,
    paths: Sequence[Path],
    habits: Habits,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything about the streams in `paths`."""
    streams = []
    for path in paths:
        streams.append(perceive(model, store.load_episode(path)))
        progress(f"stream {len(streams)} of {len(paths)} perceived")
    cost = compute(model, streams)  # while the run times of single clips are those kept
    bench, change = Trials(model, streams), model.bundle.change
    parts = (change.candidate, change.min_segment, change.hysteresis)
    threshold = model.bundle.thresholds.change

    def curve(make: Callable[[Any], Way], values: Iterable[Any]) -> list[dict[str, float]]:
        return [
            {"parameter": float(v), **point(streams, bench.say(make(v)))} for v in values
        ]  # fmt: skip

    curves = {
        "uniform": curve(selection.uniform, UNIFORM_STEPS),
        "uniform_pooled": curve(selection.pooled, UNIFORM_STEPS),
        "cosine": curve(selection.cosine, THRESHOLDS["cosine"]),
        "variance": curve(selection.variance, THRESHOLDS["variance"]),
        "ward_offline": curve(selection.ward, THRESHOLDS["ward"]),
        "detector": curve(lambda t: selection.causal(t, *parts), threshold * FACTORS),
    }
    progress("curves drawn")
    second = round(model.bundle.clip.sample_rate)  # steps
    spoken = bench.say(selection.causal(threshold, *parts))
    at_1_hz = bench.say(selection.uniform(second))
    rate = point(streams, spoken)["decodes_per_minute"]
    as_often = bench.say(selection.uniform(max(1, round(60 * second / rate))))
    usual = wordings(habits.name)[0]
    return {
        "streams": len(streams),
        "minutes": sum(stream.minutes for stream in streams),
        "annotations_per_minute": sum(len(s.names) for s in streams)
        / sum(s.minutes for s in streams),
        "boundaries_per_minute": sum(len(s.bounds) for s in streams)
        / sum(s.minutes for s in streams),
        "perceiver_decodes": sum(len(stream.spoken_at) for stream in streams),
        "detector": figures(streams, spoken),
        "uniform_1_hz": figures(streams, at_1_hz),
        "uniform_as_often": figures(streams, as_often),
        "most_frequent": {"text": usual, **point(streams, bench.constant(usual))},
        "fewer_decodes": fewer(streams, spoken, at_1_hz, curves["detector"]),
        "curves": curves,
        "compute": cost(rate),
    }


def fewer(
    streams: Sequence[PerceivedStream],
    spoken: Sequence[Scored],
    at_1_hz: Sequence[Scored],
    curve: Sequence[dict[str, float]],
) -> dict[str, Any]:
    """How many times fewer decodes than at 1 Hz: as calibrated, and at the best of the sweep.

    `best_at_equal_cider` is the point of the detector's curve with the fewest decodes whose CIDEr
    is no lower than that of uniform decoding at 1 Hz; None where there is none.
    """
    reference = point(streams, at_1_hz)
    differences = [a.scores - b.scores for a, b in zip(spoken, at_1_hz, strict=True)]
    live = [a.live - b.live for a, b in zip(spoken, at_1_hz, strict=True)]

    def paired(parts: Sequence[np.ndarray]) -> bootstrap.Figure:
        number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return bootstrap.mean(np.concatenate(parts), number)

    def best(measure: str) -> dict[str, float] | None:
        good = [one for one in curve if one[measure] >= reference[measure]]
        if not good:
            return None
        chosen = min(good, key=lambda one: one["decodes_per_minute"])
        times = reference["decodes_per_minute"] / chosen["decodes_per_minute"]
        return {"times_fewer": times, **chosen}

    return {
        "times_fewer": bootstrap.ratio([s.decodes for s in at_1_hz], [s.decodes for s in spoken]),
        "cider_difference": paired(differences),
        "live_cider_difference": paired(live),
        "best_at_equal_cider": best("cider"),
        "best_at_equal_live_cider": best("live_cider"),
    }


def compute(
    model: Runtime, streams: Sequence[PerceivedStream]
) -> Callable[[float], dict[str, Any]]:
    """Measured run times, and from them the processor time that each second of a stream costs.

    Returns a function of the detector's decodes per minute.
    """
    encoder, predictor = model.latency("x_encoder"), model.latency("predictor")
    assert encoder is not None and predictor is not None  # the streams were perceived
    for embedding in streams[0].embeddings[:: max(1, len(streams[0].embeddings) // 50)]:
        model.decode(embedding)
    decoder = model.latency("y_decoder")
    assert decoder is not None
    encode, words = encoder[0] + predictor[0], decoder[0]
    steps = sum(len(s.stamps) for s in streams)
    encoded = 1 - float(np.concatenate([s.reused for s in streams]).mean())
    seconds = 60 * sum(s.minutes for s in streams)
    overhead = float(np.median([s.overhead for s in streams]))

    def cost(decodes_per_minute: float) -> dict[str, Any]:
        per_second = steps / seconds
        ways = {
            "encode and decode every step": per_second * (encode + words),
            "encode every step, decode at 1 Hz": per_second * encode + words,
            "gate, encode what is new, decode on change": (
                per_second * (overhead + encoded * encode) + decodes_per_minute / 60 * words
            ),
            "encode and decode at 1 Hz": encode + words,
        }
        return {
            "milliseconds": {
                "x_encoder": 1e3 * encoder[0],
                "predictor": 1e3 * predictor[0],
                "y_decoder": 1e3 * words,
                "gate_and_detector": 1e3 * overhead,
            },
            "encodes_skipped": 1 - encoded,
            "milliseconds_per_second": {way: 1e3 * used for way, used in ways.items()},
        }

    return cost
