"""Videos of our own making, whose pictures say by their grey which they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from encoders import usual_scheduling

MILLISECOND = Fraction(1, 1000)


def grey(number: int) -> int:
    """Of the picture of that number: no two of the first 30 are nearer than 8."""
    return 8 + 8 * number


def numbers(pictures: Iterable[np.ndarray]) -> list[int]:
    """Which pictures they are; video coding moves a grey by 1 or 2."""
    return [round((float(picture.mean()) - 8) / 8) for picture in pictures]


def write_video(
    path: Path,
    times: Sequence[int],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    make: Callable[[int], np.ndarray] | None = None,
    target: Any = None,
    container: dict[str, str] | None = None,
) -> Path:
    """A video with a picture at each of `times`, in ms, 64 x 48.

    `options` of the encoder, `container` of the muxer; `make`: RGB of a picture, by default of one
    grey; `target`: written to in place of `path`.
    """
    kind = None if target is None else path.suffix[1:]
    opened = av.open(target or str(path), "w", format=kind, container_options=container)
    with usual_scheduling(), opened as out:
        stream: Any = out.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        if path.suffix != ".avi":  # which has one rate
            stream.codec_context.time_base = MILLISECOND
        for number, time in enumerate(times):
            rgb = make(number) if make else np.full((48, 64, 3), grey(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time, MILLISECOND
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def packets(path: Path) -> list[tuple[int, int]]:
    """Where the coded pictures lie in the file, and their sizes."""
    with av.open(str(path)) as container:
        return [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]
