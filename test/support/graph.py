"""Nodes in processes of their own, and a probe that talks to them: what the graph tests share.

Every graph has its own ROS domain. Nothing here sleeps for luck: what is waited for is a condition,
with a deadline that only a broken node reaches.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from vljepa_ros.bundle.manifest import write_manifest
from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.ros.messages import to_time
from vljepa_ros.ros.process import set_fastdds
from vljepa_ros.ros.shared_memory import remove_dead_ports
from vljepa_ros.stamps import to_ns

DEADLINE = 90.0  # seconds; a node of a busy machine takes 30 to start
MOST_DOMAINS = 30  # of one process; three run at once, and others shall find some
AGAIN = 8.0  # seconds; longer than a node waits for another before it answers
SECOND = 1_000_000_000
_leases: dict[int, IO[bytes]] = {}  # of this process, the one that was given longest ago first


def domain() -> int:
    """A ROS domain of its own, 1..100 (101 is the last that Linux has safe ports for).

    No other test process of this machine has it: while this one lives, it locks a file for each.
    Nor does any other process: tests that were killed, or somebody's robot, may have left some.
    """
    remove_dead_ports()  # of processes that other tests killed
    folder = Path(tempfile.gettempdir()) / "vljepa_test_domains"
    folder.mkdir(exist_ok=True)
    busy = _busy_domains()
    for k in range(100 if len(_leases) < MOST_DOMAINS else 0):
        number = 1 + (37 * os.getpid() + k) % 100  # seldom one of a session that has just ended
        if number not in _leases and number not in busy:
            file = open(folder / str(number), "wb")  # noqa: SIM115 - as long as the process
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _leases[number] = file
            return number
    assert _leases, f"every ROS domain is taken by other test processes: {folder} has their locks"
    oldest = next((number for number in _leases if number not in busy), None)
    assert oldest is not None, f"processes live in all of the domains {sorted(_leases)}"
    _leases[oldest] = _leases.pop(oldest)
    return oldest


def _busy_domains() -> set[int]:
    """The domains that processes of this machine are told to be in."""
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            told = re.search(rb"(?:^|\0)ROS_DOMAIN_ID=(\d+)", environ.read_bytes())
        except OSError:  # it has ended, or is another user's
            continue
        if told:
            found.add(int(told[1]))
    return found


def end_with_parent() -> None:
    """In a child: the kernel ends it with the tests, however they end; it keeps no domain busy."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class NodeProcess:
    """One of the package's executables, as a process."""

    def __init__(
        self,
        name: str,
        domain_id: int,
        namespace: str = "",
        node_name: str = "",
        **parameters: Any,
    ) -> None:
        set_fastdds()
        arguments = [
            part
            for key, value in parameters.items()
            for part in ("-p", f"{key.replace('__', '.')}:={_yaml(value)}")
        ]
        if namespace:
            arguments += ["-r", f"__ns:={namespace}"]
        if node_name:
            arguments += ["-r", f"__node:={node_name}"]
        self.log_file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"vljepa_ros.nodes.{name}", "--ros-args", *arguments],
            stdout=self.log_file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "ROS_DOMAIN_ID": str(domain_id),
                "PYTHONUNBUFFERED": "1",
                "PYTHONFAULTHANDLER": "1",
            },
            cwd=tempfile.gettempdir(),
            preexec_fn=end_with_parent,
        )
        atexit.register(self.process.kill)  # where a test fails before it ends the process

    @property
    def log(self) -> str:
        """What it has printed."""
        # Not by the shared file position, which the process writes at.
        size = os.fstat(self.log_file.fileno()).st_size
        return os.pread(self.log_file.fileno(), size, 0).decode(errors="replace")

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Until `text` was printed."""
        wait(lambda: self.log.count(text) >= times, lambda: f"'{text}' in the log:\n{self.log}")

    def in_control(self) -> None:
        """Until our code runs and has taken over the signals."""
        wanted = 1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1)

        def blocked() -> bool:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("SigBlk"))
            return int(line.split()[1], 16) & wanted == wanted

        wait(blocked, "the process to take over the signals")

    def end(self, number: int = signal.SIGINT, within: float = 20.0) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # its faulthandler writes where it stands
            self.process.wait(within)
            raise AssertionError(f"it did not end within {within} s:\n{self.log}") from None
        finally:
            self.process.kill()
            self.process.wait()


def wait(
    condition: Callable[[], Any], what: str | Callable[[], str], deadline: float = DEADLINE
) -> None:
    """Until `condition()` holds. `what`: is waited for; a function says it as it is at the end."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline} s for {_said(what)}"
        time.sleep(0.01)


def _said(what: str | Callable[[], str]) -> str:
    return what if isinstance(what, str) else what()


class Probe:
    """A node of the test's own process: publishes pictures, collects everything else."""

    def __init__(self, domain_id: int, namespace: str = "") -> None:
        set_fastdds()
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain_id, args=[])
        self.node = rclpy.create_node("probe", context=self.context, namespace=namespace)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.embeddings: list[Any] = []
        self.changes: list[Any] = []
        self.utterances: list[Any] = []
        self.infos: list[Any] = []
        self.health: dict[str, Any] = {}
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for kind, topic, into, qos in (
            (SemanticEmbedding, "embeddings", self.embeddings, 1000),
            (SemanticChange, "changes", self.changes, 1000),
            (Utterance, "utterances", self.utterances, 1000),
            (ModelInfo, "model_info", self.infos, latched),
        ):
            self.node.create_subscription(kind, topic, into.append, qos)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_health, 100)
        self._publishers: dict[str, Any] = {}
        self._seconds = itertools.count(1000, 1000)

    def close(self) -> None:
        self.executor.shutdown(timeout_sec=0)
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _on_health(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.health[status.name] = status

    def values(self, name: str) -> dict[str, str]:
        """The key-value pairs of a diagnostic status."""
        return {pair.key: pair.value for pair in self.health[name].values}

    def wait(
        self,
        condition: Callable[[], Any],
        what: str | Callable[[], str],
        deadline: float = DEADLINE,
    ) -> None:
        """Spin until `condition()` holds; `what` as for `wait`."""
        end = time.monotonic() + deadline
        while not condition():
            assert time.monotonic() < end, f"waited {deadline} s for {_said(what)}"
            self.executor.spin_once(timeout_sec=0.05)

    def wait_for_health(self, name: str, condition: Callable[[dict[str, str]], Any]) -> None:
        """Until a diagnostic status that comes from now on fulfils the condition."""
        self.health.pop(name, None)
        self.wait(
            lambda: name in self.health and condition(self.values(name)),
            lambda: f"{name}; known are {[(n, s.message) for n, s in self.health.items()]}",
        )

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Call a service; again where no answer comes.

        On a busy machine a server may see a new client so late that it cannot answer it.
        """
        client = self.node.create_client(kind, name)
        try:
            self.wait(client.service_is_ready, f"the service {name}")
            calls = [client.call_async(request)]
            asked = time.monotonic()

            def answered() -> bool:
                nonlocal asked
                if time.monotonic() - asked > AGAIN:
                    asked = time.monotonic()
                    calls.append(client.call_async(request))
                return any(call.done() for call in calls)

            self.wait(answered, f"an answer of {name}")
            return next(call for call in calls if call.done()).result()
        finally:
            self.node.destroy_client(client)

    def transition(self, node: str, label: str) -> bool:
        """A lifecycle transition; whether it succeeded."""
        request = ChangeState.Request()
        request.transition.label = label
        return self.call(ChangeState, f"{node}/change_state", request).success

    def state(self, node: str) -> str:
        """The lifecycle state."""
        return self.call(GetState, f"{node}/get_state", GetState.Request()).current_state.label

    def wait_for_state(self, node: str, state: str) -> None:
        self.wait(lambda: self.state(node) == state, f"{node} to be {state}")

    def set(self, node: str, **values: Any) -> Any:
        """Set parameters; the first result."""
        parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        request = SetParameters.Request(parameters=parameters)
        return self.call(SetParameters, f"{node}/set_parameters", request).results[0]

    def get(self, node: str, name: str) -> Any:
        """A parameter's value message."""
        request = GetParameters.Request(names=[name])
        return self.call(GetParameters, f"{node}/get_parameters", request).values[0]

    def publisher(self, topic: str, kind: Any = Image) -> Any:
        """The publisher of a topic."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(
                kind, topic, qos_profile_sensor_data
            )
        return self._publishers[topic]

    def fresh_time(self) -> int:
        """A stamp (nanoseconds) so far ahead of all before that streams begin anew."""
        return next(self._seconds) * SECOND

    def of(self, camera: str) -> list[Any]:
        """The embeddings of a camera so far."""
        return [e for e in self.embeddings if e.camera == camera]

    def at(self, camera: str, stamp: int) -> list[Any]:
        """The embeddings of a camera with this stamp."""
        return [e for e in self.of(camera) if to_ns(e.header.stamp) == stamp]


class Stream:
    """A camera that sends a frame at each tick of 4 Hz and waits for its embeddings.

    So nothing is dropped, however slow the machine, and no test waits longer than it must.
    """

    def __init__(self, probe: Probe, camera: str, picture: np.ndarray, frame_id: str = "optical"):
        self.probe, self.camera, self.frame_id = probe, camera, frame_id
        self.topic = f"{camera}/image_raw"
        self.begin = self.now = probe.fresh_time()
        self.restart(picture)

    def restart(self, picture: np.ndarray) -> None:
        """Send `picture`, over and over, until the stream is there: the first embedding.

        A publisher knows of a subscriber before that can receive, and frames that only fill the
        window have no answer, so the first answer alone proves anything.
        """
        self.begin = self.probe.fresh_time()
        self.now = self.begin - SECOND // 4

        def answered() -> bool:
            self.send(image(picture, self.tick(), self.frame_id))
            return any(to_ns(e.header.stamp) >= self.begin for e in self.probe.of(self.camera))

        self.probe.wait(answered, f"the first embedding of '{self.camera}'")
        for _ in range(4):  # frames may have been lost until then; from here on, the clip is whole
            self.step(picture)

    def heard(self) -> bool:
        """Whether somebody subscribes."""
        return self.probe.publisher(self.topic).get_subscription_count() > 0

    def stamps(self) -> list[int]:
        """The stamps of all embeddings so far."""
        return [to_ns(e.header.stamp) for e in self.probe.of(self.camera)]

    def tick(self) -> int:
        """The next stamp."""
        self.now += SECOND // 4
        return self.now

    def send(self, message: Any) -> None:
        """Publish, and wait for nothing."""
        self.probe.publisher(self.topic, type(message)).publish(message)

    def step(self, picture: np.ndarray, queries: int = 1, **fields: Any) -> list[Any]:
        """Publish a picture; its embeddings, one for each of `queries`."""
        return self.answer(image(picture, self.tick(), self.frame_id, **fields), queries)

    def answer(self, message: Any, queries: int = 1) -> list[Any]:
        """Publish a message; its embeddings. Again where none comes: images are best effort."""
        stamp = to_ns(message.header.stamp)
        self.send(message)
        sent = time.monotonic()

        def answered() -> bool:
            nonlocal sent
            if time.monotonic() - sent > AGAIN:
                sent = time.monotonic()
                self.send(message)
            return len(self.probe.at(self.camera, stamp)) >= queries

        self.probe.wait(answered, f"the embedding of '{self.camera}' at {stamp}")
        return self.probe.at(self.camera, stamp)


def image(picture: np.ndarray, stamp: int, frame_id: str = "optical", **fields: Any) -> Image:
    """An rgb8 Image; `fields` replace what it would hold."""
    height, width = picture.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.header.stamp = to_time(stamp)
    message.header.frame_id = frame_id
    message.data = array("B", np.ascontiguousarray(picture).tobytes())
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def compressed(data: bytes, stamp: int, kind: str = "jpeg") -> CompressedImage:
    """A CompressedImage."""
    message = CompressedImage(format=kind, data=array("B", data))
    message.header.stamp = to_time(stamp)
    return message


def noise(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture of coarse coloured noise, RGB uint8, that no other seed resembles."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    rows = np.arange(height) * 6 // height
    columns = np.arange(width) * 8 // width
    return cells[rows][:, columns]


def alter_encoder(bundle: Path, alter: Callable[[onnx.GraphProto], None]) -> Path:
    """Rewrite the X-encoder: `alter` computes `visual_tokens` from `tokens`. Returns the bundle."""
    path = bundle / "x_encoder.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["tokens" if name == "visual_tokens" else name for name in node.output]
    alter(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    write_manifest(bundle, yaml.safe_load((bundle / "bundle.yaml").read_text()))
    return bundle


def slow_down(bundle: Path, loops: int) -> Path:
    """Make the X-encoder slow: `loops` products of 512 x 512 matrices, about 5 ms each."""

    def alter(graph: onnx.GraphProto) -> None:
        float_type, bool_type, int_type = (
            onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL, onnx.TensorProto.INT64,
        )  # fmt: skip
        info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
        weight = np.random.default_rng(0).normal(0, 512**-0.5, (512, 512)).astype(np.float32)
        for name, value in (
            ("weight", weight), ("loops", np.int64(loops)), ("go", np.bool_(True)),
            ("nothing", np.float32(1e-30)),
        ):  # fmt: skip
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        body = onnx.helper.make_graph(
            [node("Identity", ["on"], ["still_on"]), node("MatMul", ["y", "weight"], ["next"])],
            "body",
            [info("k", int_type, []), info("on", bool_type, []), info("y", float_type, None)],
            [info("still_on", bool_type, []), info("next", float_type, None)],
        )
        graph.node.extend(
            [
                node("ReduceMean", ["tokens"], ["mean"], keepdims=0),
                node("Mul", ["mean", "weight"], ["begin"]),
                node("Loop", ["loops", "go", "begin"], ["end"], body=body),
                node("ReduceMean", ["end"], ["end_mean"], keepdims=0),
                node("Mul", ["end_mean", "nothing"], ["almost_nothing"]),
                node("Add", ["tokens", "almost_nothing"], ["visual_tokens"]),
            ]
        )

    return alter_encoder(bundle, alter)


def not_finite_when_black(bundle: Path) -> Path:
    """Make the X-encoder give values that are not finite for clips that are all black."""

    def alter(graph: onnx.GraphProto) -> None:
        node = onnx.helper.make_node
        graph.node.extend(
            [
                node("Cast", ["frames"], ["grey"], to=onnx.TensorProto.FLOAT),
                node("ReduceMax", ["grey"], ["brightest"], keepdims=0),
                node("Div", ["brightest", "brightest"], ["one_or_nan"]),
                node("Mul", ["tokens", "one_or_nan"], ["visual_tokens"]),
            ]
        )

    return alter_encoder(bundle, alter)


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_yaml(item) for item in value) + "]"
    return f"'{value}'" if isinstance(value, (str, Path)) else str(value)
