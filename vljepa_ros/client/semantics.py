"""The semantic stream for an agent's own node: listen, ask, classify, watch, recall.

Invariant: whatever an agent calls here returns at once, may be called in any callback or thread,
and settles: with the response, or with a SemanticError within the client's timeout.

    from vljepa_ros.client import SemanticClient

    class Agent(Node):
        def __init__(self):
            super().__init__("agent")
            self.semantics = SemanticClient(self)
            self.semantics.on_utterance(self.on_utterance)

        async def on_utterance(self, utterance):
            answer = await self.semantics.ask("what colour is the cube?", ["red", "blue"])
            self.get_logger().info(f"{utterance.text}: {answer.answer}")

Elsewhere `semantics.ask(...)` is a future: `add_done_callback`, `cancel()`, or, in a thread that
spins nothing, `wait()`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

from builtin_interfaces.msg import Duration, Time
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.time import Time as RclpyTime
from sensor_msgs.msg import CompressedImage

from vljepa_ros.action import Watch
from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.srv import Ask, Classify, EmbedText, Pin, Recall
from vljepa_ros.stamps import SECOND_NS

from .calls import Call, Caller, SemanticError
from .source import Sources
from .watches import OnFeedback, Watches

QUEUE = 100  # messages that wait for a callback, the oldest dropped when there are more
TIMEOUT = 7.0  # seconds; longer than the nodes wait for one another, so that theirs is the sentence
LATEST = 2**31  # seconds; ROS counts them in 32 bits


class Listening:
    """A callback that is called for messages until `cancel`."""

    def __init__(self, destroy: Callable[[], Any]) -> None:
        self._destroy: Callable[[], Any] | None = destroy

    def cancel(self) -> None:
        """Listen no longer; again is no error."""
        destroy, self._destroy = self._destroy, None
        if destroy is not None:
            destroy()


class SemanticClient:
    """What an agent's node hears from and asks of VL-JEPA.

    `namespace`: that of the perception and memory nodes; empty: the node's own. `timeout`: seconds
    until a call whose server is absent, dead or too slow raises SemanticError; a watch that stands
    may last for ever, but ends so when its server does.

    For rclpy's SingleThreadedExecutor and MultiThreadedExecutor, in whichever thread they spin.
    Calls return a `Call`; see there for its three forms. What the node refuses raises SemanticError
    with its sentence. The callbacks of one `on_...` are called one after the other, in order, and
    may be coroutines; while one awaits, later messages wait, 100 of them. Where two perception
    nodes publish the same camera, one of them is heard, and the node's log says so.
    """

    def __init__(self, node: Any, namespace: str = "", timeout: float = TIMEOUT) -> None:
        self._node = node
        self._caller = Caller(node, namespace, timeout)
        self._watches = Watches(self._caller)
        self._listening: set[Listening] = set()
        self._sources = Sources(node.get_logger().warning)
        self._infos: Any = None  # the subscription that the sources need

    # -------------------------------------------------------------- listening

    def on_embedding(self, callback: Callable[[SemanticEmbedding], Any]) -> Listening:
        """Call `callback(SemanticEmbedding)` at each step of each camera and standing query."""
        return self._listen(SemanticEmbedding, "embeddings", callback)

    def on_change(self, callback: Callable[[SemanticChange], Any]) -> Listening:
        """Call `callback(SemanticChange)` whenever the meaning changes."""
        return self._listen(SemanticChange, "changes", callback)

    def on_utterance(self, callback: Callable[[Utterance], Any]) -> Listening:
        """Call `callback(Utterance)` whenever a change was put into words."""
        return self._listen(Utterance, "utterances", callback, self._sources.takes_words)

    def on_info(self, callback: Callable[[ModelInfo], Any]) -> Listening:
        """Call `callback(ModelInfo)` every second, as a sign that the stream lives."""
        return self._listen(ModelInfo, "model_info", callback, lambda info: True)

    def on_picture(self, callback: Callable[[CompressedImage], Any], camera: str) -> Listening:
        """Call `callback(CompressedImage)` with what `camera` shows at each step, a small JPEG.

        Pictures are best effort, and made only while somebody listens.
        """
        return self._listen(
            CompressedImage, f"{camera}/thumbnail", callback, lambda picture: True,
            qos_profile_sensor_data,
        )  # fmt: skip

    # -------------------------------------------------------------- calls

    def ask(self, question: str, candidates: Sequence[str] = (), camera: str = "") -> Call:
        """A question about what `camera` sees now (empty: the only camera). Result: Ask.Response.

        With `candidates`, `answer` is the best of them, `cosines` says how well each fits, in their
        order, weakly below `threshold`, and `scores` is their softmax (of a single one its cosine);
        without, the answer is decoded and both are empty. `message` says so where the best is weak,
        or the question was not used, as the model is asked nothing: then candidates are to be
        statements.
        """
        return self._call(
            Ask, "ask",
            lambda: Ask.Request(
                camera=_text(camera, "camera"), question=_text(question, "question"),
                candidates=_texts(candidates, "candidates"),
            ),
        )  # fmt: skip

    def classify(self, labels: Sequence[str], camera: str = "", template: str = "") -> Call:
        """Which of `labels` fits what `camera` sees now. Result: Classify.Response, best first.

        `scores`, `cosines` and `threshold` are as of `ask`.
        `template`: a sentence around each label, with `{}` in it; empty: the bundle's own.
        """
        return self._call(
            Classify, "classify",
            lambda: Classify.Request(
                camera=_text(camera, "camera"), labels=_texts(labels, "labels"),
                label_template=_text(template, "template"),
            ),
        )  # fmt: skip

    def watch(
        self,
        text: str,
        camera: str = "",
        threshold: float = 0.0,
        timeout: float = 0.0,
        on_feedback: OnFeedback | None = None,
    ) -> Call:
        """Wait until `text` is true of what `camera` sees. Result: the Moment it became true.

        `threshold`: cosine at which it counts as true, 0 to 1; 0: the bundle's calibrated one.
        `timeout`: seconds to watch, 0: no limit; raises SemanticTimeout where it has not become
        true by then. `on_feedback(score, stamp_ns)`, at each step: the cosine, and the stamp of the
        newest frame in nanoseconds. `cancel()` ends the watch at the node, too.
        """
        try:
            seconds = _seconds(timeout, "timeout")
            goal = Watch.Goal(
                camera=_text(camera, "camera"), text=_text(text, "text"),
                threshold=_number(threshold, "threshold"),
                timeout=Duration(sec=seconds // SECOND_NS, nanosec=seconds % SECOND_NS),
                client=self._node.get_fully_qualified_name(),
            )  # fmt: skip
        except SemanticError as error:
            return self._failed("watch", error)
        return self._watches.start(goal, on_feedback)

    def recall(
        self,
        text: str,
        cameras: Sequence[str] = (),
        after: Any = None,
        before: Any = None,
        limit: int = 0,
        fleet: bool = False,
    ) -> Call:
        """Moments that `text` describes. Result: Recall.Response, best first.

        `cameras`: only these; empty: all. `after`, `before`: only moments that end at or after, or
        start at or before, this stamp: a Time of rclpy or of builtin_interfaces, or seconds; None:
        no bound. `limit`: at most so many; 0: the node's default. `fleet`: ask the fleet's server
        instead of this robot's own store.
        """
        return self._call(
            Recall, "recall",
            lambda: Recall.Request(
                text=_text(text, "text"), cameras=_texts(cameras, "cameras"),
                after=_stamp(after, "after"), before=_stamp(before, "before"),
                limit=_count(limit, "limit"), fleet=bool(fleet),
            ),
        )  # fmt: skip

    def embed_text(self, texts: Sequence[str]) -> Call:
        """Texts in the shared space. Result: EmbedText.Response, its embeddings row-major."""
        return self._call(
            EmbedText, "embed_text", lambda: EmbedText.Request(texts=_texts(texts, "texts"))
        )

    def pin(self, id: str, pinned: bool = True) -> Call:
        """Keep the moment `id` for good; `pinned=False`: no longer. Result: Pin.Response."""
        return self._call(Pin, "pin", lambda: Pin.Request(id=_text(id, "id"), pinned=bool(pinned)))

    @property
    def pending(self) -> int:
        """Requests under way, among them the cancellations of watches; not the watches."""
        return self._caller.pending

    def destroy(self) -> None:
        """Take everything back; calls under way raise SemanticError, watches are cancelled.

        For that, let the node spin until `pending` is 0: a node that ends at once may leave its
        watches standing.
        """
        self._watches.cancel()
        self._caller.close()
        self._watches.close()
        for listening in list(self._listening):
            listening.cancel()
        infos, self._infos = self._infos, None
        if infos is not None:
            self._node.destroy_subscription(infos)

    # -------------------------------------------------------------- inside

    def _listen(
        self,
        kind: Any,
        topic: str,
        callback: Callable[[Any], Any],
        takes: Callable[[Any], bool] | None = None,
        qos: QoSProfile | int = QUEUE,
    ) -> Listening:
        takes = takes or self._sources.takes
        if self._infos is None:
            self._infos = self._caller.subscribe(
                ModelInfo, "model_info", self._sources.on_info, QUEUE
            )

        async def hear(message: Any) -> None:
            if takes(message):
                heard = callback(message)
                if inspect.isawaitable(heard):
                    await heard

        subscription = self._caller.subscribe(kind, topic, hear, qos)

        def destroy() -> None:
            self._node.destroy_subscription(subscription)
            self._listening.discard(listening)

        listening = Listening(destroy)
        self._listening.add(listening)
        return listening

    def _call(self, kind: Any, name: str, request: Callable[[], Any]) -> Call:
        try:
            return self._caller.call(kind, name, request(), _successful)
        except SemanticError as error:
            return self._failed(name, error)

    def _failed(self, name: str, error: SemanticError) -> Call:
        call = self._caller.promise(name)
        call.settle(error=error)
        return call


def _successful(response: Any) -> Any:
    if not response.success:
        raise SemanticError(response.message or "The node refused, and did not say why.")
    return response


def _text(value: Any, what: str) -> str:
    """A string that ROS can carry; SemanticError for anything else."""
    if not isinstance(value, str):
        raise SemanticError(f"{what} must be a string, not {type(value).__name__}.")
    if "\0" in value:  # ROS would end the string there
        raise SemanticError(f"{what} holds a null character; leave it out.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SemanticError(f"{what} is not valid Unicode: it holds half a character.") from None
    return value


def _texts(values: Any, what: str) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise SemanticError(f"{what} must be a list of strings, not {type(values).__name__}.")
    return [_text(value, f"each of {what}") for value in values]


def _number(value: Any, what: str) -> float:
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise SemanticError(f"{what} must be a finite number, not {value!r}.")
    return float(value)


def _count(value: Any, what: str) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise SemanticError(f"{what} must be a whole number from 0 on, not {value!r}.")
    return value


def _seconds(value: Any, what: str) -> int:
    """Seconds in nanoseconds."""
    seconds = _number(value, what)
    if not 0 <= seconds < LATEST:
        raise SemanticError(f"{what} must be seconds from 0 to {LATEST}, not {value!r}.")
    return round(seconds * SECOND_NS)


def _stamp(value: Any, what: str) -> Time:
    if value is None:
        return Time()
    if isinstance(value, Time):
        return value
    if isinstance(value, RclpyTime):
        return value.to_msg()
    stamp_ns = _seconds(value, what)
    return Time(sec=stamp_ns // SECOND_NS, nanosec=stamp_ns % SECOND_NS)
