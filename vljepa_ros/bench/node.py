"""`vljepa bench node`: the perception node as it is, fed from another process.

Invariant: the node knows nothing of being measured; what is lost is counted from the stamps sent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import typer

from vljepa_ros.console import console, print_json, print_table
from vljepa_ros.errors import VLJepaError
from vljepa_ros.perception.stages import KEPT
from vljepa_ros.ros.process import Spinner, init_ros, needs_ros, set_fastdds

from .footprint import Footprint

ROUGH, ROUGH_FPS = "rough", 10.0  # the camera of --rough, and its frames per second
PR_SET_PDEATHSIG = 1  # linux/prctl.h
WARM_UP = 3.0  # seconds: discovery, the first runs of the engines
MOST = 200.0  # frames per second
# In the order of a frame's way; `age` is the frame's when its inference begins.
STAGES = (
    "wait", "decode", "resize", "window", "gate", "encode", "predict", "detect", "publish", "step",
    "age",
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What the node is fed with."""

    width: int
    height: int
    fps: float
    rate: float
    cameras: tuple[str, ...]
    rough: tuple[str, ...] = ()  # cameras that behave as badly as real ones


def node(
    bundle: str = typer.Option("tabletop", help="Model bundle."),
    backend: str = typer.Option("auto", help="What runs the engines."),
    threads: int = typer.Option(0, help="Threads per engine on the CPU; 0: the backend's choice."),
    steps: int = typer.Option(1000, min=10, max=1_000_000, help="Steps to measure."),
    size: str = typer.Option("640x480", help="Width x height of the images."),
    fps: float = typer.Option(30.0, min=0.1, help="Frames per second of each camera."),
    rate: float = typer.Option(0.0, help="Steps per second of each camera; 0: one per frame."),
    cameras: int = typer.Option(1, min=1, help="Number of cameras."),
    overload: float = typer.Option(
        0.0, help="Instead of --fps: this many times the rate that the engines can take."
    ),
    rough: bool = typer.Option(
        False,
        "--rough",
        help="One camera more, which is unplugged and plugged in every 30 s, "
        "changes its size twice, and sends one torn frame in ten.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """The perception node, fed by another process, and a decoder: losses, times, memory."""
    prepare_ros("node")
    if overload > 0:
        fps = overload / _step_seconds(bundle, backend, threads, cameras)
        if fps > MOST:
            raise VLJepaError(
                f"The engines take so many frames that an overload is {fps:.0f} Hz, more than the "
                f"{MOST:g} Hz that a publisher in Python keeps up; measure with a larger bundle."
            )
    names = tuple(f"camera{k}" for k in range(cameras))
    load = Load(*_size(size), fps, rate, names, (ROUGH,) if rough else ())
    seconds = 60 + 4 * steps / cameras / min(fps, rate or fps)
    words = (load.width, load.height, load.fps, seconds, *load.cameras)
    publisher = _start("publisher", *words)
    rough_camera = _start("rough_camera", ROUGH_FPS, seconds, ROUGH) if rough else None
    decoder = _decoder(bundle, backend, threads)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the children must not outlive us
        signal.signal(number, lambda *_: stop.set())
    values: dict[str, Any] = {
        "bundle": bundle, "backend": backend, "threads": threads,
        "cameras": [*load.cameras, *load.rough], "rate": min(1000.0, rate or 2 * fps),
        "gate_threshold": 0.0,  # off: every step is measured whole
    }  # fmt: skip
    values |= {f"{name}.transport": "compressed" for name in load.rough}
    with ExitStack() as ending:
        for child in filter(None, (publisher, rough_camera, decoder)):
            ending.callback(child.kill)
        ending.callback(end_ros)
        perception, spinner = open_perception(values)
        ending.callback(spinner.end)
        report = _measure(perception, publisher, decoder, load, steps, stop)
    if as_json:
        print_json(report)
    else:
        _print(report)


def prepare_ros(command: str) -> None:
    """Before children start: the environment of a graph of its own. VLJepaError without ROS."""
    set_fastdds()
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))  # away from a live robot
    try:
        import vljepa_ros.nodes.perception.node  # noqa: F401
    except ImportError as error:
        raise needs_ros(f"bench {command}", error) from error


def open_perception(values: dict[str, Any]) -> tuple[Any, Spinner]:
    """A perception node with these parameters in this process, and what spins it."""
    from rclpy.parameter import Parameter

    from vljepa_ros.nodes.perception.node import PerceptionNode

    init_ros([])
    given = [Parameter(name, value=value) for name, value in values.items()]
    node = PerceptionNode(parameter_overrides=given)
    return node, Spinner(node)


def end_ros() -> None:
    """End what `open_perception` began."""
    import rclpy

    rclpy.try_shutdown()


def start_child(module: str, *words: object, **options: Any) -> subprocess.Popen[Any]:
    """A module as a process, which the kernel ends when this one ends, however that happens.

    One that went on would be seen in its ROS domain, as a camera or a decoder that nobody knows.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.Popen(command, preexec_fn=_end_with_parent, **options)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(module: str, *words: object) -> subprocess.Popen[bytes]:
    """A process of this room."""
    return start_child(f"vljepa_ros.bench.{module}", *words, stdout=sys.stderr)


def _decoder(bundle: str, backend: str, threads: int) -> Any:
    """A decoder node's process; None for a bundle without a decoder."""
    from vljepa_ros.bundle.spec import load_bundle

    if load_bundle(bundle).decoder is None:
        return None
    words = {"bundle": bundle, "backend": backend, "threads": threads}
    given = [word for name, value in words.items() for word in ("-p", f"{name}:={value}")]
    return start_child(
        "vljepa_ros.nodes.decoder_node", "--ros-args", *given, stdout=subprocess.DEVNULL
    )


def _measure(
    perception: Any, publisher: Any, decoder: Any, load: Load, steps: int, stop: threading.Event
) -> dict[str, Any]:
    """Wait until node and decoder work, let them run for `steps` steps, and report."""

    def running() -> bool:
        if perception.state != "active" or perception.stream.stages.steps == 0:
            return False
        return all(perception.stream.cameras[name].received for name in load.rough)

    while not running():
        if perception.failure or publisher.poll() is not None or stop.wait(0.05):
            raise VLJepaError(perception.failure or "The benchmark was stopped before it began.")
    asker = _Asker(perception)
    processes = {"perception": os.getpid()}
    if decoder is not None:
        processes["decoder"] = decoder.pid
    while decoder is not None and not asker.utterances:
        if decoder.poll() is not None or publisher.poll() is not None or stop.wait(0.1):
            raise VLJepaError("The decoder said nothing before the benchmark was over.")
        asker.ask()
    stop.wait(WARM_UP)
    perception.stream.measure()
    footprint = Footprint(processes)
    decoded = asker.utterances
    cameras = [perception.stream.cameras[name] for name in load.cameras]
    before = [_count(camera) for camera in cameras]
    began, answers, oldest = time.monotonic(), list[float](), 0.0
    try:
        while (
            not stop.is_set()
            and perception.stream.stages.steps < steps
            and publisher.poll() is None
        ):
            answers.append(asker.ask())
            footprint.sample()
            oldest = max(oldest, *(camera.age for camera in cameras))
            stop.wait(0.5)
    finally:
        asker.close()
    took = time.monotonic() - began
    after = [_count(camera) for camera in cameras]
    report = _report(perception, load, before, after, took, answers)
    report["frames"]["oldest_ms"] = oldest * 1e3
    report["rough"] = {name: _rough(perception, name) for name in load.rough}
    return {**report, "utterances": asker.utterances - decoded, "memory": footprint.report()}


def _rough(perception: Any, name: str) -> dict[str, float]:
    """What became of a camera's frames since the node began; `silent_s`: since the last one."""
    camera, counters = perception.stream.cameras[name], perception.stream.perceiver.counters(name)
    return {
        "received": camera.received,
        "bad": camera.bad,
        "steps": counters.encodes + counters.reused,
        "restarts": counters.restarts,
        "silent_s": camera.silent_for() or 0.0,
    }


def _report(
    perception: Any,
    load: Load,
    before: list[tuple[int, int, int]],
    after: list[tuple[int, int, int]],
    took: float,
    answers: list[float],
) -> dict[str, Any]:
    received = sum(b[0] - a[0] for a, b in zip(before, after))
    sent = sum(round((b[1] - a[1]) * load.fps / 1e9) for a, b in zip(before, after))
    found = perception.stream.stages.percentiles()
    stages = {
        name: {"p50_ms": found[name][0] * 1e3, "p99_ms": found[name][1] * 1e3}
        for name in (*STAGES, "added")
        if name in found
    }
    bound = stages["step"]["p99_ms"] + 1e3 / load.fps
    return {
        "model_id": perception.stream.model.bundle.model_id,
        "engines": {e.name: f"{e.backend} ({e.precision})" for e in perception.stream.model.info},
        "cameras": len(load.cameras),
        "size": f"{load.width}x{load.height}",
        "fps": load.fps,
        "seconds": took,
        "steps": perception.stream.stages.steps,
        "stages_of_last": min(perception.stream.stages.steps, KEPT),
        "frames": {
            "sent": sent,
            "lost": sent - received,
            "dropped": sum(b[2] - a[2] for a, b in zip(before, after)),
        },
        "added": stages.pop("added"),
        "stages": stages,
        "age_bound_ms": bound,
        "parameter_answer_ms": {
            "p50": float(np.median(answers)) * 1e3,
            "max": max(answers) * 1e3,
        },
    }


def _print(report: dict[str, Any]) -> None:
    numbers = ("p50 (ms)", "p99 (ms)")
    stages = [
        (name, f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}")
        for name, row in {**report["stages"], "added by the node": report["added"]}.items()
    ]
    print_table(("stage", *numbers), stages, right=numbers, title="Perception node")
    console.print()
    frames, answer = report["frames"], report["parameter_answer_ms"]
    megabytes = ("at the start", "at the end", "most", "drift", "second half")
    memory = [
        [name, *(f"{row[key]:.1f}" for key in ("start_mb", "end_mb", "most_mb")),
         f"{100 * row['largest_drift']:.2f} %", f"{100 * row['late_drift']:.2f} %"]
        for name, row in report["memory"].items()
    ]  # fmt: skip
    print_table(("process", *megabytes), memory, right=megabytes, title="Resident memory (MB)")
    console.print()
    console.print(
        f"{report['cameras']} x {report['size']} at {report['fps']:.1f} Hz, {report['model_id']}: "
        f"{report['steps']} steps in {report['seconds']:.1f} s, of which the times are of the last "
        f"{report['stages_of_last']}; {report['utterances']} utterances.\n"
        f"{frames['sent']} frames sent, {frames['lost']} lost between the processes, "
        f"{frames['dropped']} dropped for newer ones.\n"
        f"Frame age when inference began: p99 {report['stages']['age']['p99_ms']:.1f} ms; one step "
        f"and one frame interval are {report['age_bound_ms']:.1f} ms.\n"
        f"Parameters answered in {answer['p50']:.1f} ms (p50), {answer['max']:.1f} ms (max)."
    )
    for name, row in report["rough"].items():
        console.print(
            f"Camera {name}, unplugged now and then: {row['received']} frames came, {row['bad']} "
            f"of them bad; {row['steps']} steps, {row['restarts']} restarts; the oldest frame of "
            f"the others was {frames['oldest_ms']:.0f} ms old."
        )


class _Asker:
    """Asks the node for a parameter, and hears the decoder, from a node of its own."""

    def __init__(self, perception: Any) -> None:
        import rclpy
        from rcl_interfaces.srv import GetParameters
        from rclpy.executors import SingleThreadedExecutor

        from vljepa_ros.msg import Utterance

        self._node = rclpy.create_node("bench", start_parameter_services=False)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        name = f"{perception.get_fully_qualified_name()}/get_parameters"
        self._client = self._node.create_client(GetParameters, name)
        self.utterances = 0  # heard so far
        self._node.create_subscription(Utterance, "utterances", self._heard, 10)
        self._request = GetParameters.Request(names=["rate"])
        if not self._client.wait_for_service(10.0):
            raise VLJepaError(f"The service {name} does not answer.")

    def _heard(self, _: Any) -> None:
        self.utterances += 1

    def ask(self) -> float:
        """Seconds to the answer; takes in what was said meanwhile."""
        asked = time.monotonic()
        future = self._client.call_async(self._request)
        self._executor.spin_until_future_complete(future, timeout_sec=10.0)
        return time.monotonic() - asked

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()


def _count(camera: Any) -> tuple[int, int, int]:
    """Frames received, stamp of the newest of them, and frames dropped, at one instant."""
    while True:
        received = camera.received
        newest, dropped = camera.newest_ns, camera.dropped
        time.sleep(0.001)
        if camera.received == received:
            return received, newest, dropped


def _step_seconds(bundle: str, backend: str, threads: int, cameras: int) -> float:
    """Seconds of one step of all cameras, without a node: their newest chunks, and their clips."""
    from vljepa_ros.bundle.spec import load_bundle
    from vljepa_ros.inference.runtime import Runtime

    model = Runtime(load_bundle(bundle), backend, threads, ("x_encoder", "predictor"))
    clip = model.bundle.clip
    shape = (cameras, clip.frames, clip.image_size, clip.image_size, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tokens, newest = model.encode(clips), clips[:, -clip.chunk :]
    durations = []
    for _ in range(20):
        began = time.monotonic()
        model.encode_keeping(newest)
        model.predict(tokens, [model.bundle.default_query])
        durations.append(time.monotonic() - began)
    model.close()
    return float(np.median(durations))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise VLJepaError(f"--size must be WIDTHxHEIGHT, e.g. 640x480, not '{text}'.")
    return int(width), int(height)
