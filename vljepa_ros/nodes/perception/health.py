"""What a perception node says about its cameras on /diagnostics, and to `vljepa up`.

Invariant: a camera's line says OK only where nothing has gone wrong since the line before.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass

from vljepa_ros.bundle.spec import UNKNOWN
from vljepa_ros.errors import counted
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.stages import Stages
from vljepa_ros.ros.diagnostics import ERROR, STALE, WARN, Rate, Status
from vljepa_ros.stamps import other_clock

from .cameras import Camera, lost_frames
from .stream import LiveStream

ANEW = 3  # restarts without a step between them, after which it is told


@dataclass(frozen=True)
class CameraHealth:
    """How a camera does: counts since it was configured, rates in Hz, `age` in seconds."""

    received: int = 0
    waiting: bool = False
    dropped: int = 0
    encodes: int = 0
    reused: int = 0
    changes: int = 0
    age: float = 0.0
    rate_in: float = 0.0
    rate_out: float = 0.0
    problem: str = ""  # why no frame or no step comes; empty where they come


class Health:
    """Looks at the cameras of a stream, once a second."""

    def __init__(self, stream: LiveStream) -> None:
        self._stream = stream
        self._rates: dict[str, tuple[float, float]] = {}  # in and out, Hz, by camera
        self._meters: dict[str, tuple[Rate, Rate]] = {}
        self._counted: dict[str, Counter[str]] = {}
        self._restarts: dict[str, str] = {}  # why a stream begins anew at every frame

    def forget(self) -> None:
        """The cameras are gone."""
        for by_camera in (self._rates, self._meters, self._counted, self._restarts):
            by_camera.clear()

    def snapshot(self) -> dict[str, CameraHealth]:
        """Every camera as it is now, by name; from any thread."""
        perceiver, found = self._stream.perceiver, {}
        for name, camera in list(self._stream.cameras.items()):
            if perceiver is None:
                continue
            counters = perceiver.counters(name)
            found[name] = CameraHealth(
                camera.received, camera.waiting, camera.dropped,
                counters.encodes, counters.reused, counters.changes,
                camera.age, *self._rates.get(name, (0.0, 0.0)),
                camera.silence or self._restarts.get(name, ""),
            )  # fmt: skip
        return found

    def statuses(self) -> list[Status]:
        """A line for each camera; once a second, in the executor's thread."""
        perceiver = self._stream.perceiver
        if perceiver is None:
            return []
        return [self._status(perceiver, camera) for camera in self._stream.cameras.values()]

    def _status(self, perceiver: Perceiver, camera: Camera) -> Status:
        counters, latest = perceiver.counters(camera.name), perceiver.latest(camera.name)
        steps = counters.encodes + counters.reused
        noise = perceiver.noise(camera.name)
        into, out = self._meters.setdefault(camera.name, (Rate(), Rate()))
        self._rates[camera.name] = (into.update(camera.received), out.update(steps))
        status = Status(f"camera {camera.name}")
        status.values = {
            "topic": camera.topic,
            "rate in (Hz)": self._rates[camera.name][0],
            "rate out (Hz)": self._rates[camera.name][1],
            "frame age (s)": camera.age,
            "frames": camera.received,
            "lost": camera.lost,
            "steps": steps,
            "dropped": camera.dropped,
            "bad frames": camera.bad,
            "late frames": counters.late,
            "encodes": counters.encodes,
            "encodes skipped": counters.reused,
            "encodes skipped (%)": 100 * counters.reused / max(steps, 1),
            "noise (grey levels)": "not learnt yet" if noise is None else noise,
            "new from (grey levels)": perceiver.gate_threshold(camera.name),
            "changes": counters.changes,
            "familiarity": latest.familiarity if latest is not None else UNKNOWN,
            "restarts": counters.restarts,
            "steps not finite": counters.errors,
        }
        new = self._since_last(camera, counters.errors)
        silence = camera.look()
        restarts = self._restarts[camera.name] = self._why_anew(perceiver, camera)
        clock = other_clock(camera.age) if camera.received else ""
        if silence:
            status.level, status.message = STALE, camera.report(silence)
        elif new["bad"]:
            status.level, status.message = ERROR, camera.problem
        elif new["not finite"]:
            status.level, status.message = ERROR, "an embedding is not finite; see the log"
        elif restarts:
            status.level, status.message = WARN, camera.report(restarts)
        elif new["lost"]:
            status.level, status.message = WARN, camera.report(lost_frames(new["lost"]))
        elif new["dropped"]:
            status.level = WARN
            frames = counted(new["dropped"], "frame")
            status.message = f"{frames} dropped: the engines are too slow"
        elif clock:
            status.level = WARN
            status.message = camera.report(
                f"its stamps are {clock} the ROS clock's, so ages and latencies mean nothing: let "
                "camera and node use one clock (NTP, or 'use_sim_time' in both or neither)."
            )
        return status

    def _why_anew(self, perceiver: Perceiver, camera: Camera) -> str:
        """Why the stream begins anew at every frame, so that no clip fills; empty: it does not."""
        jumps = perceiver.jumps(camera.name)
        if len(jumps) < ANEW:
            return ""
        typical = statistics.median(abs(jump) for jump in jumps)
        begins = "each time its stream begins anew, and no clip fills"
        if min(jumps) > 0:
            most = perceiver.settings.max_gap
            return (
                f"its frames are {typical:.3g} s apart, more than 'max_gap' ({most:g} s): "
                f"{begins}; set 'max_gap' to {2 * typical:.2g} or more."
            )
        if max(jumps) < 0:
            return (
                f"its stamps jump back by {typical:.3g} s: {begins}; what is played must be longer "
                f"than a clip ({perceiver.bundle.clip.span_ns / 1e9:g} s)."
            )
        names = camera.publishers()
        cause = (
            f"'{camera.topic}' has {len(names)} publishers ({', '.join(names)}); leave one of them"
            if len(names) > 1
            else f"see by what clock the driver behind '{camera.topic}' stamps its images"
        )
        return f"its stamps jump back and forth by {typical:.3g} s: {begins}. {cause}."

    def _since_last(self, camera: Camera, not_finite: int) -> Counter[str]:
        """What went wrong since the last report."""
        total = Counter(
            {"bad": camera.bad, "lost": camera.lost, "dropped": camera.dropped,
             "not finite": not_finite}
        )  # fmt: skip
        new = total - self._counted.get(camera.name, Counter())
        self._counted[camera.name] = total
        return new


def settings_status(perceiver: Perceiver) -> Status:
    """The line of the rates and thresholds in effect, and of where each came from."""
    found = perceiver.settings.effective(perceiver.bundle)
    values = {one.name: f"{one.value:g} ({one.origin})" for one in found}
    return Status("settings", message="what is in effect, and from where", values=dict(values))


def stage_status(stages: Stages) -> Status:
    """The line of the stages of a step."""
    status = Status("stages", message="p50 and p99 of the last steps")
    for stage, (p50, p99, _) in stages.percentiles().items():
        status.values[f"{stage} p50 (ms)"] = p50 * 1e3
        status.values[f"{stage} p99 (ms)"] = p99 * 1e3
    return status
