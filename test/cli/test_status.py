"""`vljepa status`: what runs, and which settings are in effect; and where nothing does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle, with_phrases
from graph import DEADLINE, NodeProcess, Probe, domain
from json_records import check_record

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.srv import Ask

LOOK, PATIENCE = DEADLINE, DEADLINE  # seconds: a busy machine may see what is there late
NAMESPACE = "/robot"


def run(
    domain_id: int, *arguments: str, look: float = LOOK, patience: float = PATIENCE
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    code = (
        "from vljepa_ros.cli.live import calls, status\n"
        f"calls.LOOK, status.PATIENCE = {look}, {patience}\n"
        "from vljepa_ros.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "status", *arguments], capture_output=True, text=True,
        env={**os.environ, "ROS_DOMAIN_ID": str(domain_id), "COLUMNS": "80"},
        cwd=tempfile.gettempdir(), timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_bundle(tmp_path_factory.mktemp("status") / "tiny")
    return with_phrases(folder, ["a cube"], cosine=0.25)


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def probe(bundle: Path, domain_id: int) -> Iterator[Probe]:
    values = {"bundle": bundle, "cameras": ["front"], "gate_threshold": 2.0}
    nodes = [
        NodeProcess("perception_node", domain_id, NAMESPACE, **values),
        NodeProcess("decoder_node", domain_id, NAMESPACE, bundle=bundle),
        NodeProcess("web_node", domain_id, NAMESPACE, port=0),
    ]
    for node in nodes[:2]:
        node.wait_for_log("Active.")
    nodes[2].wait_for_log("The page is at")
    probe = Probe(domain_id, NAMESPACE)
    yield probe
    probe.close()
    for node in nodes:
        assert node.end() == 0


def told(domain_id: int, *arguments: str, until: str = "") -> str:
    """What the command prints, once it has heard of all nodes: each run looks for seconds alone.

    And once it says `until`.
    """
    end = time.monotonic() + 2 * DEADLINE
    while True:
        code, out, err = run(domain_id, *arguments)
        assert (code, err) == (0, "")
        names = ("perception", "decoder", "web")
        if all(f"{NAMESPACE}/{name}" in out for name in names) and until in out:
            return out
        assert time.monotonic() < end, out


def report(domain_id: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(domain_id, "--json"))
    check_record("status", found)
    return found


def test_it_tells_what_runs_and_what_is_in_effect(
    probe: Probe, domain_id: int, bundle: Path
) -> None:
    model_id = load_bundle(bundle).model_id
    out = told(domain_id, until="/robot/perception: camera front: ")  # nobody publishes it, and why
    lines = [line.split() for line in out.splitlines()]
    assert ["/robot/perception", "active", model_id] in lines
    assert ["/robot/decoder", "active", model_id] in lines
    assert any(line[:2] == ["/robot/web", "served"] and "http://" in line[2] for line in lines)
    assert any(line[:2] == ["front", "/robot/front/image_raw"] for line in lines)
    for setting in (
        "rate 4 steps a second bundle", "gate_threshold 2 grey levels, at the least parameter",
        "change_threshold 0.5 Ward cost bundle", "watch_threshold 0.5 cosine bundle",
        "phrases.cosine 0.25 cosine bundle",
    ):  # fmt: skip
        assert setting.split() in lines
    assert max(map(len, out.splitlines()[:3])) < 80
    assert "…" not in out


def test_a_parameter_that_is_set_while_it_runs_is_in_effect(probe: Probe, domain_id: int) -> None:
    def thresholds() -> dict[str, tuple[float, str]]:
        (stream,) = report(domain_id)["streams"]
        assert stream["name"] == "/robot/perception"
        return {one["name"]: (one["value"], one["origin"]) for one in stream["settings"]}

    assert probe.set("perception", change_threshold=0.125).successful
    try:
        assert thresholds()["change_threshold"] == (0.125, "parameter")
        info = probe.infos[-1]
        probe.wait(lambda: probe.infos[-1] is not info, "another model_info")
        said = {one.name: (one.value, one.origin) for one in probe.infos[-1].settings}
        assert said["change_threshold"] == (0.125, "parameter")
    finally:
        assert probe.set("perception", change_threshold=0.0).successful
    name = "robot/perception: settings"
    probe.wait_for_health(name, lambda v: v["change_threshold"] == "0.5 (bundle)")
    assert probe.values(name)["gate_threshold"] == "2 (parameter)"


def test_another_namespace_is_named(probe: Probe, domain_id: int) -> None:
    end = time.monotonic() + 2 * DEADLINE
    wanted = (
        f"No node of vljepa_ros runs in /robot1, ROS domain {domain_id}; others do: give "
        "--namespace /robot.\n"
    )
    while (found := run(domain_id, "--namespace", "robot1", look=3.0)) != (1, "", wanted):
        assert found[:2] == (1, "")
        assert time.monotonic() < end, found  # it may look for too short a time, on a busy machine


def test_without_a_graph() -> None:
    alone = domain()
    code, out, err = run(alone, look=0.5)
    assert (code, out) == (1, "")
    assert err == (
        f"No node of vljepa_ros runs in ROS domain {alone}: start vljepa up or the launch file, "
        "with the same ROS_DOMAIN_ID.\n"
    )


def test_a_node_that_says_nothing_is_named() -> None:
    alone = domain()
    probe = Probe(alone)
    try:
        probe.node.create_service(Ask, "ask", lambda request, response: response)
        code, out, err = run(alone, patience=0.5)
        assert (code, out) == (1, "")
        assert err.startswith("/probe is there and says nothing: ")
    finally:
        probe.close()
