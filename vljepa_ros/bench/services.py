"""`vljepa bench services`: what agents wait for, and what the stream pays for it.

The perception node runs here as it is, with every step encoded; its camera, its callers and the
decoder node are processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import numpy as np
import typer

from vljepa_ros.bundle.locate import find_bundle
from vljepa_ros.console import console, notice, print_json, print_table
from vljepa_ros.errors import VLJepaError
from vljepa_ros.ros.process import Signals
from vljepa_ros.words.bank import Bank

from .node import end_ros, open_perception, prepare_ros, start_child

WIDTH, HEIGHT = 640, 480
MARGIN = 3.0  # milliseconds that an answer may take beside the predictor
LONGEST = 1800.0  # seconds that all of it may take
SLOWER = 0.2  # of the stream's rate, that callers may take
PHRASES, PHRASE_MS = 100_000, 15.0  # searched; milliseconds that it may take
VLM = 3  # seconds that the stand-in for a VLM takes
VLM_SLOWER, VLM_OLDER = 0.02, 5.0  # of the stream's rate, and ms of its age, that a VLM may take


def services(
    bundle: str = typer.Option("tabletop", help="Model bundle."),
    backend: str = typer.Option("auto", help="What runs the engines."),
    threads: int = typer.Option(0, help="Threads per engine on the CPU; 0: the backend's choice."),
    fps: float = typer.Option(30.0, min=0.1, help="Frames per second of the camera."),
    rate: float = typer.Option(0.0, help="Steps per second; 0: the bundle's sample rate."),
    asks: int = typer.Option(200, min=10, max=450, help="Calls of each service to measure."),
    callers: int = typer.Option(50, min=1, max=500, help="Callers at once."),
    watches: int = typer.Option(32, min=1, max=256, help="Watches at once."),
    seconds: float = typer.Option(10.0, min=1, help="How long to watch the stream each time."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Ask, classify, watch and speak while the stream runs: latencies and its rate."""
    prepare_ros("services")
    find_bundle(bundle)  # or it is refused before seconds of other work
    searched = _search(asks)
    _start("vljepa_ros.bench.publisher", WIDTH, HEIGHT, fps, LONGEST, "camera")
    _start(
        "vljepa_ros.nodes.decoder_node", "--ros-args", "-p", f"bundle:={bundle}",
        "-p", f"backend:={backend}", "-p", f"threads:={threads}",
    )  # fmt: skip
    Signals().on_stop(_kill)  # what waits for a child then fails
    values = {
        "bundle": bundle, "backend": backend, "threads": threads, "rate": rate,
        "gate_threshold": 0.0,  # off: every step is encoded
    }  # fmt: skip
    perception, spinner = open_perception(values)
    try:
        report = _Bench(perception, seconds).report(fps, asks, callers, watches)
    finally:
        _kill()
        spinner.end()
        end_ros()
    report["phrases"] = searched
    if as_json:
        print_json(report)
    else:
        _print(report)


class _Bench:
    """The measurements, one after the other, on one node."""

    def __init__(self, perception: Any, seconds: float) -> None:
        self._perception = perception
        self._seconds = seconds
        while perception.stream.stages.steps == 0:
            if perception.failure:
                raise VLJepaError(perception.failure)
            time.sleep(0.05)

    def report(self, fps: float, asks: int, callers: int, watches: int) -> dict[str, Any]:
        """Everything that is measured."""
        perception = self._perception
        report: dict[str, Any] = {
            "model_id": perception.stream.model.bundle.model_id,
            "engines": {
                e.name: f"{e.backend} ({e.precision})" for e in perception.stream.model.info
            },
            "camera_fps": fps,
        }
        for name in ("ask", "open", "classify"):
            notice(f"{name}: {asks} calls, one after the other")
            report[name] = _milliseconds(self._call(name, asks)["seconds"])
            if name == "ask":  # of the last 500 runs, those for the questions and the stream's
                p50, p99 = perception.stream.model.latency("predictor")
                report["predictor"] = {"p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3}
        report["added_ms"] = report["ask"]["p50_ms"] - report["predictor"]["p50_ms"]
        notice(f"the stream alone, then with {callers} callers at once")
        alone = self._rate_while(lambda: time.sleep(self._seconds))
        report["crowd"] = self._crowd(callers, alone)
        notice(f"{watches} watches")
        report["watches"] = self._watches(watches)
        notice(f"a VLM that takes {VLM} s")
        report["vlm"] = self._vlm()
        return report

    def _vlm(self) -> dict[str, Any]:
        """The stream while changes carry pictures and go to a slow VLM, and before."""
        seconds = max(self._seconds, 8.0 * VLM)  # the camera's scene changes every 4 s
        from rclpy.parameter import Parameter

        found: dict[str, Any] = {}
        for name in ("without", "with"):
            if name == "with":
                self._perception.set_parameters([Parameter("change_frames", value=2)])
                process = _Child("vlm", VLM)
                process.ready()
                process.begin(str(seconds))
            self._perception.stream.measure()
            rate = self._rate_while(lambda: time.sleep(seconds))
            p50, p99, _ = self._perception.stream.stages.percentiles()["age"]
            found[name] = {"stream_hz": rate, "age_p50_ms": p50 * 1e3, "age_p99_ms": p99 * 1e3}
        return {"answer_s": VLM, "seconds": seconds, **found, **process.result()}

    def _crowd(self, callers: int, alone: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        process = _Child("crowd", callers, self._seconds)
        process.ready()
        rate = self._rate_while(lambda: found.update(process.run()))
        return {
            "callers": callers,
            **{key: found[key] for key in ("asked", "answered", "refused", "reason", "fewest")},
            "answers_per_second": found["answered"] / self._seconds,
            **_milliseconds(found["seconds"]),
            "stream_hz_alone": alone,
            "stream_hz_during": rate,
            "slower": 1 - rate / alone,
        }

    def _watches(self, count: int) -> dict[str, Any]:
        def steps() -> dict[str, float]:
            self._perception.stream.measure()
            time.sleep(self._seconds)
            found = self._perception.stream.stages.percentiles()
            return {name: found[name][0] * 1e3 for name in ("step", "watches") if name in found}

        without = steps()
        process = _Child("watch", count)
        process.ready()
        process.begin(str(2 * self._seconds))
        with_them = steps()
        process.kill()
        return {
            "watches": count,
            "step_ms_without": without["step"],
            "step_ms_with": with_them["step"],
            "watches_ms": with_them["watches"],
        }

    def _call(self, *words: Any) -> dict[str, Any]:
        process = _Child(*words)
        process.ready()
        return process.run()

    def _rate_while(self, action: Any) -> float:
        """Steps per second while `action()` runs."""
        counters = self._perception.stream.perceiver.counters("camera")
        before, began = counters.encodes + counters.reused, time.monotonic()
        action()
        return float((counters.encodes + counters.reused - before) / (time.monotonic() - began))


class _Child:
    """A process that calls."""

    def __init__(self, *words: Any) -> None:
        self._process = _start("vljepa_ros.bench.caller", *words, pipes=True)

    def ready(self) -> None:
        """Until it has found the node."""
        self._line()

    def begin(self, line: str = "") -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def run(self) -> dict[str, Any]:
        """Let it begin; what it measured."""
        self.begin()
        return self.result()

    def result(self) -> dict[str, Any]:
        """What it measured, once it has."""
        return json.loads(self._line())  # type: ignore[no-any-return]

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise VLJepaError("A caller of the benchmark ended early; its reason is above.")
        return str(line)


_children: list[Any] = []


def _start(module: str, *words: Any, pipes: bool = False) -> Any:
    pipe = subprocess.PIPE if pipes else None
    child = start_child(module, *words, stdin=pipe, stdout=pipe or subprocess.DEVNULL, text=True)
    _children.append(child)
    return child


def _kill() -> None:
    """End every child that still runs."""
    for child in _children:
        child.kill()
        child.wait()


def _search(times: int) -> dict[str, float]:
    """Searches of a bank of phrases, random ones of 384 numbers."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((PHRASES, 384), np.float32)
    bank = Bank([""] * PHRASES, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    durations = []
    for query in rows[:times] + random.standard_normal((times, 384), np.float32):
        began = time.monotonic()
        bank.best(query / np.linalg.norm(query), 0.9)
        durations.append(time.monotonic() - began)
    return _milliseconds(durations)


def _milliseconds(durations: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(durations, (50, 90, 99)) * 1e3
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}


def _print(report: dict[str, Any]) -> None:
    numbers = ("p50 (ms)", "p90 (ms)", "p99 (ms)")
    crowd, watches = report["crowd"], report["watches"]
    rows = {
        "predictor": report["predictor"],
        "ask, 4 candidates": report["ask"],
        "ask, open": report["open"],
        "classify, 4 labels": report["classify"],
        f"ask, {crowd['callers']} callers": crowd,
        f"search, {PHRASES:,} phrases": report["phrases"],
    }
    keys = ("p50_ms", "p90_ms", "p99_ms")
    cells = [
        [name, *(f"{row[key]:.2f}" if key in row else "" for key in keys)]
        for name, row in rows.items()
    ]
    title = "Services of the perception node"
    print_table(("call", *numbers), cells, right=numbers, title=title)
    console.print(
        f"{report['model_id']}, a camera of {WIDTH}x{HEIGHT} at {report['camera_fps']:g} Hz, "
        f"{crowd['stream_hz_alone']:.2f} steps a second.\n"
        f"An answer takes {report['added_ms']:.2f} ms beside the predictor ({MARGIN:g} ms may be): "
        f"{_verdict(report['added_ms'] <= MARGIN)}.\n"
        f"{crowd['callers']} callers: {crowd['answered']} of {crowd['asked']} answered, at least "
        f"{crowd['fewest']} for each, {crowd['answers_per_second']:.0f} a second; "
        f"{crowd['refused']} refused. {crowd['reason']}\nThe stream went from "
        f"{crowd['stream_hz_alone']:.2f} to {crowd['stream_hz_during']:.2f} Hz "
        f"({-100 * crowd['slower']:+.1f} %; -20 % may be): "
        f"{_verdict(crowd['slower'] <= SLOWER and not crowd['refused'])}.\n"
        f"A step took {watches['step_ms_without']:.2f} ms, with {watches['watches']} watches "
        f"{watches['step_ms_with']:.2f} ms, of which {watches['watches_ms']:.2f} ms for them.\n"
        f"{PHRASES:,} phrases are searched in {report['phrases']['p50_ms']:.1f} ms "
        f"({PHRASE_MS:g} ms may be): {_verdict(report['phrases']['p50_ms'] <= PHRASE_MS)}."
    )
    vlm = report["vlm"]
    alone, beside = vlm["without"], vlm["with"]
    slower = 1 - beside["stream_hz"] / alone["stream_hz"]
    older = beside["age_p50_ms"] - alone["age_p50_ms"]
    console.print(
        f"A VLM that takes {vlm['answer_s']} s was asked {vlm['asked']} times in "
        f"{vlm['seconds']:g} s and heard {vlm['said']} times. The stream went from "
        f"{alone['stream_hz']:.2f} to {beside['stream_hz']:.2f} Hz, its age from "
        f"{alone['age_p50_ms']:.1f} (p99 {alone['age_p99_ms']:.1f}) to "
        f"{beside['age_p50_ms']:.1f} ms (p99 {beside['age_p99_ms']:.1f}): "
        f"{_verdict(slower <= VLM_SLOWER and older <= VLM_OLDER)}."
    )


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"
