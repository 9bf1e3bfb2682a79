"""The web node: the semantic stream as a page to look at, ask, and search.

Invariant: it only listens and asks. No request of a page moves a robot, changes a parameter or
writes a file; it serves on a loopback address unless it is told otherwise, and then wants a token.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from vljepa_ros.client.source import Sources
from vljepa_ros.errors import VLJepaError
from vljepa_ros.msg import (
    LabelList,
    LabelScores,
    ModelInfo,
    SemanticChange,
    SemanticEmbedding,
    Utterance,
)
from vljepa_ros.ros import diagnostics
from vljepa_ros.ros.parameters import ParameterError, Spec, declare, unknown, values

from .bridge import Bridge, number, seconds

SHORTEST_TOKEN = 12  # characters
SILENT = 3.0  # seconds without diagnostics after which a node counts as gone
_RATES = {  # diagnostics of a camera, and what the pages call them
    "rate in (Hz)": "rate_in", "rate out (Hz)": "rate_out", "frame age (s)": "age",
    "dropped": "dropped",
}  # fmt: skip
SERVICES = ("ask", "decode", "recall")  # whose absence the page tells

SPECS = (
    Spec("host", "127.0.0.1", "Address to serve on; any but a loopback one wants a token."),
    Spec("port", 8480, "Port to serve on; 0: a free one, which is logged.", low=0, high=65535),
    Spec("token", "", f"What visitors must know, {SHORTEST_TOKEN} characters or more; empty: "
         "nothing on a loopback address, elsewhere one is made up and logged."),
)  # fmt: skip


Told = tuple[float, dict[str, Any]]  # time.monotonic(), and what


class WebNode(Node):
    """Serves the page until it is ended."""

    specs = SPECS

    def __init__(self, **options: Any) -> None:
        super().__init__("web", **options)
        self.finished = threading.Event()
        self.on_finished: Callable[[], None] = self.finished.set
        self.exit_code = 0
        self.failure = ""  # why it has ended by itself
        self.url = ""  # of the page, with a token that was made up; empty: it does not listen yet
        self._problems = declare(self, self.specs)
        for sentence in unknown(self):
            self.get_logger().warning(sentence)
        self._server: Any = None  # a WebServer, once it listens
        self._bridge = Bridge(self, lambda *picture: self._server.show(*picture))
        self._sources = Sources(self.get_logger().warning)
        self._told: dict[str, Any] = {}  # of `model_info`
        self._nodes: dict[str, Told] = {}  # health as last told, by node and by camera
        self._cameras: dict[str, Told] = {}
        self._words: dict[str, Told] = {}  # of the decoder: whether it can speak
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = diagnostics.publisher(self)
        self._starter = self.create_timer(0.0, self._begin, clock=steady)
        self._timer = self.create_timer(1.0, self._on_second, clock=steady)

    def end(self) -> None:
        """Stop serving."""
        self._bridge.end()
        if self._server is not None:
            self._server.end()

    # -------------------------------------------------------------- start

    def _begin(self) -> None:
        """The node spins: it may now end by itself."""
        self._starter.cancel()
        try:
            self._serve()
        except VLJepaError as error:
            self._fail(str(error))
        except Exception:
            self._fail(traceback.format_exc())

    def _fail(self, why: str) -> None:
        """End: there is no page. Whoever shares the process goes on."""
        self.get_logger().error(why)
        self.failure, self.exit_code = why.strip().splitlines()[-1], 1
        self.on_finished()

    def _serve(self) -> None:
        if self._problems:
            raise ParameterError(" ".join(self._problems))
        try:
            from .server import WebServer, is_loopback
        except ModuleNotFoundError as error:
            raise VLJepaError(
                f"The web node needs aiohttp ({error}): pip install aiohttp, or start without it."
            ) from None
        host, port, token = values(self, self.specs).values()
        given = bool(token)
        if given and len(token) < SHORTEST_TOKEN:
            raise ParameterError(
                f"Parameter 'token' must have {SHORTEST_TOKEN} characters or more; leave it empty "
                "to have one made up."
            )
        if not given and not is_loopback(host):
            token = secrets.token_urlsafe(24)
        self._server = WebServer(host, port, token, self._bridge, self._fail)
        self._listen()
        asked = "?token=<the parameter 'token'>" if given else f"?token={token}" if token else ""
        self.url = f"http://{_address(host)}:{self._server.port}/{asked}"
        self.get_logger().info(f"The page is at {self.url}")

    def _listen(self) -> None:
        """Subscribe to what the pages show."""
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        takes, takes_words = self._sources.takes, self._sources.takes_words
        for kind, topic, event, wanted, qos in (
            (ModelInfo, "model_info", _info, self._is_news, latched),
            (SemanticEmbedding, "embeddings", _step, takes, 100),
            (SemanticChange, "changes", _change, takes, 100),
            (Utterance, "utterances", _words, takes_words, 100),
            (LabelList, "label_list", _labels, _always, latched),
            (LabelScores, "labels", _scores, takes, 100),
        ):

            def push(message: Any, event: Any = event, wanted: Any = wanted) -> None:
                if wanted(message):
                    self._server.push(event(message))

            self.create_subscription(kind, topic, push, qos)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_health, 100)

    def _is_news(self, message: ModelInfo) -> bool:
        """Whether a sign of a stream tells anything that the pages do not know."""
        self._sources.on_info(message)
        told, self._told = self._told, _info(message)
        return told != self._told

    # -------------------------------------------------------------- health

    def _on_health(self, message: DiagnosticArray) -> None:
        """Keep what the nodes of this namespace say of themselves and of their cameras."""
        prefix, now = f"{self.get_namespace().strip('/')}/".lstrip("/"), time.monotonic()
        for status in message.status:
            node, _, part = status.name.partition(": ")
            name, values = node.removeprefix(prefix), {p.key: p.value for p in status.values}
            if not node.startswith(prefix) or "/" in name:
                continue
            told = {"level": ord(status.level), "message": status.message}
            if part == "state":
                self._nodes[name] = now, told
            elif part == "words":
                self._words["words"] = now, told
            elif part.startswith("camera ") and _RATES.keys() <= values.keys():
                told |= {name: number(values[key]) for key, name in _RATES.items()}
                self._cameras[part.removeprefix("camera ")] = now, told

    def _on_second(self) -> None:
        """Tell the pages how the graph is, and the graph how the page is."""
        if self._server is None:
            return
        page = diagnostics.Status("page", message="served")
        page.values = {"url": self.url.partition("?")[0], "open": self._server.pages}
        diagnostics.publish(self._diagnostics, self, [page])
        there = {name for name, _ in self.get_service_names_and_types()}
        self._server.push(
            {
                "type": "health",
                "services": {name: self.resolve_service_name(name) in there for name in SERVICES},
                "nodes": _recent(self._nodes),
                "cameras": _recent(self._cameras),
                **_recent(self._words),
            }
        )


def _recent(told: dict[str, Told]) -> dict[str, Any]:
    """What was told lately; who says no more is not there any more, and is forgotten."""
    oldest = time.monotonic() - SILENT
    for name in [name for name, (when, _) in told.items() if when < oldest]:
        del told[name]
    return {name: what for name, (_, what) in told.items()}


# ------------------------------------------------------------------ messages as events


def _always(message: Any) -> bool:
    return True


def _info(message: ModelInfo) -> dict[str, Any]:
    return {
        "type": "info",
        "model_id": message.model_id,
        "backend": message.backend,
        "precision": message.precision,
        "embedding_dim": message.embedding_dim,
        "clip_frames": message.clip_frames,
        "image_size": message.image_size,
        "sample_rate": number(message.sample_rate),
        "queries": list(message.queries),
        "watch_threshold": number(message.watch_threshold),
        "familiarity_threshold": number(message.familiarity_threshold),
    }


def _step(message: SemanticEmbedding) -> dict[str, Any]:
    return {
        **_about("step", message),
        "score": number(message.change_score),
        "segment": message.segment_id,
        "reused": message.reused,
        "latency": number(message.latency),
    }


def _change(message: SemanticChange) -> dict[str, Any]:
    return {
        **_about("change", message),
        "segment": message.segment_id,
        "start": seconds(message.segment_start),
        "score": number(message.change_score),
    }


def _words(message: Utterance) -> dict[str, Any]:
    return {
        **_about("words", message),
        "segment": message.segment_id,
        "start": seconds(message.segment_start),
        "text": message.text,
        "confidence": number(message.confidence),
        "source": message.source,
        "seconds": number(message.decode_time),
    }


def _about(kind: str, message: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "camera": message.camera,
        "query": message.query,
        "stamp": seconds(message.header.stamp),
        "familiarity": number(message.familiarity),
    }


def _labels(message: LabelList) -> dict[str, Any]:
    return {
        "type": "labels",
        "version": message.version,
        "labels": list(message.labels),
        "template": message.label_template,
    }


def _scores(message: LabelScores) -> dict[str, Any]:
    return {
        "type": "scores",
        "camera": message.camera,
        "stamp": seconds(message.header.stamp),
        "version": message.list_version,
        "best": message.best,
        "scores": [number(score) for score in message.scores],
        "cosines": [number(cosine) for cosine in message.cosines],
    }


def _address(host: str) -> str:
    """How this host is written in a URL; its name where it listens on all its addresses."""
    if host in ("", "0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
