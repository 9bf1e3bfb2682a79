"""`ask`, `classify` and `embed_text` of the perception node.

Invariant: every request gets a response: an answer, or a sentence that says why there is none. The
executor's side only checks and waits; every engine runs in the worker, in pieces that the stream
takes turns with.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from vljepa_ros.bundle.spec import NO_QUERY
from vljepa_ros.errors import VLJepaError
from vljepa_ros.perception.question_queue import Answer, Question
from vljepa_ros.perception.texts import (
    QuestionError,
    checked_template,
    checked_text,
    checked_texts,
    not_ready,
    note,
    scores_of,
    weakness,
)
from vljepa_ros.ros.diagnostics import Status
from vljepa_ros.ros.lifecycle import ModelNode
from vljepa_ros.ros.messages import floats, to_time
from vljepa_ros.srv import Ask, Classify, Decode, EmbedText

from .stream import LiveStream

DECODE_SECONDS = 5.0  # that the decoder node may take over an open answer
UNUSED = (
    "The bundle's predictor is asked nothing, so the question was not used: the answer is about "
    "what is seen, and each candidate was compared with that as a statement."
)


class Questions:
    """The services, for the node's life: one that is not active says so."""

    def __init__(self, node: ModelNode, stream: LiveStream) -> None:
        self._node = node
        self._stream = stream
        self.counts: Counter[str] = Counter()
        node.serve(Ask, "ask", self._ask)
        node.serve(Classify, "classify", self._classify)
        node.serve(EmbedText, "embed_text", self._embed_text)
        self._decoder = node.create_client(Decode, "decode", callback_group=node.waiting_services)

    def status(self) -> Status:
        """The line of /diagnostics."""
        names = ("asked", "answered", "refused", "classified", "unfamiliar")
        return Status("questions", values={name: self.counts[name] for name in names})

    # -------------------------------------------------------------- ask

    async def _ask(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        arrived = time.monotonic()
        self.counts["asked"] += 1
        try:
            unasked = self._unasked
            text = NO_QUERY if unasked else checked_text("question", request.question)
            candidates = checked_texts("candidate", request.candidates)
            answer = await self._answer(request.camera, text, candidates, arrived)
            if candidates:
                response.answer = request.candidates[int(answer.cosines.argmax())]
            else:
                response.answer = await self._in_words(answer.camera, answer.embedding)
        except VLJepaError as error:
            return self._refuse(response, error)
        response.success = True
        response.embedding = floats(answer.embedding)
        response.stamp = to_time(answer.stamp_ns)
        self._tell(response, answer.familiarity, "the answer")
        self._judge(response, answer.cosines, "the answer")
        if unasked and request.question.strip():
            response.message = f"{UNUSED} {response.message}".rstrip()
        self.counts["answered"] += 1
        return response

    @property
    def _unasked(self) -> bool:
        """Whether the bundle's predictor is asked nothing."""
        model = self._stream.model
        return model is not None and model.bundle.query is None

    async def _answer(
        self, camera: str, text: str, candidates: tuple[str, ...], arrived: float
    ) -> Answer:
        """The outcome of a question that waits with others for a predictor run."""
        node, stream = self._node, self._stream
        found = stream.camera_to_ask(camera)
        worker, queue = node.worker, stream.questions
        assert worker is not None and queue is not None  # the node is active
        promise = node.promise()

        def settle(outcome: Answer | VLJepaError) -> None:
            stream.stages.lap("ask", arrived)
            promise.set_result(outcome)

        queue.put(Question(found, text, candidates, settle))
        worker.post(queue.answer)
        outcome = await promise
        if isinstance(outcome, VLJepaError):
            raise outcome
        return outcome

    async def _in_words(self, camera: str, embedding: np.ndarray) -> str:
        """The text of a predicted embedding, from the decoder node."""
        name = self._node.resolve_service_name(self._decoder.srv_name)
        if not self._decoder.service_is_ready():
            raise QuestionError(
                f"An open answer needs the decoder node, and nobody serves '{name}'; start "
                "decoder_node, or give candidates."
            )
        model = self._stream.model
        assert model is not None
        request = Decode.Request(
            model_id=model.bundle.model_id, embedding=floats(embedding), camera=camera
        )
        decoded = await self._node.response(self._decoder, request, DECODE_SECONDS)
        if decoded is None:
            raise QuestionError(
                f"The decoder node did not answer on '{name}' within {DECODE_SECONDS:g} s; see "
                "whether it runs, or give candidates."
            )
        if not decoded.success:
            raise QuestionError(f"The decoder node refused: {decoded.message}")
        return str(decoded.text)

    # -------------------------------------------------------------- classify

    async def _classify(
        self, request: Classify.Request, response: Classify.Response
    ) -> Classify.Response:
        arrived = time.monotonic()
        try:
            if not request.labels:
                raise QuestionError("There is no label to classify by; give at least one.")
            labels = checked_texts("label", request.labels)
            template = request.label_template and checked_template(request.label_template)
            camera = self._stream.camera_to_ask(request.camera)
            cosines, stamp_ns, familiarity = await self._node.in_worker(
                lambda: self._label_cosines(camera, labels, template, arrived)
            )
        except VLJepaError as error:
            return self._refuse(response, error)
        order = np.argsort(-cosines, kind="stable")
        response.success = True
        response.labels = [request.labels[i] for i in order]
        response.stamp = to_time(stamp_ns)
        self._tell(response, familiarity, "the best label")
        self._judge(response, cosines[order], "the best label")
        self.counts["classified"] += 1
        return response

    def _label_cosines(
        self, camera: str, labels: Sequence[str], template: str, arrived: float
    ) -> Generator[None, None, tuple[np.ndarray, int, float]]:
        """The labels' cosines to the camera's current embedding, float32 `[N]`; in pieces.

        And the stamp and the familiarity of its step.
        """
        model, perceiver = self._stream.model, self._stream.perceiver
        assert model is not None and perceiver is not None
        template = template or model.bundle.label_template
        texts = yield from model.embed_text_in_pieces([template.replace("{}", n) for n in labels])
        step = perceiver.latest(camera)
        if step is None:
            raise not_ready(camera, self._stream.ready())
        cosines = np.asarray(texts @ step.embedding, np.float32)
        self._stream.stages.lap("classify", arrived)
        return cosines, step.stamp_ns, step.familiarity

    # -------------------------------------------------------------- embed_text

    async def _embed_text(
        self, request: EmbedText.Request, response: EmbedText.Response
    ) -> EmbedText.Response:
        model = self._stream.model
        try:
            texts = checked_texts("text", request.texts, distinct=False)
            if not texts:
                raise QuestionError("There is no text to embed; give at least one.")
            if model is None:
                raise QuestionError(f"{self._node.get_fully_qualified_name()} is not configured.")
            embeddings = await self._node.in_worker(lambda: model.embed_text_in_pieces(texts))
        except VLJepaError as error:
            return self._refuse(response, error)
        response.success = True
        response.model_id = model.bundle.model_id
        response.embedding_dim = embeddings.shape[1]
        response.embeddings = floats(embeddings.reshape(-1))
        return response

    def _tell(self, response: Any, familiarity: float, what: str) -> None:
        """Say how familiar what an answer is about is, in words where it is not."""
        model = self._stream.model
        assert model is not None
        response.familiarity = familiarity
        response.message = note(model.bundle, familiarity, what)
        self.counts["unfamiliar"] += bool(response.message)

    def _judge(self, response: Any, cosines: np.ndarray, what: str) -> None:
        """Fill in how well each text fits, and say so in words where the best does not."""
        model = self._stream.model
        assert model is not None
        response.scores = floats(scores_of(cosines, model.bundle.temperature))
        response.cosines = floats(cosines)
        response.threshold = model.bundle.thresholds.watch
        if cosines.size:
            weak = weakness(model.bundle, float(cosines.max()), what)
            response.message = f"{response.message} {weak}".strip()

    def _refuse(self, response: Any, error: VLJepaError) -> Any:
        self.counts["refused"] += 1
        response.message = str(error)
        return response
