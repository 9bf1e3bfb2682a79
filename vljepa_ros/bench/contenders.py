"""One contender of `vljepa bench engines`, in a process of its own, so that its memory is its own.

Usage: one JSON object as the only argument (see `main`). Says on stdout, a line of JSON each: how
far a build has come, then what it is, then the durations that each line on stdin asks for.

Invariant: every contender is given the same arrays, and does what a step of the node does with
them: frames come as a list of uint8 pictures of which one is new at each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.bundle.graphs import QUERY
from vljepa_ros.bundle.spec import PARTS, Bundle, load_bundle
from vljepa_ros.errors import EngineError, VLJepaError
from vljepa_ros.inference.backends import open_engine
from vljepa_ros.inference.engine import Engine
from vljepa_ros.inference.tensors import Joined
from vljepa_ros.inference.text import TextTokenizer

from .contender import ANEW, STEP, Clips, Contender
from .machine import memory_of

WARM = 2  # untimed steps before each burst: another contender has had the caches in between
PICTURES = 16  # that a camera's stream goes round


class EngineContender:
    """The engines of a bundle through one backend in one precision."""

    def __init__(
        self, bundle: Bundle, backend: str, precision: str, threads: int,
        report: Callable[[str, float], None],
    ) -> None:  # fmt: skip
        self.parts: dict[str, str] = {}
        self.notes: list[str] = []
        self._engines: dict[str, Engine] = {}
        self._unasked = bundle.query is None
        for name in PARTS:
            if name not in bundle.graphs:
                continue
            try:
                engine = open_engine(bundle.graphs[name], backend, threads, precision, report)
            except EngineError as error:
                self.notes.append(str(error))
                continue
            self._engines[name] = engine
            self.parts[name] = f"{engine.precision}, {engine.device}"
        if not self._engines:
            raise EngineError(self.notes[0])

    @property
    def most(self) -> dict[str, int]:
        """The largest batch of clips and number of queries that a step takes, where bounded."""
        engines = (self._engines.get("x_encoder"), self._engines.get("predictor"))
        bounds = [engine.most for engine in engines if engine is not None]
        if self._unasked:
            bounds.append({"Q": 1})
        return {k: min(b[k] for b in bounds if k in b) for k in {k for b in bounds for k in b}}

    def encode(self, clips: Clips) -> Any:
        return self._engines["x_encoder"].run_keeping(frames=clips)["visual_tokens"]

    def fetch(self, tokens: Any) -> np.ndarray:
        return np.asarray(tokens)

    def predict(self, tokens: Any, *query: np.ndarray) -> np.ndarray:
        rows = tokens if isinstance(tokens, list) else rows_of(tokens)
        asked = dict(zip(QUERY, query))
        return self._engines["predictor"].run(visual_tokens=rows, **asked)["embedding"]

    def embed_text(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self._engines["y_encoder"].run(ids=ids, mask=mask)["embedding"]

    def decode(self, embedding: np.ndarray, ids: np.ndarray, past: np.ndarray) -> np.ndarray:
        return self._engines["y_decoder"].run(embedding=embedding, ids=ids, past=past)["logits"]

    def close(self) -> None:
        """Release the engines."""
        for engine in self._engines.values():
            engine.close()


def rows_of(tokens: Any) -> list[Any]:
    """What `encode` returned, chunk by chunk."""
    return [tokens[row] for row in range(len(tokens))]


class Stream:
    """Cameras whose clips grow by one new picture a step, uint8 `[S, S, 3]`, of noise."""

    def __init__(self, bundle: Bundle, cameras: int) -> None:
        size, self._frames = bundle.clip.image_size, bundle.clip.frames
        random = np.random.default_rng(0)
        shape = (PICTURES, size, size, 3)
        self._pictures = [random.integers(0, 256, shape, np.uint8) for _ in range(cameras)]
        self._at = 0
        self._clips: Clips = [[] for _ in range(cameras)]
        for _ in range(self._frames):
            self.advance()

    def advance(self) -> Clips:
        """The next clip of every camera."""
        self._clips = [
            [*clip[-self._frames + 1 :], pictures[self._at % PICTURES].copy()]
            for clip, pictures in zip(self._clips, self._pictures)
        ]
        self._at += 1
        return self._clips


class Bench:
    """A contender and what it is given. Raises VLJepaError where it fails."""

    def __init__(self, contender: Contender, bundle: Bundle) -> None:
        self._contender = contender
        self._bundle = bundle
        self._query: tuple[np.ndarray, ...] = ()
        if bundle.query is not None:
            tokenizer = TextTokenizer(bundle.query.tokenizer, bundle.query.length)
            ids, mask = tokenizer([bundle.query.default])
            if isinstance(bundle.graphs["predictor"].inputs["query_ids"].shape[1], str):
                words = int(mask.sum())  # what comes after is padding, which `VLJepa` cuts, too
                ids, mask = ids[:, :words], mask[:, :words]
            self._query = ids, mask
        texts = TextTokenizer(bundle.y_encoder.tokenizer, bundle.y_encoder.length)
        self._text = texts([bundle.y_encoder.prompt.replace("{}", "a cube falls")])
        self._streams: dict[int, Stream] = {}
        self._kept: dict[int, deque[list[Any]]] = {}  # chunks' tokens of each camera, oldest first

    def tasks(self) -> list[str]:
        """What can be timed."""
        parts = list(self._contender.parts)
        if not {"x_encoder", "predictor"} <= set(parts):
            return parts
        return [*parts, STEP] if self._bundle.clip.chunks == 1 else [*parts, STEP, ANEW]

    def _encode(self, clips: Clips) -> Any:
        """The tokens of the newest chunk of each clip: of the whole clip where it is one."""
        return self._contender.encode([clip[-self._bundle.clip.chunk :] for clip in clips])

    def _encode_anew(self, clips: Clips) -> Any:
        """The tokens of each clip, every chunk of it encoded."""
        spec = self._bundle.clip
        if spec.chunks == 1:
            return self._contender.encode(clips)
        starts = range(0, spec.frames, spec.chunk)
        chunks = [clip[k : k + spec.chunk] for clip in clips for k in starts]
        most = getattr(self._contender, "most", {}).get("B", len(chunks))
        rows = [
            row
            for first in range(0, len(chunks), most)
            for row in rows_of(self._contender.encode(chunks[first : first + most]))
        ]
        return [Joined(rows[k : k + spec.chunks]) for k in range(0, len(rows), spec.chunks)]

    def _step(self, clips: Clips, query: Sequence[np.ndarray]) -> np.ndarray:
        """What a step of a running stream does: the other chunks were encoded before."""
        if self._bundle.clip.chunks == 1:
            return self._contender.predict(self._encode(clips), *query)
        kept = self._kept.get(len(clips))
        if kept is None:
            anew = self._encode_anew(clips)
            chunks = zip(*(joined.parts for joined in anew), strict=True)
            kept = self._kept[len(clips)] = deque(map(list, chunks), self._bundle.clip.chunks)
        kept.append(rows_of(self._encode(clips)))
        tokens = [Joined(parts) for parts in zip(*kept, strict=True)]
        return self._contender.predict(tokens, *query)

    def answers(self) -> dict[str, np.ndarray]:
        """What each part gives, by the name of the task, for the same inputs each time."""
        contender, found = self._contender, dict[str, np.ndarray]()
        for task in self.tasks():
            if task == "x_encoder":
                found[task] = contender.fetch(self._encode(Stream(self._bundle, 1).advance()))
            elif task in (STEP, ANEW):
                tokens = self._encode_anew(Stream(self._bundle, 1).advance())
                found[task] = contender.predict(tokens, *self._query)
            else:
                found[task] = self._part(task)
        return found

    def time(self, task: str, cameras: int, queries: int, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after a few that are not counted."""
        query = [np.repeat(array, queries, axis=0) for array in self._query]
        stream = self._streams.setdefault(cameras, Stream(self._bundle, cameras))
        contender, durations = self._contender, list[float]()
        tokens = self._encode_anew(stream.advance()) if task == "predictor" else None
        for step in range(WARM + steps):
            clips = stream.advance()
            began = time.monotonic()
            if task == "x_encoder":
                contender.fetch(self._encode(clips))
            elif task == STEP:
                self._step(clips, query)
            elif task == ANEW:
                contender.predict(self._encode_anew(clips), *query)
            elif task == "predictor":
                contender.predict(tokens, *query)
            else:
                self._part(task)
            if step >= WARM:
                durations.append(time.monotonic() - began)
        return durations

    def _part(self, name: str) -> np.ndarray:
        """One run of a part that takes no clips, or of the predictor on tokens of noise."""
        if name == "y_encoder":
            return self._contender.embed_text(*self._text)
        random, spec = np.random.default_rng(1), self._bundle.decoder
        if name == "predictor":
            shape = self._bundle.graphs[name].inputs["visual_tokens"].shape
            size = [1 if isinstance(n, str) else n for n in shape]
            tokens = random.standard_normal(size, np.float32)
            return self._contender.predict(tokens, *self._query)
        assert spec is not None  # else the bundle has no y_decoder to run
        embedding = random.standard_normal((1, self._bundle.embedding_dim), np.float32)
        embedding /= np.linalg.norm(embedding)
        # The cache of a text that is half written.
        size = [2 * spec.layers, 1, spec.heads, spec.length // 2, spec.head_dim]
        past = random.standard_normal(size, np.float32)
        return self._contender.decode(embedding, np.array([[spec.begin]]), past)


def cosines(answers: dict[str, np.ndarray], file: Path) -> dict[str, float]:
    """The least cosine of each answer's rows to those in `file`, an .npz."""
    found = {}
    with np.load(file) as wanted:
        for task in answers.keys() & set(wanted.files):
            a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in
                    (answers[task], wanted[task]))  # fmt: skip
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            found[task] = float(((a * b).sum(1) / norms).min())
    return found


def main() -> None:
    """Answer on stdout until stdin ends.

    The argument: `bundle` a folder; `kind` engines, torch, compile or saccadic; `backend` and
    `precision` of engines, `threads`; `answers` an .npz of what the base graphs answer.
    """
    asked = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr

    def say(what: Any) -> None:
        answers.write(json.dumps(what) + "\n")

    def report(phase: str, done: float) -> None:
        say({"building": phase, "done": done})

    bundle = load_bundle(asked["bundle"])
    try:
        contender, before = _open(asked, bundle, report)
        bench = Bench(contender, bundle)
        found = bench.answers()
    except VLJepaError as error:
        say({"refused": str(error)})
        return
    after = memory_of(os.getpid())
    say({
        "parts": contender.parts, "tasks": bench.tasks(), "notes": contender.notes,
        "most": getattr(contender, "most", {}), "cosine": cosines(found, Path(asked["answers"])),
        "resident_mb": after, "own_mb": after - before,
    })  # fmt: skip
    for line in sys.stdin:
        try:
            say(bench.time(**json.loads(line)))
        except VLJepaError as error:
            say({"refused": str(error)})


def _open(
    asked: dict[str, Any], bundle: Bundle, report: Callable[[str, float], None]
) -> tuple[Contender, float]:
    """The contender, and this process's memory before it was opened, in MB."""
    if asked["kind"] == "engines":
        if asked["backend"].startswith("onnxruntime"):
            import onnxruntime  # noqa: F401  # the library is no part of a bundle's memory
        before = memory_of(os.getpid())
        return (
            EngineContender(bundle, asked["backend"], asked["precision"], asked["threads"], report),
            before,
        )
    from . import torch_contender

    before = memory_of(os.getpid())
    return torch_contender.open_contender(asked["kind"], bundle, asked["threads"]), before


if __name__ == "__main__":
    main()
