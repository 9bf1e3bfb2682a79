"""The decoder node: changes in, words out.

Invariant: engines run for changes and requests alone, in the worker's thread. Each change that is
taken comes to one utterance, or is counted as unsaid, refused or dropped: never lost silently. It
waits in a bounded queue; where that overflows, the oldest is dropped.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np

from vljepa_ros.bundle.spec import Bundle
from vljepa_ros.client.source import OTHERS, Sources
from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.msg import ModelInfo, SemanticChange, Utterance
from vljepa_ros.ros.diagnostics import ERROR, WARN, Status
from vljepa_ros.ros.engines import Engines
from vljepa_ros.ros.lifecycle import AUTOSTART, ENGINES, ModelNode
from vljepa_ros.srv import Decode
from vljepa_ros.words.asker import Answer
from vljepa_ros.words.banks import Banks, Choice, choose
from vljepa_ros.words.speaker import Said, Speaker, YDecoder

from .parameters import WORDS, check, speaks
from .spoken import Spoken
from .vlm import VlmWords

QUEUE = 64  # changes
SOURCES = ("decoder", "phrases", "vlm")
UNIT = 0.01  # that the length of an embedding may differ from 1, as half precision makes it


class DecoderNode(ModelNode):
    """Y-decoder, phrases, and the Y-encoder; `decode`."""

    specs = (AUTOSTART, *ENGINES, *WORDS)

    def __init__(self, **options: Any) -> None:
        self.engines = Engines(self, ("y_decoder", "y_encoder"), lambda model: None)
        self.decoded: Counter[str] = Counter()  # utterances by camera
        self.sources: Counter[str] = Counter()  # utterances by source
        self.unsaid = 0  # changes for which nothing is said
        self.dropped = 0  # changes that the queue had no room for
        self.refused = 0  # changes that cannot be decoded
        self.unfamiliar = 0  # changes to what the bundle does not know
        self.vlm = VlmWords(self, self._say_as_vlm, self._say_instead)
        self._spoken: Spoken | None = None  # None: it is not asked for
        self._queue: deque[tuple[SemanticChange, bool]] = deque()  # whether a VLM may say it
        self._lock = threading.Lock()
        self._reported: set[str] = set()
        self._seen = (0, 0, 0)
        self._settings: dict[str, Any] = {}
        self._banks = Banks(self._running, lambda line: self.get_logger().info(line))
        super().__init__("decoder", **options)
        self._sources = Sources(self.get_logger().warning)
        self.create_subscription(ModelInfo, "model_info", self._sources.on_info, 10)
        self.serve(Decode, "decode", self._decode)

    # -------------------------------------------------------------- hooks

    def load(self) -> None:
        """Open the engines, and begin to embed the phrases."""
        model, self._settings = self.engines.open(), self.values()
        choice = choose(self._settings["phrases"], model.bundle)
        check(self._settings, model, choice)
        if self._settings["words"] == "auto" and choice is None and model.bundle.decoder is None:
            self.get_logger().warning(
                f"The bundle {model.bundle.path} has neither a Y-decoder nor phrases, and nothing "
                "is put into words; name phrases by the parameter 'phrases', e.g. events."
            )
        self._prepare(choice)
        self.vlm.configure(self._settings)

    def setup(self) -> None:
        """Make the publishers."""
        assert self.model is not None
        self._spoken = Spoken(self) if self._settings["spoken"] else None
        self._utterances = self.create_lifecycle_publisher(Utterance, "utterances", 10)
        self.get_logger().info(f"Loaded {self.model.bundle.model_id}.")

    def start(self) -> None:
        """Listen for changes."""
        self._changes = self.create_subscription(SemanticChange, "changes", self._on_change, 10)

    def stop(self) -> None:
        """Listen no longer; changes that wait are not decoded any more."""
        if hasattr(self, "_changes"):
            self.destroy_subscription(self._changes)
            del self._changes
        with self._lock:
            waiting = len(self._queue)
            self._queue.clear()
        waiting += self.vlm.cancel()
        if waiting:
            self.dropped += waiting
            left = counted(waiting, "change")
            self.get_logger().warning(f"Not decoded any more: {left} that waited.")

    def teardown(self) -> None:
        """Take back what `setup` made."""
        self.destroy_lifecycle_publisher(self.__dict__.pop("_utterances", None))
        if self._spoken is not None:
            self._spoken.close(self)
            self._spoken = None

    def unload(self) -> None:
        """Close the engines, forget the phrases, and ask no VLM."""
        self._banks.forget()
        self.vlm.close()
        self.engines.close()

    def apply(self, changed: dict[str, Any]) -> None:
        """Take over other words while running; changes that wait get those."""
        model = self.model
        if model is None:
            return
        values = {**self.values(), **changed}
        choice = self._banks.choice
        if "phrases" in changed:
            choice = choose(values["phrases"], model.bundle)
        check(values, model, choice)
        self._settings = values
        assert self.worker is not None
        if choice is not self._banks.choice:
            self._prepare(choice)
        self.vlm.configure(values)
        self.worker.wake()

    @property
    def model(self) -> Runtime | None:
        """The engines that run now."""
        return self.engines.model

    @property
    def bundle(self) -> Bundle | None:
        """The bundle that is loaded."""
        return self.model.bundle if self.model is not None else None

    # -------------------------------------------------------------- changes

    @property
    def waiting(self) -> int:
        """Changes that have not come to anything yet."""
        return len(self._queue) + self.vlm.open

    def _on_change(self, change: SemanticChange) -> None:
        if self._sources.takes(change):
            self._put(change, True)

    def _put(self, change: SemanticChange, fresh: bool) -> None:
        """Let a change wait for its words; from any thread. `fresh`: a VLM may say them."""
        with self._lock:
            full = len(self._queue) >= QUEUE
            if full:
                self._queue.popleft()
            self._queue.append((change, fresh))
        if full:
            self.dropped += 1
            self._warn_once(f"{QUEUE} changes wait for the decoder; the oldest is dropped.")
        if self.worker is not None:
            self.worker.wake()

    def work(self) -> bool:
        """Put the change into words that has waited longest."""
        model = self.model
        taken = self._next(model) if model is not None else None
        if model is None or taken is None:
            return False
        change, fresh = taken
        if fresh and self.vlm.ask(change):
            return True
        if not self._can_speak(model):
            self._put(change, False)
            return True
        started = time.monotonic()
        try:
            said = self._words(model, change)
        except VLJepaError as error:
            self._refuse(change, error)
            return True
        self._say(change, said, time.monotonic() - started)
        return True

    def _next(self, model: Runtime) -> tuple[SemanticChange, bool] | None:
        """The change whose turn it is; until there are phrases, only one that a VLM may say."""
        ready, asks = self._can_speak(model), self.vlm.endpoint is not None
        with self._lock:
            for k, (_, fresh) in enumerate(self._queue):
                if ready or (asks and fresh):
                    taken = self._queue[k]
                    del self._queue[k]
                    return taken
        return None

    def _refuse(self, change: SemanticChange, error: VLJepaError) -> None:
        self.refused += 1
        self._warn_once(f"A change of camera '{change.camera}' cannot be decoded: {error}")

    def _can_speak(self, model: Runtime) -> bool:
        """Whether changes need not wait until the first phrases are embedded."""
        banks = self._banks
        settled = banks.choice is None or banks.ready or bool(banks.problem)
        return settled or speaks(self._settings, model) != "phrases"

    def _speaker(self, model: Runtime, camera: str) -> Speaker | None:
        """Who puts a camera's embeddings into words; None: nobody."""
        who = speaks(self._settings, model)
        if who == "decoder":
            return YDecoder(model)
        return self._banks.speaker(camera) if who == "phrases" else None

    def _say_as_vlm(self, answer: Answer[SemanticChange], text: str) -> None:
        """Publish what the VLM said of a change; from its thread."""
        change, worker = answer.about, self.worker

        def say() -> None:
            try:
                model = self._running()
                embedding = _checked(model, change.model_id, np.asarray(change.embedding))
                said = Said(text, model.confidence(text, embedding), "vlm")
            except VLJepaError as error:
                self._refuse(change, error)
            else:
                self._say(change, said, answer.seconds)

        if worker is None or self.state != "active":
            self.dropped += 1
        else:
            worker.post(say)

    def _say_instead(self, change: SemanticChange) -> None:
        """Have others put a change into words that the VLM does not; from its thread."""
        if self.state == "active":
            self._put(change, False)
        else:
            self.dropped += 1

    def _words(self, model: Runtime, change: SemanticChange) -> Said | None:
        """The words for a change, and whether they are in doubt; None: nobody speaks."""
        embedding = _checked(model, change.model_id, np.asarray(change.embedding))
        speaker = self._speaker(model, change.camera)
        if speaker is None:
            return None
        if model.bundle.is_unfamiliar(change.familiarity):
            self.unfamiliar += 1
            return Said("", 0.0, speaks(self._settings, model), "The bundle does not know it.")
        return speaker.say(embedding)

    def _say(self, change: SemanticChange, said: Said | None, seconds: float) -> None:
        """Publish the words for a change, where there are any."""
        text = ""
        if said is not None:
            text = self._settings["unfamiliar"].strip() if said.doubt else said.text
        if self._spoken is not None:
            self._spoken.say(change, text)
        if said is None or not text:
            self.unsaid += 1
            return
        self._utterances.publish(
            Utterance(
                header=change.header,
                camera=change.camera,
                query=change.query,
                model_id=change.model_id,
                segment_id=change.segment_id,
                segment_start=change.segment_start,
                text=text,
                confidence=said.confidence,
                decode_time=seconds,
                stream_id=change.stream_id,
                source=said.source,
                familiarity=change.familiarity,
            )
        )
        self.decoded[change.camera] += 1
        self.sources[said.source] += 1

    async def _decode(self, request: Decode.Request, response: Decode.Response) -> Decode.Response:
        embedding = np.asarray(request.embedding)
        try:
            if self.state != "active":
                name = self.get_fully_qualified_name()
                raise VLJepaError(f"{name} is {self.state}; activate it, then ask again.")
            said = await self.in_worker(
                lambda: self._answer(request.model_id, request.camera, embedding)
            )
        except VLJepaError as error:
            response.message = str(error)
            return response
        response.success = True
        response.text, response.confidence = said.text, said.confidence
        response.source = said.source
        return response

    def _answer(self, model_id: str, camera: str, embedding: np.ndarray) -> Said:
        """The words of a request, by the engines that run when its turn comes."""
        model = self._running()
        embedding = _checked(model, model_id or model.bundle.model_id, embedding)
        speaker = self._speaker(model, camera)
        if speaker is None:
            raise VLJepaError(f"Nothing is put into words: {self._why_mute(model)}")
        said = speaker.say(embedding)
        if not said.doubt:
            return said
        if self._settings["unfamiliar"]:
            return replace(said, text=self._settings["unfamiliar"])
        raise VLJepaError(f"Nothing that is known fits: {said.doubt}")

    def _why_mute(self, model: Runtime) -> str:
        """Why nobody speaks, and what to do."""
        if not self._can_speak(model):
            return "the phrases are still being embedded; ask again later."
        name = self.get_fully_qualified_name()
        if self._settings["words"] == "none":
            return f"the parameter 'words' of {name} is none; set it to auto."
        return f"there is no bank of phrases for it; name one by the parameter 'phrases' of {name}."

    def _running(self) -> Runtime:
        """The engines that run now; VLJepaError where there are none."""
        if self.model is None:
            raise VLJepaError(f"{self.get_fully_qualified_name()} is not configured.")
        return self.model

    def _prepare(self, choice: Choice | None) -> None:
        """Have the worker embed the phrases of a choice, in turn with its other work."""
        self._banks.choice = choice
        worker = self.worker
        assert worker is not None

        def job() -> Generator[None, None, None]:
            try:
                yield from self._banks.prepare(choice)
            except VLJepaError as error:
                self._banks.problem = f"The phrases cannot be embedded: {error}"
                self.get_logger().error(self._banks.problem)
            worker.wake()

        worker.post(job)

    def _warn_once(self, problem: str) -> None:
        """Warn of a problem, once."""
        if problem not in self._reported:
            self._reported.add(problem)
            self.get_logger().warning(problem)

    # -------------------------------------------------------------- diagnostics

    def statuses(self) -> list[Status]:
        """A line for the queue, for each camera that was heard, and for each engine."""
        if self.model is None:
            return []
        queue = Status("changes")
        queue.values = {
            "decodes": sum(self.decoded.values()),
            "waiting": self.waiting,
            "dropped": self.dropped,
            "unsaid": self.unsaid,
            "refused": self.refused,
            "unfamiliar": self.unfamiliar,
            "of other streams": self._sources.refused,
        }
        dropped, refused, others = self._seen
        self._seen = (self.dropped, self.refused, self._sources.refused)
        if self.refused > refused:
            queue.level, queue.message = ERROR, "changes cannot be decoded; see the log"
        elif self.dropped > dropped:
            queue.level, queue.message = WARN, "changes dropped: decoding is too slow"
        elif self._sources.refused > others:
            queue.level, queue.message = WARN, OTHERS
        elif self.count_publishers("utterances") > 1:
            queue.level, queue.message = WARN, "another decoder node speaks on the same topic"
        cameras = [
            Status(f"camera {name}", values={"decodes": count})
            for name, count in sorted(self.decoded.items())
        ]
        words = [self._words_status(self.model), *self.vlm.statuses()]
        return [queue, *words, *cameras, *self.engines.statuses()]

    def _words_status(self, model: Runtime) -> Status:
        """Who speaks, and how often whose words were said."""
        who = "vlm" if self.vlm.endpoint is not None else speaks(self._settings, model)
        words = Status("words", values={"words": who, "phrases": 0})
        words.values |= {f"said by {name}": self.sources[name] for name in SOURCES}
        choice, progress = self._banks.choice, self._banks.progress
        spec = choice.spec if choice is not None else None
        for name in ("cosine", "margin"):  # from which a phrase is said
            asked = "none" if spec is None else f"{getattr(spec, name):g} (bundle)"
            words.values[f"phrases.{name}"] = asked
        if choice is not None:
            words.values["phrases"] = choice.phrases
            if self._banks.problem:
                words.level, words.message = ERROR, self._banks.problem
            elif progress < 1:
                words.level, words.message = WARN, f"embedding phrases, {progress:.0%}"
        return words


def _checked(model: Runtime, model_id: str, embedding: np.ndarray) -> np.ndarray:
    """The embedding as float32 `[E]`; VLJepaError where it does not fit the model."""
    bundle = model.bundle
    if model_id != bundle.model_id:
        raise VLJepaError(
            f"The embedding is of model '{model_id}', the decoder's is '{bundle.model_id}'; give "
            "both nodes the same bundle."
        )
    if embedding.shape != (bundle.embedding_dim,):
        raise VLJepaError(
            f"The embedding holds {embedding.size} numbers instead of {bundle.embedding_dim}."
        )
    length = float(np.linalg.norm(embedding.astype(np.float64)))
    if not math.isfinite(length):
        raise VLJepaError("The embedding is not finite.")
    if abs(length - 1) > UNIT:
        raise VLJepaError(
            f"The embedding has the length {length:.3g} instead of 1; divide it by its length."
        )
    return embedding.astype(np.float32)
