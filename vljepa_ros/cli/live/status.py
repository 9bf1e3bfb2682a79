"""`vljepa status`: what runs, with which bundle, what it sees, and the thresholds in effect.

Invariant: it only listens, to what every node says of itself once a second, and it ends: soon after
all have spoken that are there, or with a sentence where nobody is or nobody speaks.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import typer

from vljepa_ros.console import console, print_json, print_table
from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.names import checked_namespace

from ..records import record
from . import calls
from .calls import Joined, joined

ROUND = 1.5  # seconds without news in which whoever is well would have spoken
QUIET = 3.0  # seconds without a word after which a node counts as silent
PATIENCE = 5.0  # seconds for which one that is there may be silent
OWNERS = {  # who offers a service of the type
    "vljepa_ros/srv/Ask": "perception",
    "vljepa_ros/srv/Decode": "decoder",
    "vljepa_ros/srv/Recall": "memory",
}
NUMBERS = {  # of a camera: the line's name, ours, and the heading
    "rate in (Hz)": ("rate_in", "Hz in"),
    "rate out (Hz)": ("rate_out", "Hz out"),
    "frame age (s)": ("age", "age (s)"),
    "dropped": ("dropped", "dropped"),
    "changes": ("changes", "changes"),
    "new from (grey levels)": ("gate_threshold", "new from"),
}
UNITS = {  # of settings; of a camera's, by the last part of their name
    "rate": "steps a second", "gate_threshold": "grey levels, at the least",
    "change_threshold": "Ward cost", "candidate": "steps", "min_segment": "steps",
    "hysteresis": "change score", "watch_threshold": "cosine", "cosine": "cosine",
    "margin": "cosine",
}  # fmt: skip
OK = b"\0"  # the level of what is well


def status(
    namespace: str = typer.Option("", help="Only nodes in this namespace; empty: everywhere."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show what runs: nodes, bundles, cameras, rates, and effective thresholds with their origin.

    Exit code 1 where nothing runs, or nothing that runs says anything.
    """
    inside = checked_namespace("--namespace", namespace)
    with joined("status") as graph:
        seen = Gathered(graph.node, inside)
        seen.gather(graph)
        report = seen.report()
    if as_json:
        print_json(report)
    else:
        _print(report)


class Gathered:
    """What the nodes in `namespace` (empty: all) have said of themselves to `node`."""

    def __init__(self, node: Any, namespace: str) -> None:
        from diagnostic_msgs.msg import DiagnosticArray

        self._node = node
        self._lock = threading.RLock()
        self._heard: dict[str, float] = {}  # time.monotonic() of each node's last line
        self._prefix = f"{namespace}/"
        self._lines: dict[str, dict[str, Any]] = defaultdict(dict)  # by node and part
        self._elsewhere: set[str] = set()  # nodes of other namespaces
        self._infos: dict[int, Any] = {}  # ModelInfo by stream
        self._topics: set[str] = set()
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_health, 100)

    def gather(self, graph: Joined) -> None:
        """Listen until all that are there have spoken. VLJepaError where there is nothing."""
        began = news = time.monotonic()
        found = float("inf")  # when somebody was
        known: list[Any] = []
        while True:
            graph.spin()
            if graph.stopped:
                raise VLJepaError("Stopped before the nodes had spoken.")
            self._subscribe()
            now, there, told = time.monotonic(), self._there(), self._ours()
            if known != (known := [self._node.get_node_names(), there, told]):
                news = now
            if there or told:
                found = min(found, now)
            elif now - began >= calls.LOOK:
                raise VLJepaError(self._nobody())
            silent = there - told
            if told and not silent and now - news >= ROUND and self._has_infos():
                return
            if now - found >= PATIENCE:
                break
        if not told:
            are = "is there and says" if len(silent) == 1 else "are there and say"
            raise VLJepaError(
                f"{', '.join(sorted(silent))} {are} nothing: see the log, end what hangs, start "
                "it again."
            )

    def current(self) -> dict[str, Any]:
        """The report for one that goes on listening, in any thread: of who still speaks."""
        with self._lock:
            self._subscribe()
            oldest = time.monotonic() - QUIET
            for name in [name for name, heard in self._heard.items() if heard < oldest]:
                del self._heard[name], self._lines[name]
            return self.report()

    def report(self) -> dict[str, Any]:
        """All of it, as `--json` has it."""
        nodes = []
        for name in sorted(self._ours() | self._there()):
            own = self._lines.get(name, {})
            nodes.append(
                {
                    "name": name,
                    "state": _state(own),
                    "model_id": _values(own, "state").get("model_id", ""),
                    "at": _values(own, "page").get("url") or _values(own, "video").get("source", "")
                    or _values(own, "store").get("folder", ""),
                    "words": _values(own, "words").get("words", ""),
                    "engines": [
                        {"name": part.removeprefix("engine "), **_engine(_values(own, part))}
                        for part in own
                        if part.startswith("engine ")
                    ],
                    "problems": list(_problems(own)),
                }
            )  # fmt: skip
        streams = [self._stream(name) for name in self._perceiving()]
        return record("status", nodes=nodes, streams=streams)

    # -------------------------------------------------------------- inside

    def _on_health(self, message: Any) -> None:
        for one in message.status:
            name, colon, part = one.name.partition(": ")
            full = f"/{name}"
            if colon and full.startswith(self._prefix):
                with self._lock:
                    self._lines[full][part], self._heard[full] = one, time.monotonic()
            elif colon and part == "state" and "model_id" in _pairs(one):
                self._elsewhere.add(full)

    def _subscribe(self) -> None:
        """Listen to every `model_info` there is."""
        from rclpy.qos import DurabilityPolicy, QoSProfile

        from vljepa_ros.msg import ModelInfo

        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for topic, kinds in self._node.get_topic_names_and_types():
            if "vljepa_ros/msg/ModelInfo" in kinds and topic not in self._topics:
                self._topics.add(topic)
                self._node.create_subscription(ModelInfo, topic, self._on_info, latched)

    def _on_info(self, info: Any) -> None:
        with self._lock:
            self._infos[info.stream_id] = info

    def _ours(self) -> set[str]:
        """The nodes of this package that have spoken."""
        return {
            name
            for name, own in self._lines.items()
            if "model_id" in _values(own, "state") or "page" in own or "video" in own
        }

    def _there(self) -> set[str]:
        """The nodes in the graph that offer a service of this package."""
        found: set[str] = set()
        node = self._node
        for name, namespace in node.get_node_names_and_namespaces():
            full = f"{namespace.rstrip('/')}/{name}"
            try:
                offered = node.get_service_names_and_types_by_node(name, namespace)
            except Exception:  # rclpy's NodeNameNonExistentError: it has just gone
                continue
            if any(kind in OWNERS for _, kinds in offered for kind in kinds):
                (found if full.startswith(self._prefix) else self._elsewhere).add(full)
        return found

    def _perceiving(self) -> list[str]:
        return sorted(name for name in self._ours() if "stream" in self._lines[name])

    def _has_infos(self) -> bool:
        """Whether every node with a stream has said which."""
        return all(self._info(name) is not None for name in self._perceiving())

    def _info(self, name: str) -> Any:
        return self._infos.get(int(_values(self._lines[name], "stream").get("id", 0)))

    def _stream(self, name: str) -> dict[str, Any]:
        """What a perception node makes of its cameras, and by which settings."""
        own, info = self._lines[name], self._info(name)
        cameras = []
        for part in sorted(own):
            kind, _, camera = part.partition(" ")
            if kind == "camera":
                values = _values(own, part)
                numbers = {
                    key: float(values[line]) for line, (key, _) in NUMBERS.items() if line in values
                }
                cameras.append({"camera": camera, "topic": values.get("topic", ""), **numbers})
        return {
            "name": name,
            "model_id": _values(own, "state").get("model_id", ""),
            "queries": [] if info is None else [query for query in info.queries if query],
            "cameras": cameras,
            "settings": [] if info is None else [
                {"name": one.name, "value": one.value, "origin": one.origin}
                for one in info.settings
            ],
        }  # fmt: skip

    def _nobody(self) -> str:
        domain = os.environ.get("ROS_DOMAIN_ID", "0")
        if self._elsewhere:
            where = sorted({name.rpartition("/")[0] for name in self._elsewhere})
            places = " or ".join(f"--namespace {one}" if one else "no --namespace" for one in where)
            return (
                f"No node of vljepa_ros runs in {self._prefix.rstrip('/')}, ROS domain {domain}; "
                f"others do: give {places}."
            )
        where_not = f" in {self._prefix.rstrip('/')}," if self._prefix != "/" else " in"
        return (
            f"No node of vljepa_ros runs{where_not} ROS domain {domain}: start vljepa up or the "
            "launch file, with the same ROS_DOMAIN_ID."
        )


def _pairs(line: Any) -> dict[str, str]:
    return {pair.key: pair.value for pair in line.values}


def _values(own: dict[str, Any], part: str) -> dict[str, str]:
    """The values of a line; none where the node has not said it."""
    return _pairs(own[part]) if part in own else {}


def _engine(values: dict[str, str]) -> dict[str, str]:
    return {key: values.get(key, "") for key in ("backend", "precision")}


def _state(own: dict[str, Any]) -> str:
    """A node's state in a word or two."""
    if not own:
        return "silent"
    if "state" in own:
        return _values(own, "state")["state"]
    return str(own["page" if "page" in own else "video"].message)


def _problems(own: dict[str, Any]) -> Iterator[str]:
    """What a node says of itself that is not well."""
    for part, line in sorted(own.items()):
        if line.level != OK and line.message != _values(own, part).get("state"):
            yield line.message if part == "state" else f"{part}: {line.message}"


def _print(report: dict[str, Any]) -> None:
    nodes, streams = report["nodes"], report["streams"]
    rows = [(one["name"], one["state"], one["model_id"] or one["at"]) for one in nodes]
    print_table(("node", "state", "what"), rows)
    for stream in streams:
        console.print()
        _print_stream(stream, next(one for one in nodes if one["name"] == stream["name"]))
    problems = [f"{one['name']}: {problem}" for one in nodes for problem in one["problems"]]
    if problems:
        console.print()
    for problem in problems:
        console.print(problem, style="yellow")


def _print_stream(stream: dict[str, Any], node: dict[str, Any]) -> None:
    engines = [f"{one['name']} on {one['backend']} ({one['precision']})" for one in node["engines"]]
    console.print(f"{stream['name']}: {', '.join(engines)}")
    for query in stream["queries"]:
        console.print(f"asked: {query}")
    headings = [heading for _, heading in NUMBERS.values()]
    rows = [
        [one["camera"], one["topic"], *(f"{one[key]:.4g}" for key, _ in NUMBERS.values())]
        for one in stream["cameras"]
    ]
    if rows:
        console.print()
        print_table(("camera", "topic", *headings), rows, right=headings)
    if stream["settings"]:
        console.print()
        settings = [
            (one["name"], f"{one['value']:g}", UNITS.get(one["name"].rpartition(".")[2], ""),
             one["origin"])
            for one in stream["settings"]
        ]  # fmt: skip
        print_table(("setting", "value", "unit", "from"), settings, right=("value",))
