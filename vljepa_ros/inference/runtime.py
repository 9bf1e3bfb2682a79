"""VL-JEPA as its users see it: clips, questions and embeddings instead of tensors.

Invariant: every embedding that leaves this module is float32, of unit length unless the graph
gave none, and belongs to the space of the one bundle that the object was made from, whatever
backend ran it: where a device fails, its engines are opened again on the next backend.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from vljepa_ros.bundle.graphs import QUERY
from vljepa_ros.bundle.spec import NO_QUERY, Bundle
from vljepa_ros.errors import DeviceError, EngineError, TensorsLostError

from .backends import open_engine
from .engine import Engine
from .tensors import Input, Tensor, parts_of
from .text import TextTokenizer

log = logging.getLogger(__name__)

Clips: TypeAlias = "np.ndarray | Sequence[Sequence[np.ndarray]]"
PartReport: TypeAlias = Callable[[str, str, float], None]
T = TypeVar("T")

TEXT_CACHE = 1024  # texts
TEXT_BATCH = 32  # texts per run of the Y-encoder
TEXT_PIECE = 4  # the same where a stream waits: on a CPU a text costs as much, in whatever batch
TIMINGS = 500  # runs


@dataclass(frozen=True)
class EngineInfo:
    """What runs one graph."""

    name: str
    backend: str
    precision: str
    device: str


class Runtime:
    """The engines of one bundle.

    One thread at a time: the owner serialises calls. `parts` names the graphs to open, e.g. a
    decoder opens `("y_decoder", "y_encoder")`; `backend`, `threads`, `precision` and `build` are
    those of `open_engine`; `report` is told part, phase and progress (0..1) of a build. Raises
    BundleError or EngineError. `faults`: sentences about devices that failed while running.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        threads: int = 0,
        parts: Sequence[str] = ("x_encoder", "predictor", "y_encoder"),
        precision: str = "auto",
        build: bool = True,
        report: PartReport | None = None,
    ) -> None:
        self.bundle = bundle
        self.faults: list[str] = []
        self._threads = threads
        self._failed: list[str] = []  # backends
        self._engines: dict[str, Engine] = {}
        self._runs: dict[str, deque[float]] = {}
        for part in parts:
            if part not in bundle.graphs:
                raise EngineError(
                    f"The bundle {bundle.path} has no '{part}'; use a bundle that has one."
                )
            told = partial(report, part) if report is not None else None
            self._engines[part] = open_engine(
                bundle.graphs[part], backend, threads, precision, told, build=build
            )
            self._runs[part] = deque(maxlen=TIMINGS)
        if "predictor" in parts and bundle.query is not None:
            self._query_tokenizer = TextTokenizer(bundle.query.tokenizer, bundle.query.length)
        if "y_encoder" in parts:
            self._text_tokenizer = TextTokenizer(
                bundle.y_encoder.tokenizer, bundle.y_encoder.length
            )
        if "y_decoder" in parts and bundle.decoder is not None:
            self._decoder_tokenizer = TextTokenizer(bundle.decoder.tokenizer, bundle.decoder.length)
        self._texts: OrderedDict[str, np.ndarray] = OrderedDict()

    @property
    def info(self) -> list[EngineInfo]:
        """The engines that are open."""
        return [
            EngineInfo(e.name, e.backend, e.precision, e.device) for e in self._engines.values()
        ]

    def latency(self, part: str) -> tuple[float, float] | None:
        """p50 and p99 of the last 500 runs of one graph, in seconds; None before the first."""
        runs = list(self._runs[part])
        if not runs:
            return None
        p50, p99 = np.percentile(runs, (50, 99))
        return float(p50), float(p99)

    def encode(self, clips: Clips) -> np.ndarray:
        """Visual tokens, float32 `[B, N, Dv]`, of clips, uint8 `[B, T, S, S, 3]` RGB."""
        clip = self.bundle.clip
        if clip.chunks > 1:
            starts = range(0, clip.frames, clip.chunk)
            chunks: Clips = [one[k : k + clip.chunk] for one in clips for k in starts]
        else:
            chunks = clips
        tokens = np.stack([np.asarray(row) for row in self.encode_keeping(chunks)])
        return tokens.reshape(len(clips), -1, tokens.shape[-1])

    def encode_keeping(self, chunks: Clips) -> list[Tensor]:
        """The visual tokens of each chunk, float32 `[n, Dv]`, where the backend has them.

        A chunk is uint8 `[chunk, S, S, 3]`, or a sequence of frames, uint8 `[S, S, 3]`. A frame
        must not change after it was given: a backend may know it again by its identity.
        """
        rows: list[Tensor] = []
        for piece in self._pieces("x_encoder", "B", chunks):
            tokens = self._run_keeping("x_encoder", frames=piece)["visual_tokens"]
            rows += [tokens[row] for row in range(len(tokens))]
        return rows

    def predict(
        self, visual_tokens: np.ndarray | Sequence[Tensor], queries: Sequence[str]
    ) -> np.ndarray:
        """Embeddings, float32 `[B, Q, E]`: the answer to each query for each clip's tokens.

        A clip's are float32 `[N, Dv]`; of one that was encoded in chunks `Joined` makes them.
        A bundle without a query has one answer, to the one query "". Raises EngineError where it is
        asked another, TensorsLostError where the tokens went with the device that had them.
        """
        asked = self._tokenised(queries)  # some 20 µs, against milliseconds for the run
        rows = []
        for some in self._pieces("predictor", "B", visual_tokens):
            answers = [self._run("predictor", visual_tokens=some, **one) for one in asked]
            rows.append(np.concatenate([answer["embedding"] for answer in answers], axis=1))
        return np.concatenate(rows)

    def _tokenised(self, queries: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The predictor's inputs for queries, in as many runs as its engine wants."""
        if self.bundle.query is None:
            if list(queries) != [NO_QUERY]:
                raise EngineError(
                    f"The bundle {self.bundle.path} is asked nothing, and was given the queries "
                    f"{list(queries)}; leave them out."
                )
            return [{}]
        ids, mask = self._query_tokenizer(queries)
        if isinstance(self.bundle.graphs["predictor"].inputs["query_ids"].shape[1], str):
            longest = max(1, int(mask.sum(1).max(initial=1)))  # padding would cost as much as words
            ids, mask = ids[:, :longest], mask[:, :longest]
        pieces = (self._pieces("predictor", "Q", array) for array in (ids, mask))
        return [dict(zip(QUERY, pair, strict=True)) for pair in zip(*pieces, strict=True)]

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts in the shared space, float32 `[N, E]`; the last 1024 are kept."""
        pieces = self.embed_text_in_pieces(texts, TEXT_BATCH)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return np.asarray(end.value)

    def embed_text_in_pieces(
        self, texts: Sequence[str], batch: int = TEXT_PIECE
    ) -> Generator[None, None, np.ndarray]:
        """What `embed_text` returns, with a `yield` between two runs of the Y-encoder.

        So the owner can do other work in between, also with other texts. `batch`: texts per run.
        """
        batch = min(batch, self._engine("y_encoder").most.get("B", batch))
        found: dict[str, np.ndarray] = {}  # not the cache, which may hold fewer
        wanted = deque(dict.fromkeys(texts))
        while wanted:
            new: list[str] = []
            while wanted and len(new) < batch:
                text = wanted.popleft()
                if text in self._texts:
                    found[text] = self._texts[text]
                    self._texts.move_to_end(text)
                else:
                    new.append(text)
            if new:
                found.update(zip(new, self._encode_text(new), strict=True))
                if wanted:
                    yield
        dim = self.bundle.embedding_dim
        return np.stack([found[t] for t in texts]) if texts else np.zeros((0, dim), np.float32)

    def _encode_text(self, texts: list[str]) -> np.ndarray:
        """One run of the Y-encoder, `[N, E]`; into the cache, which lets the oldest go."""
        prompt = self.bundle.y_encoder.prompt
        ids, mask = self._text_tokenizer([prompt.replace("{}", t) for t in texts])
        embeddings = self._run("y_encoder", ids=ids, mask=mask)["embedding"]
        self._texts.update(zip(texts, embeddings, strict=True))
        while len(self._texts) > TEXT_CACHE:
            self._texts.popitem(last=False)
        return embeddings

    def decode(self, embedding: np.ndarray) -> str:
        """The words of an embedding, float32 `[E]`: greedy, with a key-value cache."""
        started = time.monotonic()
        text = self.decode_all(embedding[None])[0]
        self._runs["y_decoder"].append(time.monotonic() - started)  # a whole text, not a token
        return text

    def decode_all(self, embeddings: np.ndarray) -> list[str]:
        """The words of embeddings, float32 `[N, E]`, in one batch: what `decode` says of each."""
        if self.bundle.decoder is None:
            raise EngineError(f"The bundle {self.bundle.path} has no decoder.")
        if not np.isfinite(embeddings).all():
            raise EngineError("The embedding to decode holds values that are not finite.")
        texts: list[str] = []
        for piece in self._pieces("y_decoder", "B", embeddings):
            texts += self._decode(piece)
        return texts

    def _decode(self, embeddings: np.ndarray) -> list[str]:
        """The words of embeddings that fit into one batch; from the start where a device fails."""
        while True:
            try:
                return [self._words(tokens) for tokens in self._tokens(embeddings)]
            except TensorsLostError:
                continue

    def _words(self, tokens: list[int]) -> str:
        assert self.bundle.decoder is not None
        return self._decoder_tokenizer.decode(tokens) or self.bundle.decoder.empty_text

    def _tokens(self, embeddings: np.ndarray) -> list[list[int]]:
        """The tokens of the words of embeddings, greedily."""
        spec = self.bundle.decoder
        assert spec is not None
        count = len(embeddings)
        past: Tensor = np.zeros((2 * spec.layers, count, spec.heads, 0, spec.head_dim), np.float32)
        token = np.full(count, spec.begin, np.int64)
        ended = np.zeros(count, bool)
        tokens: list[list[int]] = [[] for _ in range(count)]
        for _ in range(spec.length):
            outputs = self._run_keeping(
                "y_decoder", timed=False, embedding=embeddings, ids=token[:, None], past=past
            )
            token, past = np.asarray(outputs["logits"]).argmax(-1), outputs["present"]
            ended |= token == spec.end
            if ended.all():
                break
            for row in np.flatnonzero(~ended):
                tokens[row].append(int(token[row]))
        return tokens

    def confidence(self, text: str, embedding: np.ndarray) -> float:
        """Cosine between `text`, encoded, and `embedding`, float32 `[E]`, in -1..1."""
        norm = float(np.linalg.norm(embedding))
        return float(self.embed_text([text])[0] @ embedding) / norm if norm > 0 else 0.0

    def close(self) -> None:
        """Release every engine."""
        for engine in self._engines.values():
            engine.close()

    def _engine(self, part: str) -> Engine:
        try:
            return self._engines[part]
        except KeyError:
            raise EngineError(f"The '{part}' of {self.bundle.model_id} was not opened.") from None

    def _pieces(self, part: str, size: str, values: Any) -> list[Any]:
        """`values` in pieces along their first axis that an engine's open `size` can take."""
        most = self._engine(part).most.get(size, len(values))
        return [values[k : k + most] for k in range(0, len(values), max(1, most))]

    def _run(self, part: str, **inputs: Input) -> dict[str, np.ndarray]:
        return self._attempt(part, inputs, lambda engine: engine.run(**inputs))

    def _run_keeping(self, part: str, timed: bool = True, **inputs: Input) -> dict[str, Tensor]:
        return self._attempt(part, inputs, lambda engine: engine.run_keeping(**inputs), timed)

    def _attempt(
        self, part: str, inputs: dict[str, Input], run: Callable[[Engine], T], timed: bool = True
    ) -> T:
        """Run a part, on the next backend where the device of this one fails."""
        engine = self._engine(part)
        started = time.monotonic()
        try:
            outputs = run(engine)
        except DeviceError as error:
            self._degrade(engine.backend, error)
            if any(_resident(value) for value in inputs.values()):
                raise TensorsLostError(f"What '{part}' was given went with its device.") from error
            return self._attempt(part, inputs, run, timed)
        if timed:
            self._runs[part].append(time.monotonic() - started)
        return outputs

    def _degrade(self, backend: str, error: DeviceError) -> None:
        """Open again, on other backends, what ran on one whose device failed."""
        self._failed.append(backend)
        lost = [part for part, engine in self._engines.items() if engine.backend == backend]
        for part in lost:
            self._engines[part].close()
        for part in lost:
            self._engines[part] = open_engine(
                self.bundle.graphs[part], "auto", self._threads, but=self._failed, build=False
            )
            self._runs[part].clear()
        instead = self._engines[lost[0]].backend
        self.faults.append(f"{backend} failed and was left for {instead}: {error}")
        log.error("%s", self.faults[-1])


def _resident(value: Input) -> bool:
    """Whether an input, or a part of it, is on a device."""
    return any(not isinstance(part, np.ndarray) for part in parts_of(value))
