"""VL-JEPA as its users see it: clips, questions and embeddings instead of tensors.

Invariant: every embedding that leaves this module is float32, of unit length unless the graph
gave none, and belongs to the space of the one bundle that the object was made from.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Bundle
from .engine import Engine, open_engine
from .errors import EngineError
from .text import TextTokenizer

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


class VLJepa:
    """The engines of one bundle.

    One thread at a time: the owner serialises calls. `parts` names the graphs to open, e.g. a
    decoder opens `("y_decoder", "y_encoder")`. Raises BundleError or EngineError.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        threads: int = 0,
        parts: Sequence[str] = ("x_encoder", "predictor", "y_encoder"),
    ) -> None:
        self.bundle = bundle
        self._engines: dict[str, Engine] = {}
        self._runs: dict[str, deque[float]] = {}
        for part in parts:
            if part not in bundle.graphs:
                raise EngineError(
                    f"The bundle {bundle.path} has no '{part}'; use a bundle that has one."
                )
            self._engines[part] = open_engine(bundle.graphs[part], backend, threads)
            self._runs[part] = deque(maxlen=TIMINGS)
        if "predictor" in parts:
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

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """Visual tokens, float32 `[B, N, Dv]`, of clips, uint8 `[B, T, S, S, 3]` RGB."""
        return self._run("x_encoder", frames=clips)["visual_tokens"]

    def predict(self, visual_tokens: np.ndarray, queries: Sequence[str]) -> np.ndarray:
        """Embeddings, float32 `[B, Q, E]`: the answer to each query for each clip's tokens."""
        ids, mask = self._query_tokenizer(queries)  # some 20 µs, against milliseconds for the run
        return self._run("predictor", visual_tokens=visual_tokens, query_ids=ids, query_mask=mask)[
            "embedding"
        ]

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
        spec = self.bundle.decoder
        if spec is None:
            raise EngineError(f"The bundle {self.bundle.path} has no decoder.")
        if not np.isfinite(embeddings).all():
            raise EngineError("The embedding to decode holds values that are not finite.")
        count = len(embeddings)
        past = np.zeros((2 * spec.layers, count, spec.heads, 0, spec.head_dim), np.float32)
        token = np.full(count, spec.begin, np.int64)
        ended = np.zeros(count, bool)
        tokens: list[list[int]] = [[] for _ in range(count)]
        for _ in range(spec.length):
            outputs = self._engine("y_decoder").run(
                embedding=embeddings, ids=token[:, None], past=past
            )
            token, past = outputs["logits"].argmax(-1), outputs["present"]
            ended |= token == spec.end
            if ended.all():
                break
            for row in np.flatnonzero(~ended):
                tokens[row].append(int(token[row]))
        return [self._decoder_tokenizer.decode(one) or spec.empty_text for one in tokens]

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

    def _run(self, part: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        engine = self._engine(part)
        started = time.monotonic()
        outputs = engine.run(**inputs)
        self._runs[part].append(time.monotonic() - started)
        return outputs
