"""A contact sheet: moments as a picture, best first, each with its time, camera, score and words.

Invariant: every moment has a cell of the same size, also one without a thumbnail.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vljepa_ros.errors import VLJepaError
from vljepa_ros.memory.store import Found
from vljepa_ros.perception.compressed import compressed_to_rgb
from vljepa_ros.stamps import clock

WIDTH, HEIGHT = 320, 240  # of a picture
CAPTION, MARGIN, TITLE = 84, 16, 56  # pixels
LINE = 18  # pixels from line to line
COLUMNS = 4  # at most
BACKGROUND, CELL = (24, 22, 20), (44, 41, 38)  # BGR
WHITE, GREY, ACCENT = (240, 238, 235), (170, 165, 160), (110, 200, 130)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FINER = 4  # text is drawn so many times larger, and shrunk


def write_sheet(path: Path, title: str, found: Sequence[Found], enough: float = 0.0) -> None:
    """Draw the moments into a picture, by its ending. Raises VLJepaError.

    `enough`: the score below which a match is weak.
    """
    _, data = cv2.imencode(path.suffix.lower(), draw_sheet(title, found, enough))
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise VLJepaError(f"{path} cannot be written: {error.strerror}.") from error


def draw_sheet(title: str, found: Sequence[Found], enough: float = 0.0) -> np.ndarray:
    """The sheet, BGR uint8 `[H, W, 3]`."""
    columns = max(1, min(COLUMNS, math.ceil(math.sqrt(len(found)))))
    rows = math.ceil(len(found) / columns)
    across, down = WIDTH + MARGIN, HEIGHT + CAPTION + MARGIN
    sheet = np.empty((TITLE + rows * down + MARGIN // 2, columns * across + MARGIN, 3), np.uint8)
    sheet[:] = BACKGROUND
    room = (sheet.shape[1] - 2 * MARGIN) // 13
    _write(sheet, textwrap.shorten(title, room, placeholder=" ..."), (MARGIN, 36), 22, WHITE)
    for place, one in enumerate(found):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * across, TITLE + row * down
        _draw_cell(sheet[y : y + HEIGHT + CAPTION, x : x + WIDTH], place + 1, one, enough)
    return sheet


def _draw_cell(cell: np.ndarray, rank: int, found: Found, enough: float) -> None:
    cell[:] = CELL
    moment = found.moment
    picture = _picture(moment.thumbnail)
    if picture is None:
        _write(cell, "no picture", (WIDTH // 2 - 40, HEIGHT // 2), 14, GREY)
    else:
        height, width = picture.shape[:2]
        x, y = (WIDTH - width) // 2, (HEIGHT - height) // 2
        cell[y : y + height, x : x + width] = picture
    bar = round(WIDTH * min(max(found.score, 0.0), 1.0))
    weak = found.score < enough
    accent = GREY if weak else ACCENT
    cell[HEIGHT : HEIGHT + 3, :bar] = accent
    y = HEIGHT + 20
    seconds = (moment.end_ns - moment.start_ns) / 1e9
    _write(cell, f"{rank}.  {clock(moment.start_ns)} for {seconds:.1f} s", (10, y), 14, WHITE)
    _write(cell, f"{found.score:.2f}", (WIDTH - 42, y), 14, accent)
    where = f"{moment.camera}, episode {moment.episode}" if moment.episode >= 0 else moment.camera
    if moment.video_start_ns > 0:  # else the time is the position
        where += f", {moment.position:.3f} s in"
    _write(cell, textwrap.shorten(where, 32, placeholder="..."), (10, y + LINE), 12, GREY)
    if weak:
        _write(cell, "weak", (WIDTH - 42, y + LINE), 12, GREY)
    words = textwrap.wrap(moment.text, 42, max_lines=2, placeholder=" ...")
    for number, line in enumerate(words):
        _write(cell, line, (10, y + (2 + number) * LINE), 13, WHITE)


def _picture(jpeg: bytes) -> np.ndarray | None:
    """The thumbnail, BGR, as large as fits; None where there is none that is whole."""
    try:
        picture = cv2.cvtColor(compressed_to_rgb("jpeg", jpeg), cv2.COLOR_RGB2BGR)
    except ValueError:
        return None
    height, width = picture.shape[:2]
    scale = min(WIDTH / width, HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _write(
    canvas: np.ndarray, text: str, at: tuple[int, int], size: int, colour: tuple[int, int, int]
) -> None:
    """Text of `size` pixels, smooth; letters that OpenCV's font does not have are '?'."""
    text = text.encode("ascii", "replace").decode()
    if not text:
        return
    scale = _FINER * size / 30
    thickness = max(1, round(_FINER * size / 11))
    (width, height), below = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = _FINER
    mask = np.zeros((height + below + 2 * pad, width + 2 * pad), np.uint8)
    cv2.putText(mask, text, (pad, pad + height), _FONT, scale, 255, thickness, cv2.LINE_AA)
    small = (max(1, mask.shape[1] // _FINER), max(1, mask.shape[0] // _FINER))
    alpha = cv2.resize(mask, small, interpolation=cv2.INTER_AREA)[..., None] / 255
    x, y = at[0], at[1] - (pad + height) // _FINER
    part = canvas[y : y + small[1], x : x + small[0]]
    alpha = alpha[: part.shape[0], : part.shape[1]]
    part[:] = (part * (1 - alpha) + np.array(colour) * alpha).astype(np.uint8)
