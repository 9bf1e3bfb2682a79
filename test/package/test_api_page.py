"""docs/ros-api.md says what the nodes declare, and what ROS's graph says that they offer."""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
pytest.importorskip("aiohttp", reason="not installed: pip install aiohttp")

import rclpy
from bundles import make_bundle
from diagnostic_msgs.msg import DiagnosticArray
from graph import Probe, domain, noise
from rclpy.action import get_action_server_names_and_types_by_node
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from vljepa_ros.nodes.decoder import DecoderNode
from vljepa_ros.nodes.memory.node import MemoryNode
from vljepa_ros.nodes.perception.node import PerceptionNode
from vljepa_ros.nodes.video import VideoNode
from vljepa_ros.web.node import WebNode

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "ros-api.md"
SCRIPT = ROOT / "scripts" / "api_tables.py"
NAMESPACE = "/robot"  # so that relative names and absolute ones differ
LIFECYCLE = ("perception", "decoder", "memory")
NODES = (*LIFECYCLE, "camera", "web")
KINDS = ("subscribes", "publishes", "service", "action", "calls")
# On the page, and not there in this test: no TF, nobody looks at the page, no text for RViz, or an
# older ROS.
MAY_BE_ABSENT = {"/tf", "/tf_static", "~/get_type_description", "spoken"}


def test_the_parameter_tables_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("api_tables", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = PAGE.read_text(encoding="utf-8")
    assert len(module.TABLE.findall(text)) == len(module.SPECS) == len(NODES)
    assert text == module.filled(text), "run: python scripts/api_tables.py"


# ------------------------------------------------------------------ the page


def tables(section: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Header and rows of the tables of a section of the page, as cells."""
    text = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    (body,) = [part for part in text if part.startswith(f"{section}\n")]
    for block in re.findall(r"(?:^\|.*\n)+", body, flags=re.M):
        lines = [re.split(r"\s*(?<!\\)\|\s*", line.strip())[1:-1] for line in block.splitlines()]
        yield lines[0], lines[2:]


def sections(node: str) -> list[str]:
    common = ["Every node", *(["Every lifecycle node"] if node in LIFECYCLE else [])]
    return [*common, f"`{node}`"]


def documented(node: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Type and QoS by name, by kind, as the page says."""
    found: dict[str, dict[str, tuple[str, str]]] = {kind: {} for kind in KINDS}
    for section in sections(node):
        for header, rows in tables(section):
            if header[0] not in KINDS:
                continue
            for row in rows:
                qos = row[2] if "QoS" in header else ""
                policies = [part for part in qos.split(", ") if not part.isdigit()]
                found[header[0]][row[0].strip("`")] = row[1], ", ".join(policies)
    return found


def lines(node: str) -> dict[str, set[str]]:
    """The values of each line of /diagnostics, as the page says."""
    found: dict[str, set[str]] = {}
    for section in sections(node):
        for header, rows in tables(section):
            for row in rows if header[0] == "line" else []:
                for line in re.findall(r"`(.+?)`", row[0]):
                    found[line] = set(re.findall(r"`(.+?)`", row[1]))
    return found


# ------------------------------------------------------------------ the graph


class Graph:
    """Every node, in this process: what ROS and /diagnostics say of them."""

    def __init__(self, folder: Path) -> None:
        bundle = make_bundle(folder / "tiny")
        for k in range(20):
            cv2.imwrite(str(folder / f"{k:02d}.png"), noise(k))
        number = domain()
        self.context = rclpy.Context()
        namespace = ["--ros-args", "-r", f"__ns:={NAMESPACE}"]
        rclpy.init(context=self.context, domain_id=number, args=namespace)
        model = {"bundle": str(bundle)}
        cameras = {"cameras": ["front", "rear"], "rear.transport": "compressed"}
        self.nodes = [
            self._node(PerceptionNode, **model, **cameras),
            self._node(DecoderNode, **model),
            self._node(MemoryNode, **model, store=str(folder / "store")),
            self._node(VideoNode, source=str(folder), camera="front", loop=True),
            self._node(WebNode, port=0),
        ]
        self.executor = SingleThreadedExecutor(context=self.context)
        for node in self.nodes:
            self.executor.add_node(node)
        self.probe = Probe(number, NAMESPACE)
        self.health: dict[str, dict[str, set[str]]] = defaultdict(dict)
        self.probe.node.create_subscription(DiagnosticArray, "/diagnostics", self._heard, 100)

    def _node(self, kind: Any, **parameters: Any) -> Any:
        given = [Parameter(name, value=value) for name, value in parameters.items()]
        return kind(context=self.context, parameter_overrides=given)

    def _heard(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node, _, line = status.name.partition(": ")
            keys = {pair.key for pair in status.values}
            self.health[node.rpartition("/")[2]][line] = keys

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def spun() -> Any:
            for _ in range(20):
                self.executor.spin_once(timeout_sec=0.001)
            return condition()

        self.probe.wait(spun, what)

    def close(self) -> None:
        self.probe.close()
        for node in self.nodes:
            node.end()
            node.destroy_node()
        self.executor.shutdown(timeout_sec=0)
        rclpy.shutdown(context=self.context)

    def offered(self, node: str) -> dict[str, dict[str, tuple[str, str]]]:
        """Type and QoS by name, by kind, as ROS says."""
        me, where = self.probe.node, (node, NAMESPACE)
        listed = {
            "subscribes": me.get_subscriber_names_and_types_by_node(*where),
            "publishes": me.get_publisher_names_and_types_by_node(*where),
            "service": me.get_service_names_and_types_by_node(*where),
            "action": get_action_server_names_and_types_by_node(me, *where),
            "calls": me.get_client_names_and_types_by_node(*where),
        }
        endpoints = {
            "subscribes": me.get_subscriptions_info_by_topic,
            "publishes": me.get_publishers_info_by_topic,
        }
        found: dict[str, dict[str, tuple[str, str]]] = {}
        for kind, names in listed.items():
            found[kind] = {}
            for name, types in names:
                if "/_action/" in name:  # parts of an action
                    continue
                (of_type,) = types
                infos = endpoints[kind](name) if kind in endpoints else []
                (qos,) = {policies(i) for i in infos if i.node_name == node} or {""}
                found[kind][written(name, node)] = of_type, qos
        return found


def written(name: str, node: str) -> str:
    """A name of the graph as the page writes it."""
    name = name.removeprefix(f"{NAMESPACE}/")
    name = re.sub(r"^(front|rear)/", "<camera>/", name)
    return re.sub(rf"^{node}/", "~/", name)


def policies(info: Any) -> str:
    qos = info.qos_profile
    reliable = qos.reliability == ReliabilityPolicy.RELIABLE
    latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
    return ("reliable" if reliable else "best effort") + (", latched" if latched else "")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    graph = Graph(tmp_path_factory.mktemp("api"))
    # The last to come: words of the first change, in perception's and the decoder's lines.
    graph.until(
        lambda: (
            "camera front" in graph.health["decoder"]
            and "<camera>/thumbnail" in graph.offered("memory")["subscribes"]
            and all("state" in graph.health[node] for node in LIFECYCLE)
            and "video" in graph.health["camera"]
            and "page" in graph.health["web"]
            and "model_info" in graph.offered("web")["subscribes"]
        ),
        "every node to be at work",
    )
    yield graph
    graph.close()


@pytest.mark.parametrize("node", NODES)
def test_what_a_node_offers_is_on_the_page_and_nothing_else(graph: Graph, node: str) -> None:
    page, there = documented(node), graph.offered(node)
    for kind in ("subscribes", "publishes", "service", "action"):
        wanted = {
            name: row
            for name, row in page[kind].items()
            if name in there[kind] or name not in MAY_BE_ABSENT | absent(node)
        }
        assert there[kind] == wanted, f"{node} {kind}"
    for name, row in there["calls"].items():
        assert page["calls"][name][0] == row[0]


def absent(node: str) -> set[str]:
    """Nobody looks at the web node's page."""
    return {"<camera>/thumbnail"} if node == "web" else set()


@pytest.mark.parametrize("node", NODES)
def test_the_lines_of_diagnostics_are_on_the_page(graph: Graph, node: str) -> None:
    page = lines(node)
    for line, keys in graph.health[node].items():
        general = re.sub(r"^(camera|engine) .*", r"\1 <\1>", line)
        assert general in page, line
        if general == "stages":
            assert all(re.fullmatch(r"[a-z]+ p(50|99) \(ms\)", key) for key in keys)
        elif general == "engine <engine>":
            assert keys <= (page[general] or lines("perception")[general])
        else:
            assert keys == page[general], line
