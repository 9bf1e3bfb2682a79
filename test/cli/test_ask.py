"""`vljepa ask`, `classify`, `watch` and `recall` against a running graph, and without one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from bundles import make_bundle
from graph import DEADLINE, NodeProcess, Probe, Stream, domain, noise
from json_records import check_record
from terminals import open_terminal

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.srv import Ask, Classify
from vljepa_ros.stamps import iso, to_ns

COMMAND = [sys.executable, "-c", "from vljepa_ros.cli import main; main()"]
# A busy machine may see what is there late.
PATIENT = [
    sys.executable, "-c",
    "from vljepa_ros.cli.live import calls\n"
    f"calls.LOOK = {DEADLINE}\n"
    "from vljepa_ros.cli import main; main()",
]  # fmt: skip
CANDIDATES = ["the cube", "the ball", "a hand"]
THRESHOLD = 0.5  # below which a match is weak
PATIENCE = 900.0  # seconds: a busy machine must not make a stream old
SOON = ("--timeout", str(DEADLINE))
NOBODY = ("--timeout", "0.5")  # where nobody answers


class Command:
    """`vljepa ...` as a process beside the graph."""

    def __init__(
        self,
        domain_id: int,
        *arguments: str,
        terminal: int | None = None,
        command: Sequence[str] = PATIENT,
    ) -> None:
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, *arguments], stdout=self.out if terminal is None else terminal,
            stderr=self.err, stdin=subprocess.DEVNULL, cwd=tempfile.gettempdir(),
            env={**os.environ, "ROS_DOMAIN_ID": str(domain_id), "TERM": "xterm", "COLUMNS": "90"},
        )  # fmt: skip

    def result(self, stream: Stream | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; until then, the camera moves."""
        end = time.monotonic() + 2 * DEADLINE
        try:
            while self.process.poll() is None:
                assert time.monotonic() < end, (self.stdout(), self.stderr())
                if stream is not None:
                    stream.step(noise(0))
                else:
                    time.sleep(0.05)
            return self.process.returncode, self.stdout(), self.stderr()
        finally:
            self.process.kill()
            self.process.wait()

    def stdout(self) -> str:
        return os.pread(self.out.fileno(), 1 << 20, 0).decode()

    def stderr(self) -> str:
        return os.pread(self.err.fileno(), 1 << 20, 0).decode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": THRESHOLD}
    return make_bundle(tmp_path_factory.mktemp("ask") / "tiny", thresholds=thresholds)


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
    stream = Stream(probe, "camera", noise(0))
    for _ in range(6):
        stream.step(noise(0))
    return stream


@pytest.fixture(scope="module")
def likely(camera: Stream, bundle: Path) -> str:
    """A condition that what the camera sees meets, somewhat."""
    (step,) = camera.step(noise(0))
    words = "red green cube ball falls table".split()
    texts = [f"{a} {b}" for a in words for b in words]
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", parts=("y_encoder",))
    best = int(np.argmax(model.embed_text(texts) @ np.asarray(step.embedding)))
    model.close()
    return texts[best]


def said(response: Any) -> str:
    """What stderr has: what to make of the answer."""
    return response.message and response.message + "\n"


def scored(texts: Sequence[str], response: Any) -> list[dict[str, Any]]:
    """As JSON has it."""
    return [
        {"text": text, "score": round(s, 4), "cosine": round(c, 4), "weak": c < THRESHOLD}
        for text, s, c in zip(texts, response.scores, response.cosines)
    ]


def test_ask_with_candidates(camera: Stream, probe: Probe, domain_id: int) -> None:
    question = "what is red ?"
    wanted = probe.call(Ask, "ask", Ask.Request(question=question, candidates=CANDIDATES))
    options = [part for name in CANDIDATES for part in ("--candidate", name)]
    code, out, err = Command(domain_id, "ask", question, *options, *SOON).result()
    assert (code, err) == (0, said(wanted))
    rows = sorted(zip(wanted.scores, wanted.cosines, CANDIDATES), reverse=True)
    assert out.splitlines() == [
        f"score  cosine  (weak below {THRESHOLD:.2f})",
        *(f"{s:5.2f}  {c:6.2f}  {n}{'  (weak)' * (c < THRESHOLD)}" for s, c, n in rows),
    ]
    code, out, err = Command(domain_id, "ask", question, *options, "--json", *SOON).result()
    assert (code, err) == (0, said(wanted))
    check_record("ask", json.loads(out))
    assert json.loads(out) == {
        "camera": "", "stamp": iso(to_ns(wanted.stamp)), "stamp_ns": to_ns(wanted.stamp),
        "answer": wanted.answer, "scores": scored(CANDIDATES, wanted), "threshold": THRESHOLD,
        "familiarity": None, "message": wanted.message,
    }  # fmt: skip


def test_one_candidate_gets_its_cosine(camera: Stream, probe: Probe, domain_id: int) -> None:
    """And not 100 %."""
    given = ("ask", "what is red ?", "--candidate", CANDIDATES[0], *SOON)
    wanted = probe.call(Ask, "ask", Ask.Request(question=given[1], candidates=CANDIDATES[:1]))
    code, out, err = Command(domain_id, *given).result()
    assert (code, err) == (0, said(wanted))
    weak = "  (weak)" * (wanted.cosines[0] < THRESHOLD)
    assert out.splitlines() == [
        f"cosine  (weak below {THRESHOLD:.2f})",
        f"{wanted.cosines[0]:6.2f}  {CANDIDATES[0]}{weak}",
    ]


def test_an_open_answer(camera: Stream, probe: Probe, domain_id: int) -> None:
    wanted = probe.call(Ask, "ask", Ask.Request(question="what is happening ?"))
    assert wanted.success
    code, out, _ = Command(domain_id, "ask", "what is happening ?", *SOON).result()
    assert (code, out) == (0, wanted.answer + "\n")


def test_classify(camera: Stream, probe: Probe, domain_id: int) -> None:
    wanted = probe.call(
        Classify, "classify", Classify.Request(labels=CANDIDATES, label_template="one {}")
    )
    options = (*CANDIDATES, "--template", "one {}", *SOON)
    code, out, err = Command(domain_id, "classify", *options).result()
    assert (code, err) == (0, said(wanted))
    rows = zip(wanted.labels, wanted.scores, wanted.cosines)
    assert out.splitlines()[1:] == [
        f"{s:5.2f}  {c:6.2f}  {n}{'  (weak)' * (c < THRESHOLD)}" for n, s, c in rows
    ]
    code, out, _ = Command(domain_id, "classify", *options, "--json").result()
    assert code == 0
    check_record("classify", json.loads(out))
    assert json.loads(out)["scores"] == scored(wanted.labels, wanted)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["ask", " "], "The question is empty"),
     (["ask", "what ?", "--camera", "rear"], "There is no camera 'rear'"),
     (["classify", "cube", "--template", "a cube"], "{}"),
     (["watch", "a cube", "--camera", "rear"], "There is no camera 'rear'"),
     (["ask", "what ?", "--namespace", "robot 1"], "'robot 1' is no namespace")],
)  # fmt: skip
def test_a_refusal_is_one_sentence(
    camera: Stream, domain_id: int, arguments: list[str], sentence: str
) -> None:
    code, out, err = Command(domain_id, *arguments).result()
    assert (code, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_watch_until_it_is_true(camera: Stream, domain_id: int, likely: str) -> None:
    code, out, err = Command(domain_id, "watch", likely, "--threshold", "0.01").result(camera)
    assert (code, err) == (0, "")
    assert "  camera  true  (" in out.splitlines()[-1]
    command = Command(domain_id, "watch", likely, "--threshold", "0.01", "--json")
    code, out, err = command.result(camera)
    assert (code, err) == (0, "")
    *scores, moment = [json.loads(line) for line in out.splitlines()]
    for found in scores:
        check_record("watch: score", found)
        assert found["text"] == likely
    check_record("watch: moment", moment)
    assert (moment["type"], moment["text"], moment["camera"]) == ("moment", likely, "camera")
    assert moment["score"] >= 0.01
    assert moment["start_ns"] <= moment["end_ns"] <= camera.now


def test_watch_shows_scores_until_its_time_is_over(
    camera: Stream, domain_id: int, likely: str
) -> None:
    command = Command(domain_id, "watch", likely, "--threshold", "1", "--timeout", "2")
    code, out, err = command.result(camera)
    assert code == 1
    assert f"'{likely}' did not come true within 2 s" in err
    assert err.count("\n") == 1
    scores = [float(line.split()[-1]) for line in out.splitlines()]
    assert scores and all(0 < score < 1 for score in scores)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_watch(
    camera: Stream, probe: Probe, domain_id: int, likely: str, number: int
) -> None:
    command = Command(domain_id, "watch", likely, "--threshold", "1")
    probe.wait_for_health("perception: watches", lambda values: values["standing"] == "1")
    command.process.send_signal(number)
    code, _, err = command.result()
    assert (code, err) == (1, f"Stopped before '{likely}' was true.\n")
    probe.wait_for_health("perception: watches", lambda values: values["standing"] == "0")


def test_a_watch_that_nobody_reads_ends(
    camera: Stream, probe: Probe, domain_id: int, likely: str
) -> None:
    """As behind `| head -1`: without a word, and at the node, too."""
    process = subprocess.Popen(
        [*COMMAND, "watch", likely, "--threshold", "1", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "ROS_DOMAIN_ID": str(domain_id)},
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        os.set_blocking(process.stdout.fileno(), False)

        def printed() -> bytes | None:
            camera.step(noise(0))
            return process.stdout.readline()  # type: ignore[union-attr]

        probe.wait(printed, "a score")
        process.stdout.close()  # and no score comes any more that could fail
        assert (process.stderr.read(), process.wait(DEADLINE)) == (b"", 141)
        probe.wait_for_health("perception: watches", lambda values: values["standing"] == "0")
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_while_the_answer_is_made(camera: Stream, domain_id: int) -> None:
    interrupted = [sys.executable, str(Path(__file__).parents[1] / "support" / "interrupted.py")]
    command = [*interrupted, "vljepa_ros.srv.Ask.Response", "vljepa"]
    code, out, err = Command(domain_id, "ask", "what is red?", *SOON, command=command).result()
    if code:  # else it had come
        assert (code, out, err) == (1, "", "Stopped before there was an answer.\n")
    assert "Traceback" not in err


def test_a_terminal_gets_a_bar(camera: Stream, domain_id: int, likely: str) -> None:
    master, slave = open_terminal()
    command = Command(
        domain_id, "watch", likely, "--threshold", "1", "--timeout", "2", terminal=slave
    )
    os.close(slave)
    os.set_blocking(master, False)
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # nothing there, or closed
            shown.extend(os.read(master, 1 << 16))

    while command.process.poll() is None:
        camera.step(noise(0))
        read()
    read()
    code, _, err = command.result()
    assert code == 1, err
    assert "█" in shown.decode(errors="replace")


def test_recall_asks_the_memory_node(
    camera: Stream, probe: Probe, bundle: Path, domain_id: int, tmp_path: Path
) -> None:
    pytest.importorskip("qdrant_edge", reason="not installed: pip install qdrant-edge-py")
    memory = NodeProcess("memory_node", domain_id, bundle=bundle, store=tmp_path / "store")
    try:
        memory.wait_for_log("Active.")
        seeds = iter(range(100, 1000))

        def recalled() -> bool:
            for seed in (next(seeds), next(seeds)):
                for _ in range(6):
                    camera.step(noise(seed))
            found = Command(domain_id, "recall", "the cube falls", "--json").result(camera)
            if "nobody serves '/embed_text'" in found[2]:  # the node has not seen perception yet
                return False
            assert found[0] == 0, found[2]
            moments.extend(json.loads(found[1] or "[]"))
            return bool(moments)

        moments: list[dict[str, object]] = []
        probe.wait(recalled, "a moment", deadline=60.0)
        assert {moment["camera"] for moment in moments} == {"camera"}
        here = ("--namespace", "/")
        code, out, err = Command(domain_id, "memory", "show", *here).result(camera)
        assert (code, err) == (0, "") and f"folder   {tmp_path / 'store'}\n" in out
        pinned = str(moments[0]["id"])
        for what, wanted in (("pin", "1 of them pinned"), ("unpin", "0 of them pinned")):
            result = Command(domain_id, "memory", what, pinned, *here).result(camera)
            assert result == (0, "", "")
            _, out, _ = Command(domain_id, "memory", "show", *here).result(camera)
            assert wanted in out
        code, _, err = Command(domain_id, "memory", "pin", "none", *here).result(camera)
        assert code == 1 and "'none'" in err
        command = Command(domain_id, "recall", "the cube falls", "--camera", "rear")
        code, _, err = command.result(camera)
        assert code == 1
        assert "There is no camera 'rear' in the memory" in err
    finally:
        assert memory.end() == 0


@pytest.mark.parametrize("call", ["create_node", "try_shutdown"])
def test_a_lock_up_of_the_middleware_ends_the_command(call: str) -> None:
    code = (
        "import ctypes, rclpy\n"
        "from vljepa_ros.cli import main\n"
        "from vljepa_ros.cli.live import calls\n"
        "def lock_up(*_, **__): ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter\n"
        f"calls.LOCKED_UP, rclpy.{call} = 1.0, lock_up\n"
        "main()"
    )
    command = Command(domain(), "ask", "what ?", *NOBODY, command=[sys.executable, "-c", code])
    status, out, err = command.result()
    assert (status, out) == (1, "")
    assert err.startswith("Timeout (0:00:01)!\n") and "in lock_up" in err and "in ask" in err


def test_without_a_graph() -> None:
    alone = domain()
    commands = {
        name: Command(alone, name, "anything", command=COMMAND)
        for name in ("ask", "classify", "watch", "recall")
    }  # all at once: they look for seconds
    for name, command in commands.items():
        code, out, err = command.result()
        assert (code, out) == (1, "")
        owner = "memory" if name == "recall" else "perception"
        assert err == (
            f"Nobody offers /{name} in ROS domain {alone}: start the {owner} node (vljepa up or "
            "the launch file), with the same ROS_DOMAIN_ID.\n"
        )


def test_it_names_the_namespaces_that_do_offer_it(probe: Probe, domain_id: int) -> None:
    """Those of the type alone."""
    services = [
        probe.node.create_service(Ask, "/robot1/ask", lambda request, response: response),
        probe.node.create_service(Classify, "/robot2/ask", lambda request, response: response),
    ]
    try:
        asked = ("ask", "what?", "--namespace", "robot3")
        wanted = (
            "Nobody offers /robot3/ask; /ask, /robot1/ask are there: leave --namespace out or give "
            "--namespace /robot1.\n"
        )
        end = time.monotonic() + 2 * DEADLINE
        while (found := Command(domain_id, *asked, command=COMMAND).result()) != (1, "", wanted):
            assert found[:2] == (1, "")
            assert time.monotonic() < end, found  # on a busy machine it may look for too short
    finally:
        for service in services:
            probe.node.destroy_service(service)


@pytest.mark.parametrize("command", ["ask", "classify", "watch"])
def test_without_ros(command: str) -> None:
    code = "import sys; sys.modules['rclpy'] = None\nfrom vljepa_ros.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, command, "anything"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"vljepa {command} needs ROS 2" in done.stderr
    assert "Traceback" not in done.stderr
