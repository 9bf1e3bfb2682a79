"""The shipped stream: what is said of a video, run as the node would, and whether it is true.

Invariant: a sentence is judged by the truth that the video's JSON file holds, never by the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Change, Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings import offline
from vljepa_ros.recordings.video import VideoSource
from vljepa_ros.tabletop import language
from vljepa_ros.words.speaker import Speaker, YDecoder

UNIFORM_RATE = 1.0  # decodes per second that selective decoding is compared with
FOUND_WITHIN = 0.25  # s, one step: a change that the gate moves farther counts as lost


@dataclass(frozen=True)
class Spoken:
    """One sentence of the decoder and whether the ground truth holds what it names.

    `at` and `start` in seconds of the stream: when the change was detected, and where the segment
    begins. `kind_right`: the event's kind holds; `right`: its object too.
    """

    at: float
    start: float
    text: str
    truth: str
    score: float
    kind_right: bool
    right: bool


def judge(
    text: str, start: float, at: float, events: Sequence[dict[str, Any]]
) -> tuple[str, bool, bool]:
    """What truly happens at `at` s, and whether `text` names it by kind, and by kind and object.

    A sentence is about the segment that opens, as far as it is known: what holds at any time from
    the segment's `start` to the detection at `at` counts.
    """
    kind, colour, shape = language.name_event(text)
    holding = [e for e in events if e["start"] <= at and start < e["end"]]
    same = [e for e in holding if e["kind"] == kind]
    whole = [
        e for e in same
        if e["object"] is None or (e["object"]["colour"], e["object"]["shape"]) == (colour, shape)
    ]  # fmt: skip
    return holding[-1]["text"] if holding else "", bool(same), bool(whole)


def speak(
    model: Runtime, video: Path, settings: Settings, speaker: Speaker | None = None
) -> tuple[list[Step], list[tuple[Step, str]]]:
    """Run a video as the nodes would: all steps, and the steps that changed with what was said.

    `speaker`: who puts it into words; None: the bundle's Y-decoder. Nothing is said of what the
    bundle does not know.
    """
    speaker = speaker or YDecoder(model)
    perceiver = Perceiver(model, ["camera"], settings)
    steps, said = [], []
    for step in offline.run(VideoSource(str(video)), perceiver):
        steps.append(step)
        if step.change is not None and not model.bundle.is_unfamiliar(step.familiarity):
            words = speaker.say(step.embedding)
            if not words.doubt:
                said.append((step, words.text))
    return steps, said


def judge_stream(model: Runtime, video: Path, truth: Path, settings: Settings) -> dict[str, Any]:
    """The shipped stream: what was said, whether it was true, and how much was saved."""
    known = json.loads(truth.read_text())
    steps, said = speak(model, video, settings)
    spoken = []
    for step, text in said:
        at = offline.seconds(step.stamp_ns)
        change: Change = step.change  # type: ignore[assignment]
        opened = offline.seconds(change.segment_start_ns)
        told, kind_right, right = judge(text, opened, at, known["events"])
        spoken.append(Spoken(at, opened, text, told, change.score, kind_right, right))
    uniform = known["seconds"] * UNIFORM_RATE
    return {
        "decodes": len(spoken),
        "uniform_decodes": uniform,
        "decode_fraction": round(len(spoken) / uniform, 3),
        "kind_right": round(float(np.mean([s.kind_right for s in spoken])), 3),
        "right": round(float(np.mean([s.right for s in spoken])), 3),
        "encodes_skipped": round(float(np.mean([s.encoded == 0 for s in steps])), 3),
        "gate": judge_gate(model, video, known["events"], settings, steps, said),
        "spoken": [vars(s) for s in spoken],
    }


def judge_gate(
    model: Runtime,
    video: Path,
    events: Sequence[dict[str, Any]],
    settings: Settings,
    steps: Sequence[Step],
    said: Sequence[tuple[Step, str]],
) -> dict[str, Any]:
    """What the gate saves where nothing happens, and whether a change is lost by it.

    `steps` and `said` are what `speak` returned with the gate; the stream is run again without
    it. A step is quiet where its whole clip lies in one event `still`: in no frame that the model
    sees does another event hold, or anything move that the truth calls moving. It settles where
    only its newest frame does. A change is found if the gated stream reports one within
    `FOUND_WITHIN` s of it that is put into the same words.
    """
    _, ungated = speak(model, video, replace(settings, gate_threshold=0.0))
    still = [(e["start"], e["end"]) for e in events if e["kind"] == "still"]
    quiet, settling = list[bool](), list[bool]()
    for step in steps:
        first, last = offline.seconds(step.window_start_ns), offline.seconds(step.stamp_ns)
        inside = [start for start, end in still if start <= last < end]
        if inside:
            (quiet if inside[0] <= first else settling).append(step.encoded == 0)
    found = [
        any(abs(step.stamp_ns - s.stamp_ns) <= FOUND_WITHIN * 1e9 and text == t for s, t in said)
        for step, text in ungated
    ]
    return {
        "quiet_steps": len(quiet),
        "skipped_when_quiet": round(float(np.mean(quiet)), 3),
        "settling_steps": len(settling),
        "skipped_when_settling": round(float(np.mean(settling)), 3),
        "changes_without_gate": len(ungated),
        "found_with_gate": sum(found),
    }
