"""Questions about what a camera sees: what may be asked, and how many are answered at once.

Invariant: every question that was put gets exactly one outcome, an answer or an error. A question
costs one row of one predictor run, on visual tokens that are there already; never an encoder run.
"""

from __future__ import annotations

import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vljepa_ros.runtime.errors import TensorsLostError, VLJepaError

from .perceiver import Perceiver

MOST_CHARACTERS = 1000  # of a question, a label, a condition
MOST_TEXTS = 1000  # candidates or labels of one request
MOST_WAITING = 1000  # questions
# Different questions in one predictor run. On a CPU each takes its time; so many take less than
# one step of the stream, which waits for them.
BATCH = 4
_SHOWN = 40  # characters of a text in an error


class QuestionError(VLJepaError):
    """What was asked cannot be answered."""


def checked_text(what: str, text: str) -> str:
    """`text` with every run of blanks and line breaks as one space.

    QuestionError, naming `what`, where it is empty, longer than 1,000 characters, or holds control
    characters, which no tokenizer was trained on and which would garble logs and terminals.
    """
    if len(text) > MOST_CHARACTERS:
        raise QuestionError(
            f"The {what} has {len(text):,} characters; {MOST_CHARACTERS:,} is the most."
        )
    plain = " ".join(text.split())
    if not plain:
        raise QuestionError(f"The {what} is empty; put it in words.")
    for letter in plain:
        if unicodedata.category(letter) in ("Cc", "Cs"):
            raise QuestionError(
                f"The {what} holds the control character U+{ord(letter):04X}; take it out."
            )
    return plain


def checked_texts(what: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Each of at most 1,000 texts as `checked_text` gives it; QuestionError also on duplicates."""
    if len(texts) > MOST_TEXTS:
        raise QuestionError(f"There are {len(texts):,} {what}s; {MOST_TEXTS:,} is the most.")
    seen: dict[str, None] = {}
    for text in texts:
        plain = checked_text(what, text)
        if plain in seen:
            raise QuestionError(f"The {what} '{shown(plain)}' is there twice; give each once.")
        seen[plain] = None
    return tuple(seen)


def checked_template(template: str) -> str:
    """A template for labels; QuestionError unless it holds {} exactly once."""
    plain = checked_text("template", template)
    if plain.count("{}") != 1:
        raise QuestionError(
            f"The template '{shown(plain)}' must hold {{}} once, where the label goes, as in "
            "'a video of {}'."
        )
    return plain


def shown(text: str) -> str:
    """As much of a text as an error says."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def find_camera(name: str, ready: Mapping[str, bool]) -> str:
    """The camera that `name` means; empty: the only one. QuestionError where there is none.

    `ready`: the cameras, and whether each has seen a whole clip.
    """
    if not name and len(ready) > 1:
        raise QuestionError(f"Name one of the cameras: {_listed(ready)}.")
    found = name or next(iter(ready))
    if found not in ready:
        raise QuestionError(f"There is no camera '{shown(name)}'; there are: {_listed(ready)}.")
    return found


def not_ready(camera: str, ready: Mapping[str, bool]) -> QuestionError:
    """The camera has not seen a whole clip."""
    return QuestionError(
        f"Camera '{camera}' has not seen a whole clip yet; see that it publishes, then ask again. "
        f"The cameras are: {_listed(ready)}."
    )


def _listed(ready: Mapping[str, bool]) -> str:
    return ", ".join(n if is_ready else f"{n} (nothing seen yet)" for n, is_ready in ready.items())


def softmax(cosines: np.ndarray, temperature: float) -> np.ndarray:
    """float32 `[N]` that sum to 1, of cosines `[N]` over `temperature`, above 0."""
    logits = np.asarray(cosines, np.float64) / temperature
    weights = np.exp(logits - logits.max(initial=-np.inf))
    return (weights / weights.sum()).astype(np.float32)


@dataclass(frozen=True)
class Answer:
    """`scores`: float32, one per candidate. `stamp_ns`: of the newest frame it is about."""

    embedding: np.ndarray
    scores: np.ndarray
    stamp_ns: int


@dataclass(frozen=True, eq=False)
class Question:
    """One question. `settle` is called once, in the worker's thread, with the outcome."""

    camera: str
    text: str
    candidates: tuple[str, ...]
    settle: Callable[[Answer | VLJepaError], None]


class QuestionQueue:
    """Questions that wait for the predictor. Any thread puts; the worker answers and clears."""

    def __init__(self, perceiver: Perceiver) -> None:
        self._perceiver = perceiver
        self._waiting: deque[Question] = deque()
        self._lock = threading.Lock()

    def put(self, question: Question) -> None:
        """Let a question wait for one more call of `answer`. QuestionError where too many do."""
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                raise QuestionError(f"{MOST_WAITING:,} questions wait already; ask again later.")
            self._waiting.append(question)

    def answer(self) -> Generator[None, None, None]:
        """Answer the question that has waited longest, and others on its camera, in one run.

        In pieces of one engine run each. Those with the fewest candidates are answered first, so
        that none waits for the many texts of another.
        """
        batch = self._take()
        left = set(batch)

        def settle(question: Question, outcome: Answer | VLJepaError) -> None:
            left.discard(question)
            question.settle(outcome)

        try:
            embeddings, stamp_ns = self._predict(batch)
            for question in sorted(batch, key=lambda one: len(one.candidates)):
                embedding = embeddings[question.text]
                try:
                    scores = yield from self._scores(embedding, question.candidates)
                except VLJepaError as error:
                    settle(question, error)
                else:
                    settle(question, Answer(embedding, scores, stamp_ns))
        except VLJepaError as error:
            for question in list(left):
                settle(question, error)
        finally:
            for question in list(left):
                settle(question, _given_up())

    def clear(self) -> None:
        """Answer none of those that wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for question in waiting:
            question.settle(_given_up())

    def _take(self) -> list[Question]:
        """The oldest question and those that fit into the same predictor run, oldest first."""
        batch: list[Question] = []
        kept: deque[Question] = deque()
        texts: set[str] = set()
        with self._lock:
            for question in self._waiting:
                fits = not batch or question.camera == batch[0].camera
                if fits and (question.text in texts or len(texts) < BATCH):
                    texts.add(question.text)
                    batch.append(question)
                else:
                    kept.append(question)
            self._waiting = kept
        return batch

    def _predict(self, batch: Sequence[Question]) -> tuple[dict[str, np.ndarray], int]:
        """The embeddings, `[E]`, of a batch's questions by text, and the stamp they are about."""
        if not batch:
            return {}, 0
        perceiver, camera = self._perceiver, batch[0].camera
        seen = perceiver.seen(camera)
        if seen is None:
            raise not_ready(camera, {n: perceiver.seen(n) is not None for n in perceiver.cameras})
        texts = list(dict.fromkeys(question.text for question in batch))
        try:
            embeddings = perceiver.model.predict([seen.tokens], texts)[0]
        except TensorsLostError:
            perceiver.forget_tokens()
            raise QuestionError(
                f"The device that had what camera '{camera}' saw failed; ask again."
            ) from None
        if not np.isfinite(embeddings).all():
            raise QuestionError(
                f"The answer holds values that are not finite; verify the bundle "
                f"{perceiver.bundle.path}, or try another backend."
            )
        return dict(zip(texts, embeddings, strict=True)), seen.stamp_ns

    def _scores(
        self, embedding: np.ndarray, candidates: Sequence[str]
    ) -> Generator[None, None, np.ndarray]:
        if not candidates:
            return np.zeros(0, np.float32)
        model = self._perceiver.model
        texts = yield from model.embed_text_in_pieces(candidates)
        return softmax(texts @ embedding, model.bundle.temperature)


def _given_up() -> QuestionError:
    return QuestionError("The node was cleaned up before it could answer; activate it, ask again.")
