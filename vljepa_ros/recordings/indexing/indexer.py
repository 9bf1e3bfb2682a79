"""Moments of recordings into a store.

Invariant: what is indexed again replaces itself, and nothing that is known of it otherwise is
forgotten. Only here is the store written, whoever made the moments.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.writer import Keeper, Writer

from ..lerobot.dataset import EpisodeError
from .maker import Made, Maker, Report
from .recording import Recording

BATCH = 64  # moments that are written at once


@dataclass
class Indexer:
    """Keeps the moments of recordings, and counts; tells `show(seconds done, moments)`.

    `tell(recording, moment)`: each moment, a little before the store has it.
    """

    store: Keeper
    show: Callable[[float, int], None]
    tell: Callable[[Path, Moment], None]
    moments: int = 0
    new: int = 0  # moments that the store did not have
    done: float = 0.0  # seconds of recordings
    report: Report = field(default_factory=Report)
    _began: float = field(default_factory=time.monotonic)

    def index(self, recording: Recording, maker: Maker) -> None:
        """Make and keep the moments of one recording. What was made stays where this is cut off.

        An episode is kept whole, or left out. Raises BagError, VideoError.
        """
        writer = Writer(self.store)

        def keep(moment: Moment) -> None:
            self._keep(recording, moment, writer)

        steps = maker.make(recording, keep, writer.say, self.report)
        try:
            for seconds in steps:
                self.show(self.done + seconds, self.moments)
        except EpisodeError:
            return
        finally:
            writer.write()
        self._finished(recording)

    def take(self, recording: Recording, made: Made) -> None:
        """Keep what a worker made of a recording."""
        writer = Writer(self.store)
        for moment in made.moments:
            self._keep(recording, moment, writer)
        writer.write()
        self.report.add(made.report)
        if made.whole:
            self._finished(recording)

    def ahead(self, seconds: float) -> None:
        """So many seconds are done of recordings that were not taken yet."""
        self.show(self.done + seconds, self.moments)

    def _finished(self, recording: Recording) -> None:
        self.done += recording.seconds
        self.show(self.done, self.moments)

    def _keep(self, recording: Recording, moment: Moment, writer: Writer) -> None:
        """Keep a moment, with what the robot knew of it and the recording does not say."""
        self.moments += 1
        known = self.store.get(moment.id)
        if known is None:
            self.new += 1
        else:
            if known.text and not moment.text:
                moment = replace(moment, text=known.text, confidence=known.confidence)
            moment = replace(moment, pose=known.pose, pinned=known.pinned)
        writer.keep(moment)
        self.tell(recording.path, moment)
        if writer.waiting >= BATCH:
            writer.write()

    def took(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def pace(self) -> str:
        """How long it took."""
        took = self.took()
        return f"{self.done:.1f} s of recordings in {took:.1f} s, {self.done / took:.1f} x"
