"""Lines over an image: lanes, each in the colour of its place."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from vistrain.pictures.colours import RGB

COLOURS: tuple[RGB, ...] = (
    (255, 80, 80),
    (90, 220, 90),
    (80, 150, 255),
    (250, 210, 60),
    (220, 100, 240),
    (90, 230, 230),
)


def draw_lanes(image: np.ndarray, lanes: Sequence[np.ndarray], scale: float = 1.0, dots: bool = False) -> np.ndarray:
    """An image with lines over it.

    Args:
        image: uint8 `[H, W, 3]`.
        lanes: each `[N, 2]` (x, y), pixels; the colour is that of the position in the sequence.
        scale: of the points to the image.
        dots: colour the points alone, which are whole pixels.

    Returns:
        uint8 `[H, W, 3]`, a copy.
    """
    drawn = image.copy()
    thickness = max(2, round(image.shape[1] / 200))
    for index, lane in enumerate(lanes):
        colour, points = COLOURS[index % len(COLOURS)], np.rint(np.asarray(lane) * scale).astype(np.int32)
        if dots:
            drawn[points[:, 1], points[:, 0]] = colour
        elif len(points):
            cv2.polylines(drawn, [points], False, colour, thickness, cv2.LINE_AA)
    return drawn
