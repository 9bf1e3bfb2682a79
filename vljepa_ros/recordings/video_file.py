"""The pictures of a video file, each at its own time (PyAV).

Invariant: times are those that the file gives, in seconds from its start, and rise strictly; a
picture that the decoder calls damaged is left out, counted and reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vljepa_ros.errors import VLJepaError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

OLDEST = 17  # PyAV; FFmpeg of before tells less of what is damaged, and converts 10 bits coarsely
USUAL_RATE = 25  # pictures per second where a file gives neither times nor a rate
CLOCK = 1000  # Hz: a "rate" from here on is the clock of a container that has no rate
# To find a picture it is looked for earlier: a file is searched by times of decoding, which run
# ahead by as many pictures as may be coded out of order.
EARLY, REORDERED = 1.0, 16  # s, pictures
SPLICE = 1  # s: where times step back by more, another recording was appended


class VideoError(VLJepaError):
    """A video source cannot be opened or read."""


class VideoFile:
    """A video file of any format that FFmpeg decodes. Raises VideoError.

    `fps`: its mean rate, 0 where it does not say; `seconds`: its length, 0 where it does not say;
    `size`: (width, height) of its first picture; `left_out`: how many pictures the newest
    `pictures()` has left out; `tell` is told of them.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = log.warning) -> None:
        self.path, self._tell = path, tell
        self.left_out = 0
        with self._open() as (container, stream):
            rate = float(stream.average_rate or 0)
            self.fps = rate if rate < CLOCK else 0.0
            self.seconds = _seconds(container, stream)
            first = next(self._decoded(container, stream), None)
        if first is None:
            raise self._refusal()
        height, width = first[1].shape[:2]
        self.size = (width, height)

    def pictures(self) -> Iterator[tuple[Fraction, np.ndarray]]:
        """(seconds from the start, RGB uint8 `[H, W, 3]`) of every whole picture."""
        self.left_out, end = 0, Fraction(0)
        with self._open() as (container, stream):
            times = _Times(container, stream, self.fps)
            # A container's own duration may be that of its sound.
            own = stream.duration is not None or len(container.streams) == 1
            promised = self.seconds if own else 0.0
            try:
                for frame, picture in self._decoded(container, stream):
                    at = times.of(frame, late=self.left_out > 0)
                    if at is None:
                        self.left_out += 1
                        continue
                    end = at + (frame.duration * times.unit or times.period)
                    yield at, picture
                self.seconds = float(end)
                if end + times.period < promised:
                    self._tell(
                        f"{self.path} ends early, at {float(end):.2f} of {promised:.2f} s; it may "
                        "be cut short."
                    )
            finally:
                if self.left_out:
                    self._tell(
                        f"{self.path}: pictures that are damaged or step back in time were left "
                        f"out: {self.left_out}."
                    )

    def stretch(self, start: float, end: float) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
        """(seconds from the start of the file, picture) of every whole picture in between.

        `picture()`: RGB uint8 `[H, W, 3]`. Nothing is told of what is missing.
        """
        with self._open() as (container, stream):
            unit, first = stream.time_base or Fraction(0), stream.start_time or 0
            early = max(EARLY, REORDERED / (self.fps or USUAL_RATE))
            if start > early and unit:
                container.seek(first + int((start - early) / unit), stream=stream)
            for frame, picture in self._decoded(container, stream, _later):
                if frame.pts is None:
                    continue
                at = float((frame.pts - first) * unit)
                if at >= end:
                    return
                if at >= start:
                    yield at, picture

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        av = _pyav(self.path)
        try:
            container = av.open(f"file:{self.path}", metadata_errors="ignore")
        except (av.FFmpegError, ValueError) as error:
            raise self._refusal() from error
        with container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise self._refusal()
            yield container, stream  # type: ignore[misc]

    def _decoded(
        self,
        container: InputContainer,
        stream: VideoStream,
        made: Callable[[VideoFrame], Any] | None = None,
    ) -> Iterator[tuple[VideoFrame, Any]]:
        """The whole frames, with what is made of them; `left_out` counts the others.

        `made`: by default the picture.
        """
        import av

        # Threads within a picture only: of several pictures that are decoded at once, one that is
        # damaged near the end takes the others along, on many cores more than on few.
        stream.thread_type = "SLICE"
        owed = 0
        for packet in _packets(container, stream):
            owed += packet is not None and not packet.is_discard
            try:
                for frame in stream.codec_context.decode(packet):
                    owed -= 1
                    if frame.is_corrupt:
                        self.left_out += 1
                    else:
                        yield frame, (made or _picture)(frame)
            except (av.FFmpegError, ValueError):
                owed -= 1
                self.left_out += 1
        if stream.codec_context.name == "hevc":  # which passes over damage without a word
            self.left_out += max(0, owed)

    def _refusal(self) -> VideoError:
        return VideoError(
            f"{self.path} is not a video that can be decoded; it may be damaged or cut short. "
            "Converting it with ffmpeg to H.264 in MP4 usually helps."
        )


def _pyav(path: Path) -> Any:
    """The module, which is looked for only where a video is read: robots do without it."""
    try:
        import av
    except ImportError as error:
        found = str(error)
    else:
        found = av.__version__
        if int(found.split(".")[0]) >= OLDEST:
            return av
    raise VideoError(
        f"Reading the video {path} needs PyAV {OLDEST} or newer ({found}): "
        "pip install --upgrade av."
    )


class _Times:
    """The times of one stream in seconds from its start."""

    def __init__(self, container: InputContainer, stream: VideoStream, fps: float) -> None:
        self.unit = stream.time_base or Fraction(0)
        self.period = 1 / Fraction(fps or USUAL_RATE)
        self._stream_start = stream.start_time
        # AVI has times of decoding only; what FFmpeg makes of them is wrong where pictures are
        # coded out of order.
        self._decoding = container.format.name == "avi"
        self._start: int | None = None
        self._last = -self.period
        self._splice = Fraction(0)

    def of(self, frame: VideoFrame, late: bool) -> Fraction | None:
        """The time of `frame`, above all before; None where it steps back.

        `late`: what came before it is damaged, so that the stream began earlier. Frames without
        times, of a dump, follow each other at the stream's rate.
        """
        following = self._last + self.period
        stamp = frame.dts if self._decoding else frame.pts
        if stamp is None:
            self._last = following
            return following
        if self._start is None:
            known = self._stream_start if late else None
            self._start = stamp if known is None else known
        at = (stamp - self._start) * self.unit + self._splice
        if at < self._last - SPLICE:
            self._splice += following - at
            at = following
        if at <= self._last:
            return None
        self._last = at
        return at


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet | None]:
    """The packets of a stream as far as they can be read, then None, which ends the decoding."""
    import av

    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None


def _picture(frame: VideoFrame) -> np.ndarray:
    """RGB uint8 `[H, W, 3]`, turned as it is to be shown."""
    picture = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _later(frame: VideoFrame) -> Callable[[], np.ndarray]:
    """What makes its picture when it is called."""
    return partial(_picture, frame)


def _seconds(container: InputContainer, stream: VideoStream) -> float:
    unit = float(stream.time_base or 0)
    if stream.duration is not None:
        return stream.duration * unit
    if container.duration is None:
        return 0.0
    return max(0.0, container.duration / 1e6 - (stream.start_time or 0) * unit)
