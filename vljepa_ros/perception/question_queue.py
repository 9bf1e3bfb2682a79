"""Questions about what a camera sees, and how many are answered at once.

Invariant: every question that was put gets exactly one outcome, an answer or an error. A question
costs one row of one predictor run, on visual tokens that are there already; never an encoder run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from vljepa_ros.bundle.spec import UNKNOWN
from vljepa_ros.errors import TensorsLostError, VLJepaError

from .perceiver import Perceiver
from .texts import QuestionError, not_ready

MOST_WAITING = 1000  # questions
# Different questions in one predictor run. On a CPU each takes its time; so many take less than
# one step of the stream, which waits for them.
BATCH = 4


@dataclass(frozen=True)
class Answer:
    """`cosines`: float32, one per candidate, to the embedding.

    `stamp_ns`: of the newest frame it is about, `familiarity`: of its clip, as in `Step`.
    """

    camera: str
    embedding: np.ndarray
    cosines: np.ndarray
    stamp_ns: int
    familiarity: float


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
            embeddings, seen = self._predict(batch)
            for question in sorted(batch, key=lambda one: len(one.candidates)):
                embedding = embeddings[question.text]
                try:
                    cosines = yield from self._cosines(embedding, question.candidates)
                except VLJepaError as error:
                    settle(question, error)
                else:
                    settle(question, Answer(question.camera, embedding, cosines, *seen))
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

    def _predict(
        self, batch: Sequence[Question]
    ) -> tuple[dict[str, np.ndarray], tuple[int, float]]:
        """The embeddings, `[E]`, of a batch's questions by text.

        And the stamp and the familiarity of what they are about.
        """
        if not batch:
            return {}, (0, UNKNOWN)
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
        about = seen.stamp_ns, seen.familiarity
        return dict(zip(texts, embeddings, strict=True)), about

    def _cosines(
        self, embedding: np.ndarray, candidates: Sequence[str]
    ) -> Generator[None, None, np.ndarray]:
        if not candidates:
            return np.zeros(0, np.float32)
        texts = yield from self._perceiver.model.embed_text_in_pieces(candidates)
        return np.asarray(texts @ embedding, np.float32)


def _given_up() -> QuestionError:
    return QuestionError("The node was cleaned up before it could answer; activate it, ask again.")
