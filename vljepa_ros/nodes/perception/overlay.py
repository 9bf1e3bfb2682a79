"""The picture for people: the frame with score, state and the last words."""

from __future__ import annotations

import cv2
import numpy as np

from vljepa_ros.perception.perceiver import Step

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_QUIET, _CHANGE = (80, 200, 120), (240, 80, 60)  # RGB


def draw(picture: np.ndarray, step: Step, words: str) -> np.ndarray:
    """A copy of RGB uint8 `[H, W, 3]` with the step's score as a bar, its state and `words`.

    The bar is full at a score of 1.0, which is a change. Familiarity is told where the bundle can
    tell. Letters that OpenCV's font does not have are drawn as '?'.
    """
    canvas = picture.copy()
    height, width = canvas.shape[:2]
    scale = max(0.35, width / 1000)
    line = round(30 * scale)
    changed = step.change is not None
    colour = _CHANGE if changed else _QUIET
    filled = round(width * min(max(step.change_score, 0.0), 1.0))
    cv2.rectangle(canvas, (0, 0), (filled, line // 3), colour, -1)
    state = "changed" if changed else "reused" if step.reused else "new"
    text = f"{step.camera}  segment {step.segment_id}  {step.change_score:.2f}  {state}"
    if step.familiarity >= 0:
        text += f"  familiar {step.familiarity:.2f}"
    _write(canvas, text, (4, line // 3 + line), scale, colour)
    if words:
        _write(canvas, words, (4, height - line // 3), scale, (255, 255, 255))
    return canvas


def _write(
    canvas: np.ndarray, text: str, at: tuple[int, int], scale: float, colour: tuple[int, int, int]
) -> None:
    """Text with a dark outline, to be read on any picture."""
    text = text.encode("ascii", "replace").decode()
    cv2.putText(canvas, text, at, _FONT, scale, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(canvas, text, at, _FONT, scale, colour, 1, cv2.LINE_AA)
