"""What a perception node says about its cameras on /diagnostics, and to `vljepa up`.

Invariant: a camera's line says OK only where nothing has gone wrong since the line before.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.stages import Stages
from vljepa_ros.ros.diagnostics import ERROR, STALE, WARN, Rate, Status

from .cameras import Camera, lost_frames
from .stream import LiveStream


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
    silence: str = ""  # why no frame comes; empty where frames come


class Health:
    """Looks at the cameras of a stream, once a second."""

    def __init__(self, stream: LiveStream) -> None:
        self._stream = stream
        self._rates: dict[str, tuple[float, float]] = {}  # in and out, Hz, by camera
        self._meters: dict[str, tuple[Rate, Rate]] = {}
        self._counted: dict[str, Counter[str]] = {}

    def forget(self) -> None:
        """The cameras are gone."""
        for by_camera in (self._rates, self._meters, self._counted):
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
                camera.age, *self._rates.get(name, (0.0, 0.0)), camera.silence,
            )  # fmt: skip
        return found

    def statuses(self) -> list[Status]:
        """A line for each camera; once a second, in the executor's thread."""
        perceiver = self._stream.perceiver
        if perceiver is None:
            return []
        return [self._status(perceiver, camera) for camera in self._stream.cameras.values()]

    def _status(self, perceiver: Perceiver, camera: Camera) -> Status:
        counters = perceiver.counters(camera.name)
        steps = counters.encodes + counters.reused
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
            "changes": counters.changes,
            "restarts": counters.restarts,
            "steps not finite": counters.errors,
        }
        new = self._since_last(camera, counters.errors)
        silence = camera.look()
        if silence:
            status.level, status.message = STALE, camera.report(silence)
        elif new["bad"]:
            status.level, status.message = ERROR, camera.problem
        elif new["not finite"]:
            status.level, status.message = ERROR, "an embedding is not finite; see the log"
        elif new["lost"]:
            status.level, status.message = WARN, camera.report(lost_frames(new["lost"]))
        elif new["dropped"]:
            status.level = WARN
            status.message = f"{new['dropped']} frames dropped: the engines are too slow"
        return status

    def _since_last(self, camera: Camera, not_finite: int) -> Counter[str]:
        """What went wrong since the last report."""
        total = Counter(
            {"bad": camera.bad, "lost": camera.lost, "dropped": camera.dropped,
             "not finite": not_finite}
        )  # fmt: skip
        new = total - self._counted.get(camera.name, Counter())
        self._counted[camera.name] = total
        return new


def stage_status(stages: Stages) -> Status:
    """The line of the stages of a step."""
    status = Status("stages", message="p50 and p99 of the last steps")
    for stage, (p50, p99, _) in stages.percentiles().items():
        status.values[f"{stage} p50 (ms)"] = p50 * 1e3
        status.values[f"{stage} p99 (ms)"] = p99 * 1e3
    return status
