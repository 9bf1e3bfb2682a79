"""The offline run over frames of which some are bad."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Perceiver
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings.offline import RecordedFrame, perceive

SECOND = 10**9


def frames(bad: set[int]) -> Iterator[RecordedFrame]:
    """Six seconds of a camera of 10 Hz; of each five frames those in `bad` cannot be decoded."""
    for k in range(60):

        def picture(k: int = k) -> np.ndarray:
            if k % 5 in bad:
                raise ValueError("It is damaged.")
            return np.full((48, 64, 3), 4 * k, np.uint8)

        stamp = SECOND + k * SECOND // 10
        yield RecordedFrame("camera", stamp, "optical", stamp, picture)


@pytest.mark.parametrize(
    ("bad", "tried"), [({0}, 1), ({0, 1}, 2), ({0, 3}, 2), ({3}, 1), ({1, 2}, 0)]
)
def test_a_bad_frame_does_not_cost_its_slot(bad: set[int], tried: int, tiny_bundle: Path) -> None:
    """The bundle takes 4 pictures a second: the frames 0 and 3 of each five."""
    model = Runtime(load_bundle(tiny_bundle, verify=False), "onnxruntime-cpu", threads=1)

    def run(bad: set[int]) -> tuple[list[int], int]:
        rejected: list[str] = []
        perceiver = Perceiver(model, ["camera"], Settings())
        found = perceive(frames(bad), perceiver, lambda frame, reason: rejected.append(reason))
        return [(frame.stamp_ns - SECOND) * 10 // SECOND for frame, _, _ in found], len(rejected)

    whole, _ = run(set())
    steps, rejected = run(bad)
    assert {k % 5 for k in whole} == {0, 3}
    assert len(steps) == len(whole)
    assert {k % 5 for k in steps}.isdisjoint(bad)
    assert rejected == 12 * tried
