"""The examples as processes, beside a real graph: they do what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from geometry_msgs.msg import Twist
from graph import DEADLINE, NodeProcess, Probe, Stream, domain, end_with_parent, noise, wait

from vljepa_ros.action import Watch
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.msg import Utterance
from vljepa_ros.srv import Ask
from vljepa_ros.stamps import iso, to_ns

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
INTERRUPTED = Path(__file__).resolve().parents[1] / "support" / "interrupted.py"
TREE = pytest.param(
    "behaviour_tree",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("py_trees") is None,
        reason="py_trees is missing: pip install py_trees",
    ),
)
SAFE, DANGER = noise(1), noise(2)
PATIENCE = 900.0  # seconds: a busy machine must not make a stream old


class Example:
    """A script of examples/, with parameters.

    `interrupted`: a message type; Ctrl-C comes while rclpy makes the first of it.
    """

    def __init__(self, name: str, domain_id: int, interrupted: str = "", **parameters: Any) -> None:
        given = [part for k, v in parameters.items() for part in ("-p", f"{k}:={v}")]
        prefix = [str(INTERRUPTED), interrupted] if interrupted else []
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *prefix, str(EXAMPLES / f"{name}.py"), "--ros-args", *given],
            stdout=self.log, stderr=subprocess.STDOUT, cwd=tempfile.gettempdir(),
            env={**os.environ, "ROS_DOMAIN_ID": str(domain_id), "PYTHONUNBUFFERED": "1"},
            preexec_fn=end_with_parent,
        )  # fmt: skip

    @property
    def text(self) -> str:
        return Path(self.log.name).read_text()

    def end(self) -> None:
        """Ctrl-C; it ends well, and calls nothing of that an error."""
        try:
            assert self.process.poll() is None, self.text
            before = self.text
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
            assert "[ERROR]" not in self.text.removeprefix(before)
            self.ended()
        finally:
            self.close()

    def ended(self) -> None:
        """It ends well, without another Ctrl-C."""
        try:
            assert self.process.wait(20) == 0, self.text
            assert "Traceback" not in self.text
            assert "never retrieved" not in self.text
        finally:
            self.close()

    def close(self) -> None:
        """Let nothing be left."""
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": 0.5}
    return make_bundle(tmp_path_factory.mktemp("examples") / "tiny", thresholds=thresholds)


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def probe(bundle: Path, domain_id: int) -> Iterator[Probe]:
    nodes = [
        NodeProcess("perception_node", domain_id, bundle=bundle, max_gap=PATIENCE),
        NodeProcess("decoder_node", domain_id, bundle=bundle),
    ]
    for node in nodes:
        node.wait_for_log("Active.")
    probe = Probe(domain_id)
    yield probe
    probe.close()
    for node in nodes:
        assert node.end() == 0
        assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def camera(probe: Probe) -> Stream:
    return Stream(probe, "camera", SAFE)


def settled(camera: Stream, picture: np.ndarray) -> np.ndarray:
    """The embedding of a picture that fills the window."""
    for _ in range(6):
        (step,) = camera.step(picture)
    return np.asarray(step.embedding)


def condition(camera: Stream, bundle: Path) -> tuple[str, float]:
    """A text that fits DANGER and not SAFE, and the threshold between."""
    safe, danger = settled(camera, SAFE), settled(camera, DANGER)
    words = "red green blue cube ball block falls rolls hand table".split()
    texts = [f"{a} {b}" for a in words for b in words]
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", parts=("y_encoder",))
    written = model.embed_text(texts)
    model.close()
    scores = np.stack([written @ safe, written @ danger])
    scores[:, scores[1] <= 0.1] = 0  # a threshold is to be positive
    best = int(np.argmax(scores[1] - np.maximum(scores[0], 0)))
    low, high = max(float(scores[0, best]), 0.0), float(scores[1, best])
    assert high - low > 0.1
    return texts[best], (low + high) / 2


def test_patrol_drives_stops_asks_and_goes_on(
    camera: Stream, probe: Probe, bundle: Path, domain_id: int
) -> None:
    text, threshold = condition(camera, bundle)
    speeds: list[float] = []
    probe.node.create_subscription(Twist, "cmd_vel", lambda m: speeds.append(m.linear.x), 100)
    settled(camera, SAFE)
    patrol = Example(
        "patrol", domain_id, condition=text, threshold=round(threshold, 4), speed=0.25, pause=0.5
    )

    def see(picture: np.ndarray, until: Callable[[], Any], what: str) -> None:
        def met() -> bool:
            camera.step(picture)
            return bool(until())

        probe.wait(met, f"{what}:\n{patrol.text}", deadline=60.0)

    try:
        see(SAFE, lambda: speeds and speeds[-1] == 0.25, "it to drive")
        see(DANGER, lambda: f"I stop: {text}" in patrol.text, "it to stop")
        see(DANGER, lambda: speeds[-1] == 0.0, "it to stand")
        see(DANGER, lambda: "I see: " in patrol.text, "it to ask")
        assert "Of what I expect here: " in patrol.text
        see(SAFE, lambda: speeds[-1] == 0.25, "it to go on")
        # Nothing is seen any more: it no longer drives.
        probe.wait(lambda: speeds[-1] == 0.0, "it to stand while the camera stands still")
        see(SAFE, lambda: speeds[-1] == 0.25, "it to go on")
    finally:
        patrol.end()
    probe.wait_for_health("perception: watches", lambda values: values["standing"] == "0")
    probe.wait(lambda: speeds[-1] == 0.0, "it to be left standing")


def test_patrol_stands_where_nobody_sees_for_it() -> None:
    alone = domain()
    probe = Probe(alone)
    speeds: list[float] = []
    probe.node.create_subscription(Twist, "cmd_vel", lambda m: speeds.append(m.linear.x), 100)
    patrol = Example("patrol", alone, pause=0.1)
    try:
        probe.wait(lambda: "I stand still, as I cannot see: Nobody offered /watch" in patrol.text,
                   f"it to say so:\n{patrol.text}")  # fmt: skip
        probe.wait(lambda: speeds, "its commands")
        assert set(speeds) == {0.0}
    finally:
        patrol.end()
        probe.close()


def test_narrator_keeps_a_log(camera: Stream, probe: Probe, domain_id: int, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    narrator = Example("narrator", domain_id, log=path, candidates="['one', 'two', 'three']")
    written: list[dict[str, Any]] = []

    def lines() -> int:
        written[:] = [json.loads(line) for line in path.read_text().splitlines()]
        return len(written)

    try:
        wait(lambda: "I write to" in narrator.text, lambda: f"it to begin:\n{narrator.text}")
        seeds = iter(range(100, 1000))

        def three() -> bool:
            settled(camera, noise(next(seeds)))
            return lines() >= 3

        probe.wait(three, lambda: f"three lines:\n{narrator.text}", deadline=60.0)
        said = {(to_ns(u.segment_start), u.text) for u in probe.utterances}
        for line in written:
            assert (line["start_ns"], line["text"]) in said
            assert line["start"] == iso(line["start_ns"])
            assert line["camera"] == "camera"
            assert line["question"] == "How many objects are on the table?"
            assert line["answer"] in ("one", "two", "three")
            assert 1 / 3 <= line["certainty"] <= 1
            assert line["stamp_ns"] >= line["start_ns"]
        begun = [line["start_ns"] for line in written]
        assert begun == sorted(begun)
    finally:
        narrator.end()


@pytest.mark.parametrize("name", [TREE])
def test_a_behaviour_tree_waits_asks_and_branches(
    name: str, camera: Stream, probe: Probe, bundle: Path, domain_id: int
) -> None:
    text, threshold = condition(camera, bundle)
    question, candidates = "What is moving?", ["the cube", "the ball"]
    settled(camera, DANGER)
    asked = probe.call(Ask, "ask", Ask.Request(question=question, candidates=candidates))
    assert asked.success, asked.message
    settled(camera, SAFE)
    trees = {
        expected: Example(
            name, domain_id, condition=text, threshold=round(threshold, 4), pause=0.2,
            question=question, candidates=candidates, expected=expected,
        )
        for expected in candidates
    }  # fmt: skip
    well = trees.pop(asked.answer)
    (other,) = trees.values()

    def see(picture: np.ndarray, until: Callable[[], Any], what: str) -> None:
        def met() -> bool:
            camera.step(picture)
            return bool(until())

        probe.wait(met, lambda: f"{what}:\n{well.text}\n{other.text}", deadline=120.0)

    def standing() -> int:
        told = "perception: watches" in probe.health
        return int(probe.values("perception: watches")["standing"]) if told else 0

    try:
        see(SAFE, lambda: standing() == 2, "both to wait")
        assert "ask: " not in well.text + other.text  # the tree waits where it is
        see(DANGER, lambda: "]: All is well." in well.text, "it to find all well")
        see(DANGER, lambda: "]: I put it right." in other.text, "it to find that it is not")
        shown = rf"ask: {re.escape(question)} .+{asked.answer}\."  # the tree, after each round
        see(DANGER, lambda: re.search(shown, well.text), "it to show its tree")
        assert f"wait until: {text}" in well.text
        # It begins anew, and waits again, as the condition no longer holds.
        probe.health.pop("perception: watches", None)
        see(SAFE, lambda: standing() == 2, "both to wait again")
    finally:
        try:
            well.end()
        finally:
            other.end()
    probe.wait_for_health("perception: watches", lambda values: values["standing"] == "0")


@pytest.mark.parametrize("name", [TREE])
def test_a_leaf_that_is_refused_fails_and_says_why(
    name: str, camera: Stream, probe: Probe, domain_id: int
) -> None:
    tree = Example(name, domain_id, camera="nowhere", condition="a hand", pause=0.1)
    try:
        probe.wait(
            lambda: tree.text.count("]: wait until: a hand: ") > 1, lambda: f"it to:\n{tree.text}"
        )
        assert "'nowhere'" in tree.text
    finally:
        tree.end()


@pytest.mark.parametrize(("name", "package"), [("behaviour_tree", "py_trees"), ("away", "mcp")])
def test_a_package_that_is_missing_is_a_sentence(
    name: str, package: str, domain_id: int, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('{package}')\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    refused = run(name, domain_id=domain_id, PYTHONPATH=path)
    said = f"{name}.py needs the package {package}: pip install {package}\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", said)


def run(
    name: str, *arguments: str, domain_id: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    """An example with these arguments, which ends by itself."""
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments], cwd=tempfile.gettempdir(),
        env={**os.environ, "ROS_DOMAIN_ID": str(domain_id), **environment},
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["patrol", "narrator", TREE])
def test_usage_and_refusals_start_nothing(name: str, domain_id: int) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    declared = set(re.findall(r'^    Spec\("([\w.]+)"', source, re.M))
    helped = run(name, "--help", domain_id=domain_id)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert set(re.findall(r"^  ([\w.]+):=", helped.stdout, re.M)) == declared != set()
    assert helped.stdout.startswith(f"Usage: {name}.py [--ros-args")
    for arguments, code, words in (
        (["--speed", "3"], 2, f"{name}.py: unknown argument '--speed'; parameters are given after"),
        (["--ros-args", "-p", "conditon:=x", "-p", "lok:=x"], 1, "Parameter 'conditon' does not"),
        (["--ros-args", "-p", "conditon:=x", "--", "x"], 2, "unknown argument 'x'"),
        (["--ros-args", "-p", "log:=3", "-p", "pause:=long"], 1, "must be a "),
        (["--ros-args", "--no-such"], 1, "ROS 2 does not start: "),
    ):
        refused = run(name, *arguments, domain_id=domain_id)
        assert (refused.returncode, refused.stdout) == (code, ""), refused.stderr
        assert words in refused.stderr and "Traceback" not in refused.stderr
        assert "I drive" not in refused.stderr and "I write" not in refused.stderr


@pytest.mark.parametrize(
    ("name", "topic", "kind", "type_name"),
    [("patrol", "watch/_action/feedback", Watch.Impl.FeedbackMessage,
      "vljepa_ros.action.Watch.Impl.FeedbackMessage"),
     ("narrator", "utterances", Utterance, "vljepa_ros.msg.Utterance"),
     pytest.param(
         "behaviour_tree", "watch/_action/feedback", Watch.Impl.FeedbackMessage,
         "vljepa_ros.action.Watch.Impl.FeedbackMessage", marks=TREE.marks)],
)  # fmt: skip
def test_ctrl_c_while_a_message_is_made(
    name: str, topic: str, kind: Any, type_name: str, tmp_path: Path
) -> None:
    alone = domain()
    probe = Probe(alone)
    publisher = probe.node.create_publisher(kind, topic, 10)
    parameters = {"log": tmp_path / "log.jsonl"} if name == "narrator" else {}
    example = Example(name, alone, interrupted=type_name, **parameters)
    try:

        def over() -> bool:
            publisher.publish(kind())
            return example.process.poll() is not None

        probe.wait(over, lambda: f"it to end:\n{example.text}")
        example.ended()
    finally:
        example.close()
        probe.close()
