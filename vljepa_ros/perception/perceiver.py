"""The perceiver: windows, gates and change detectors of every camera, joined to one model.

Invariant: the steps of a camera depend on the stamps and pictures it was given, on the settings
and on the model; not on other cameras, not on when anything arrived.

Threads: one worker calls `take` and `step`. `due` may be called from another thread (the image
callback's), and so may `configure` and everything that only reads.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vljepa_ros.bundle.spec import UNKNOWN
from vljepa_ros.errors import TensorsLostError
from vljepa_ros.inference.familiarity import load_familiarity, pool
from vljepa_ros.inference.preprocess import prepare
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.inference.tensors import Tensor

from .change import ChangeDetector
from .chunks import Chunks
from .gate import NoveltyGate, block_means
from .settings import Settings
from .stages import Stages
from .window import Clip, Sampler, Verdict, Window, millihertz, slot

log = logging.getLogger(__name__)
JUMPS = 8  # of the stamps, that are remembered


@dataclass(frozen=True)
class Change:
    """A segment closed and a new one opened, which means what the step's embedding says.

    Of the segment's steps so far the newest has seen most of it.
    """

    segment_id: int
    segment_start_ns: int
    previous_segment_id: int
    previous_segment_start_ns: int
    score: float


@dataclass(frozen=True)
class Step:
    """What one camera means now for one standing query.

    `stamp_ns` and `frame_id` are the newest frame's, `window_start_ns` the oldest's,
    `segment_start_ns` that at which the segment began. `embedding`: float32 `[E]`, unit length.
    `reused`: the gate found nothing new and the last embedding stands. A change needs a
    `change_score` of 1.0, and `change` says what changed. `encoded`: chunks that were encoded for
    the camera's step; where there were none, and the clip is made up otherwise than the last one of
    what was encoded before, the embedding is new. `familiarity`: 0..1, how much the clip is
    like what the bundle was made for; -1: it cannot tell.
    """

    camera: str
    query: str
    stamp_ns: int
    frame_id: str
    window_start_ns: int
    embedding: np.ndarray
    sequence: int
    segment_id: int
    segment_start_ns: int
    change_score: float
    reused: bool
    change: Change | None
    encoded: int
    familiarity: float


@dataclass(frozen=True)
class Seen:
    """The visual tokens, float32 `[N, Dv]`, that stand for a camera's newest clip.

    They are where the model's backend has them; `np.asarray` copies them to the host.
    `familiarity`: as in `Step`.
    """

    tokens: Tensor
    stamp_ns: int
    frame_id: str
    familiarity: float


@dataclass
class Counters:
    """What happened to a camera's frames and steps since the start."""

    frames: int = 0  # offered to `due`
    due: int = 0  # found due
    late: int = 0  # late, duplicate
    invalid: int = 0  # with a stamp of zero
    taken: int = 0  # put into the window
    encodes: int = 0  # steps for which something was encoded
    reused: int = 0  # steps for which nothing was: what the gate passed over, or was encoded before
    chunks: int = 0  # encoded; where the model takes whole clips, as many as `encodes`
    changes: int = 0
    restarts: int = 0  # of the stream: time jumped back, or a gap
    errors: int = 0  # steps dropped because an embedding was not finite


@dataclass
class _Stream:
    """One camera's answer to one standing query."""

    detector: ChangeDetector
    sequence: int = 0
    embedding: np.ndarray | None = None  # the last one; None: to be predicted again
    failing: bool = False

    def restart(self) -> None:
        """Forget what was seen; the sequence and the segment ids go on."""
        self.detector.restart()
        self.embedding = None


@dataclass
class _Camera:
    sampler: Sampler  # of the thread that calls `due`
    window: Window
    chunks: Chunks
    rate_mhz: int
    counters: Counters = field(default_factory=Counters)
    streams: dict[str, _Stream] = field(default_factory=dict)
    frame_id: str = ""
    stepped: int | None = None  # stamp of the last step
    familiarity: float = UNKNOWN  # of what is seen
    seen: Seen | None = None
    latest: Step | None = None  # of the first standing query
    newest_ns: int = 0  # stamp of the last frame taken
    shape: tuple[int, ...] = ()  # of its image
    jumps_ns: deque[int] = field(default_factory=lambda: deque(maxlen=JUMPS))


class Perceiver:
    """Turns the frames of N cameras into steps of the semantic stream.

    For each frame: `due`, then, if the verdict is due, `take` (`refuse` where it cannot be
    decoded), then, for all cameras whose `take` returned true, one `step`. Raises SettingsError
    where the settings are out of range, BundleError where the bundle's familiarity is damaged.
    """

    def __init__(self, model: Runtime, cameras: Sequence[str], settings: Settings) -> None:
        settings.check()
        self.model = model
        self.bundle = model.bundle
        self.settings = settings
        self.stages = Stages()
        self._familiarity = load_familiarity(self.bundle)
        clip = self.bundle.clip
        self._cameras = {
            name: _Camera(
                Sampler(1, clip.span_ns, 1), Window(clip, 1), Chunks(NoveltyGate(0, 0)), 1
            )
            for name in cameras
        }
        self._apply(settings)

    @property
    def cameras(self) -> list[str]:
        """The names of the cameras."""
        return list(self._cameras)

    def counters(self, camera: str) -> Counters:
        """The camera's counters, live."""
        return self._cameras[camera].counters

    def noise(self, camera: str) -> float | None:
        """What the camera's gate has learnt, grey levels: the median block's; None before that."""
        level = self._cameras[camera].chunks.gate.noise.level
        return None if level is None else float(np.median(level))

    def gate_threshold(self, camera: str) -> float:
        """Grey levels from which the camera's median block is new now, by what its gate learnt."""
        return self._cameras[camera].chunks.gate.median_threshold

    def seen(self, camera: str) -> Seen | None:
        """The visual tokens of the camera's last step; None before the stream's first."""
        return self._cameras[camera].seen

    def jumps(self, camera: str) -> list[float]:
        """How far the stamps jumped at the last restarts, seconds; of those since the last step.

        A stream in which they only grow in number never fills a clip.
        """
        return [jump / 1e9 for jump in list(self._cameras[camera].jumps_ns)]

    def latest(self, camera: str) -> Step | None:
        """The camera's last step for the first standing query; None before the stream's first."""
        return self._cameras[camera].latest

    def configure(self, settings: Settings) -> None:
        """Change the settings from the next frame on. SettingsError where one is out of range.

        A new query opens its own segment and sequence; one that comes back goes on counting in a
        new segment. Streams of queries that stay are not disturbed.
        """
        settings.check()
        settings.queries_of(self.bundle)
        self.settings = settings

    def due(self, camera: str, stamp_ns: int) -> Verdict:
        """Whether a frame with this stamp is to be taken; costs about a microsecond."""
        state = self._cameras[camera]
        verdict = state.sampler.offer(stamp_ns)
        counters = state.counters
        counters.frames += 1
        if verdict.due:
            counters.due += 1
        elif verdict is Verdict.INVALID:
            counters.invalid += 1
        elif verdict is not Verdict.EARLY:
            counters.late += 1
        return verdict

    def refuse(self, camera: str, stamp_ns: int) -> None:
        """A frame that was due cannot be taken, being bad: the next good one takes its slot."""
        self._cameras[camera].sampler.refuse(stamp_ns)

    def take(self, camera: str, stamp_ns: int, frame_id: str, image: np.ndarray) -> bool:
        """Put a due frame, RGB uint8 `[H, W, 3]`, into the camera's window.

        Returns whether the camera is due for a step, which is then to be taken with `step` before
        the camera's next frame.
        """
        self._catch_up()
        state = self._cameras[camera]
        started = time.monotonic()
        picture = prepare(
            image, self.bundle.clip.image_size, self.bundle.resample, self.bundle.resize
        )
        started = self.stages.lap("resize", started)
        means = block_means(picture)
        verdict = state.window.push(stamp_ns, picture, means)
        if not verdict.due:
            return False
        state.counters.taken += 1
        state.frame_id = frame_id
        if verdict is Verdict.RESTARTED:
            state.jumps_ns.append(stamp_ns - state.newest_ns)
            self._restart(state)
        noise = state.chunks.gate.noise
        if image.shape != state.shape:  # another camera, or another mode of it
            noise.forget()
        noise.feed(stamp_ns, means)
        self.stages.lap("window", started)
        state.newest_ns, state.shape = stamp_ns, image.shape
        if not state.window.full:
            return False
        rate = state.rate_mhz
        if state.stepped is not None and slot(stamp_ns, rate) <= slot(state.stepped, rate):
            return False
        state.stepped = stamp_ns
        state.jumps_ns.clear()
        return True

    def step(self, cameras: Sequence[str]) -> list[Step]:
        """The steps of cameras that are due: one for each camera and standing query, in order.

        The chunks that are new are encoded in one run, and clips that are made up otherwise than
        the last ones predicted in one. A step whose embedding is not finite is dropped, counted and
        logged. EngineError where an engine fails; the next step then tries again. Where a device
        fails, the model goes on with the next backend, and so does the step.
        """
        queries = self._settings.queries_of(self.bundle)
        clips = {name: self._cameras[name].window.clip() for name in cameras}
        fresh, encoded = self._encode_and_predict(clips, queries)
        started = time.monotonic()
        steps = [
            self._advance(name, query, clips[name], (name, query) not in fresh, encoded[name])
            for name in cameras
            for query in queries
        ]
        self.stages.lap("detect", started)
        found = [step for step in steps if step is not None]
        for step in self.first(found):
            self._cameras[step.camera].latest = step
        return found

    def forget_tokens(self) -> None:
        """The visual tokens are gone: have the next clip of each camera encoded."""
        for state in self._cameras.values():
            state.chunks.forget()
            state.seen = None

    def replace_model(self, model: Runtime) -> None:
        """Go on with another model of the same bundle; called by the worker, between two steps.

        Windows, segments and sequences stay. What was encoded stays, too, on the host, so that
        questions can be answered at once; the next clip of each camera is encoded anew.
        """
        try:
            for state in self._cameras.values():
                state.chunks.forget()
                if state.seen is not None:
                    state.seen = replace(state.seen, tokens=np.asarray(state.seen.tokens))
        except TensorsLostError:
            self.forget_tokens()
        self.model = model

    def first(self, steps: Sequence[Step]) -> list[Step]:
        """Those of the steps that `step` returned last that answer the first standing query."""
        query = self._settings.queries_of(self.bundle)[0]
        return [step for step in steps if step.query == query]

    def _catch_up(self) -> None:
        """Apply settings that `configure` left, on the worker's thread."""
        settings = self.settings
        if settings is not self._settings:
            self._apply(settings)

    def _apply(self, settings: Settings) -> None:
        bundle = self.bundle
        queries = settings.queries_of(bundle)
        max_gap_ns = round(settings.max_gap * 1e9)
        for name, state in self._cameras.items():
            state.rate_mhz = millihertz(settings.rate_of(name, bundle))
            intake = max(state.rate_mhz, millihertz(bundle.clip.sample_rate))
            state.sampler.rate_mhz, state.sampler.max_gap_ns = intake, max_gap_ns
            state.window.configure(intake, max_gap_ns)
            gate = state.chunks.gate
            gate.learns = settings.gate_threshold is None
            gate.threshold = settings.value_of("gate_threshold", bundle)
            gate.max_age_ns = round(settings.gate_max_age * 1e9)
            for query in queries:
                stream = state.streams.setdefault(query, _Stream(ChangeDetector(1, 1, 1, 1)))
                settings.set_detector(stream.detector, name, bundle)
            for query in state.streams.keys() - set(queries):
                state.streams[query].restart()
        self._settings = settings

    def _restart(self, state: _Camera) -> None:
        """Leave nothing of the stream so far, but for the ids, the sequences and the noise."""
        state.counters.restarts += 1
        state.chunks.forget()
        state.chunks.gate.noise.restart()
        state.stepped = state.seen = state.latest = None
        for stream in state.streams.values():
            stream.restart()

    def _encode_and_predict(
        self, clips: dict[str, Clip], queries: Sequence[str]
    ) -> tuple[set[tuple[str, str]], dict[str, int]]:
        """Encode and predict what is new.

        Returns those (camera, query) that were predicted, and the chunks encoded by camera.
        """
        while True:  # each time round the model has left a backend for the next one
            try:
                encoded = self._encode(clips)
                fresh = self._predict(list(clips), queries)
            except TensorsLostError:
                self.forget_tokens()
                continue
            for name, count in encoded.items():
                counters = self._cameras[name].counters
                counters.chunks += count
                counters.encodes += count > 0
                counters.reused += count == 0
            return fresh, encoded

    def _encode(self, clips: dict[str, Clip]) -> dict[str, int]:
        """Encode the chunks that are new, in one run; how many, by camera."""
        started = time.monotonic()
        chunks = {name: clip.chunks(self.bundle.clip.chunk) for name, clip in clips.items()}
        new = {name: self._cameras[name].chunks.unseen(its) for name, its in chunks.items()}
        started = self.stages.lap("gate", started)
        run = [(name, chunk) for name, its in new.items() for chunk in its]
        if run:
            try:
                encoded = self.model.encode_keeping([chunk.pictures for _, chunk in run])
            except BaseException:
                for name, _ in run:
                    self._cameras[name].chunks.forget()
                raise
            for (name, chunk), tokens in zip(run, encoded, strict=True):
                self._cameras[name].chunks.put(chunk, tokens)
            self.stages.lap("encode", started)
        for name, clip in clips.items():
            state = self._cameras[name]
            tokens, others = state.chunks.clip(chunks[name])
            if others:
                for stream in state.streams.values():
                    stream.embedding = None
                state.familiarity = self._familiar(tokens)
            state.seen = Seen(tokens, clip.end_ns, state.frame_id, state.familiarity)
        return {name: len(its) for name, its in new.items()}

    def _familiar(self, tokens: Tensor) -> float:
        """How familiar a clip is, by its visual tokens `[N, Dv]`."""
        if self._familiarity is None:
            return UNKNOWN
        started = time.monotonic()
        found = float(self._familiarity.of(pool(tokens)[None])[0])
        self.stages.lap("familiarity", started)
        return found

    def _predict(self, cameras: Sequence[str], queries: Sequence[str]) -> set[tuple[str, str]]:
        """Predict what has no embedding, in one run; returns those (camera, query)."""
        fresh = {
            (name, query)
            for name in cameras
            for query in queries
            if self._cameras[name].streams[query].embedding is None
        }
        behind = [name for name in cameras if any((name, query) in fresh for query in queries)]
        if behind:
            started = time.monotonic()
            seen = [self._cameras[name].seen for name in behind]
            tokens = [one.tokens for one in seen if one is not None]
            embeddings = self.model.predict(tokens, queries)
            for name, row in zip(behind, embeddings, strict=True):
                for query, embedding in zip(queries, row, strict=True):
                    if (name, query) in fresh:
                        self._cameras[name].streams[query].embedding = embedding
            self.stages.lap("predict", started)
        return fresh

    def _advance(
        self, name: str, query: str, clip: Clip, reused: bool, encoded: int
    ) -> Step | None:
        """One step of one stream; None where its embedding is not finite."""
        state = self._cameras[name]
        stream = state.streams[query]
        embedding = stream.embedding
        assert embedding is not None  # `_predict` ran
        if not np.isfinite(embedding).all():
            self._refuse(name, query)
            return None
        stream.failing = False
        found = stream.detector.update(clip.end_ns, embedding)
        change = None
        if found.changed:
            state.counters.changes += 1
            change = Change(
                found.segment_id, found.segment_start_ns, found.previous_segment_id,
                found.previous_segment_start_ns, found.score,
            )  # fmt: skip
        stream.sequence += 1
        return Step(
            name, query, clip.end_ns, state.frame_id, clip.start_ns, embedding,
            stream.sequence, found.segment_id, found.segment_start_ns, found.score, reused, change,
            encoded,
            state.familiarity,
        )  # fmt: skip

    def _refuse(self, name: str, query: str) -> None:
        """Drop a step whose embedding is not finite; the next one is predicted anew."""
        state = self._cameras[name]
        stream = state.streams[query]
        stream.embedding = None
        if state.seen is None or not np.isfinite(np.asarray(state.seen.tokens)).all():
            state.chunks.forget()
        state.counters.errors += 1
        if not stream.failing:  # once, until it is well again
            log.error(
                "Camera '%s', query '%s': the embedding holds values that are not finite; the "
                "step is dropped. Verify the bundle %s, or try another backend.",
                name, query, self.bundle.path,
            )  # fmt: skip
        stream.failing = True
