"""The moments of one recording, whoever keeps them.

Invariant: they are those that the live nodes would have made, and follow from the recording, the
model and the settings alone: no store is asked.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vljepa_ros.errors import counted
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.recorder import Recorder
from vljepa_ros.perception.images import FULL_RANGE, Levels
from vljepa_ros.perception.perceiver import Perceiver, Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.words.speaker import Speaker

from ..bags import BagError, Elapsed
from ..left_out import LeftOut
from ..lerobot.dataset import Episode, EpisodeError
from ..lerobot.language import TASK, labels
from ..lerobot.rows import Rows
from ..offline import RecordedFrame, perceive
from ..stream_file import StreamFile
from ..video_file import VideoError
from .recording import Recording

Keep = Callable[[Moment], None]
Say = Callable[[str, str, float], None]


@dataclass
class Report:
    """What recordings did not give. `silent`: those that are too short for a step."""

    left_out: LeftOut = field(default_factory=LeftOut)
    silent: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take over what another says."""
        self.left_out.add(other.left_out)
        self.silent += other.silent

    def problems(self, frames: int, rate: float) -> list[str]:
        """All of it in sentences; `frames`, `rate`: of the model's clips, in Hz."""
        short = (
            f"{name} is too short: the model needs {counted(frames, 'frame')} in a row, "
            f"{1 / rate:g} s from one to the next."
            for name in self.silent
        )
        return [*short, *self.left_out.sentences()]


@dataclass(frozen=True, eq=False)
class Made:
    """The moments of a recording in their order. `whole`: whether it was read to its end.

    `refused`: why it was not; empty where the report says so.
    """

    moments: list[Moment]
    report: Report
    whole: bool
    refused: str = ""


@dataclass
class Maker:
    """Makes the moments of recordings with one model."""

    model: Runtime
    settings: Settings
    robot: str
    speaker: Speaker | None  # None: the moments get no words
    file: StreamFile | None = None
    levels: Levels = FULL_RANGE  # of 16-bit images

    def whole(self, recording: Recording) -> Generator[float, None, Made]:
        """All moments of a recording at once; yields how many seconds of it are done."""
        moments: list[Moment] = []
        report, whole, refused = Report(), False, ""

        def say(id: str, text: str, confidence: float) -> None:
            for at in reversed(range(len(moments))):
                if moments[at].id == id:
                    moments[at] = replace(moments[at], text=text, confidence=confidence)
                    return

        try:
            yield from self.make(recording, moments.append, say, report)
            whole = True
        except EpisodeError:
            pass
        except (BagError, VideoError) as error:
            refused = str(error)
        return Made(moments, report, whole, refused)

    def make(self, recording: Recording, keep: Keep, say: Say, report: Report) -> Iterator[float]:
        """Make the moments of a recording; yields how many seconds of it are done.

        `keep(moment)`: each as it closes; `say(id, text, confidence)`: words that come after that.
        Those of an episode come when all are there, or, where it is not whole, none. Raises
        BagError, VideoError; EpisodeError, which the report has then.
        """
        if recording.episode is None:
            yield from self._make(recording, _placed(recording, keep), say, report)
            return
        if self.file is not None:
            self.file.hold()
        whole = False
        held: list[Moment] = []
        try:
            yield from self._make(recording, held.append, say, report)
            for moment in self._of_episode(recording.episode, recording, held):
                keep(moment)
            whole = True
        except EpisodeError as error:
            report.left_out.episode(error.episode.dataset.name, error.episode.index, error.reason)
            raise
        finally:
            if self.file is not None:
                self.file.release(whole)

    def _make(self, recording: Recording, keep: Keep, say: Say, report: Report) -> Iterator[float]:
        perceiver = Perceiver(self.model, list(recording.cameras.values()), self.settings)
        recorder = Recorder(self.robot, keep, say)
        frames = recording.frames(report.left_out, self.levels)
        rejected: dict[str, LeftOut] = defaultdict(LeftOut)  # by camera
        steps, elapsed = 0, Elapsed()

        def reject(frame: RecordedFrame, reason: str) -> None:
            rejected[frame.camera].image(f"of camera '{frame.camera}' cannot be used", reason)

        try:
            for frame, picture, found in perceive(frames, perceiver, reject):
                at_ns = frame.stamp_ns - recording.lead_ns
                small = thumbnail(picture)
                recorder.thumbnail(frame.camera, at_ns, small)
                if self.file is not None and found:
                    self.file.picture(frame, small)
                for step in found:
                    self._record(recorder, frame, step, recording.lead_ns)
                steps += len(found)
                yield elapsed.add(frame.log_ns)
            recorder.flush()
        finally:
            taken = {name for name in perceiver.cameras if perceiver.counters(name).taken}
            _say_rejected(recording, taken, rejected, report)
        if taken and not steps:
            report.silent.append(str(recording))

    def _of_episode(
        self, episode: Episode, recording: Recording, held: Sequence[Moment]
    ) -> Iterator[Moment]:
        """The moments of a whole episode, at their positions in it, and those of its labels.

        A label is a moment too, that means what the label says: so its own words find it.
        """
        (camera,) = recording.cameras.values()
        said = labels(Rows(episode))
        vectors = self.model.embed_text([label.text for label in said])
        found = [replace(one, episode=episode.index) for one in held]
        counts = Counter[tuple[str, int]]()
        for label, vector in zip(said, vectors, strict=True):
            start_ns, end_ns = round(label.start * 1e9), round(label.end * 1e9)
            counts[label.kind, start_ns] += 1
            number = counts[label.kind, start_ns]  # another wording
            middle = (start_ns + end_ns) // 2
            seen = min(found[: len(held)], key=lambda m: _apart(m, middle), default=None)
            found.append(
                Moment(
                    self.robot, camera, label.kind if number == 1 else f"{label.kind} {number}",
                    number, start_ns, end_ns, vector, label.text, 1.0,
                    thumbnail=seen.thumbnail if seen else b"", episode=episode.index,
                )
            )  # fmt: skip
        tasks = [label for label in said if label.kind == TASK]
        for one in found:
            at = (one.start_ns + one.end_ns) / 2e9
            task = next((label.text for label in tasks if label.start <= at <= label.end), "")
            yield replace(one, task=task)

    def _record(self, recorder: Recorder, frame: RecordedFrame, step: Step, lead_ns: int) -> None:
        place = (step.camera, step.query)
        recorder.step(
            *place, step.stamp_ns - lead_ns, step.segment_id, step.embedding, step.familiarity
        )
        if self.file is not None:
            self.file.step(frame, step)
        change = step.change
        if change is None:
            return
        recorder.change(
            *place, change.segment_id, change.segment_start_ns - lead_ns,
            change.previous_segment_id, change.previous_segment_start_ns - lead_ns,
        )  # fmt: skip
        known = not self.model.bundle.is_unfamiliar(step.familiarity)
        if self.speaker is not None and known:
            began = time.monotonic()
            said = self.speaker.say(step.embedding)
            if said.doubt:
                return
            recorder.words(*place, change.segment_id, said.text, said.confidence)
            if self.file is not None:
                self.file.utterance(frame, step, said, time.monotonic() - began)


def _placed(recording: Recording, keep: Keep) -> Keep:
    """Keep moments of a video with when that begins."""
    if not recording.is_video:
        return keep
    return lambda moment: keep(replace(moment, video_start_ns=recording.start_ns))


def _say_rejected(
    recording: Recording, taken: set[str], rejected: dict[str, LeftOut], report: Report
) -> None:
    """Say what could not be decoded.

    A topic that nobody named and of which nothing could be, beside others that were, is no
    camera (but depth, say), and is not left out.
    """
    for camera, bad in rejected.items():
        no_camera = taken and camera not in taken and not recording.named
        report.left_out.add(bad, only_note=bool(no_camera))


def _apart(moment: Moment, at_ns: int) -> int:
    """How far a moment is from a time; 0 where it holds it."""
    return max(0, moment.start_ns - at_ns, at_ns - moment.end_ns)
