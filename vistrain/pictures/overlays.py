"""Maps of classes as people look at them: colours, colours over the image, and legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vistrain.pictures.boxes import RGB, stable_colour
from vistrain.pictures.grids import GROUND, INK
from vistrain.pictures.text import font, line_height, shorten

UNLABELLED: RGB = (0, 0, 0)


def coloured(classes: np.ndarray, colours: Mapping[int, RGB]) -> np.ndarray:
    """The colour of each pixel's class.

    Args:
        classes: integers `[H, W]`.
        colours: class -> RGB; any other value is black.

    Returns:
        uint8 `[H, W, 3]`.
    """
    table = np.full((max(colours, default=0) + 2, 3), UNLABELLED, np.uint8)
    for value, colour in colours.items():
        table[value] = colour
    inside = (classes >= 0) & (classes < len(table))
    return table[np.where(inside, classes, len(table) - 1)]


def overlaid(image: np.ndarray, classes: np.ndarray, colours: Mapping[int, RGB], opacity: float = 0.55) -> np.ndarray:
    """An image under the colours of its classes; where there is none, the image alone.

    Args:
        image: uint8 `[H, W, 3]`.
        classes: integers of any size `[h, w]`; enlarged by repetition.
        colours: class -> RGB.
        opacity: of the colours, 0..1.

    Returns:
        uint8 `[H, W, 3]`.
    """
    height, width = image.shape[:2]
    if classes.shape != (height, width):
        classes = cv2.resize(classes.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    known = np.isin(classes, list(colours))[..., None]
    mixed = cv2.addWeighted(image, 1 - opacity, coloured(classes, colours), opacity, 0)
    return np.where(known, mixed, image)


def legend(names: Mapping[int, str], colours: Mapping[int, RGB], shown: Sequence[int], width: int) -> np.ndarray:
    """Names of classes beside their colours, in as many lines as the width needs.

    Args:
        names: class -> name.
        colours: class -> RGB; a class without one has its stable colour.
        shown: classes, in this order.
        width: pixels.

    Returns:
        uint8 `[h, width, 3]`; no rows where no class is shown.
    """
    size = 12 if width >= 200 else 9
    line = line_height(size) + 2
    places: list[tuple[int, int, int, str]] = []
    left = top = 0
    for value in shown:
        text = shorten(names.get(value, f"class {value}"), width - 2 * line, size)
        needed = line + int(font(size).getlength(text)) + line // 2
        if left and left + needed > width:
            left, top = 0, top + line
        places.append((left, top, value, text))
        left += needed
    if not places:
        return np.zeros((0, width, 3), np.uint8)
    canvas = Image.new("RGB", (width, top + line), GROUND)
    pen = ImageDraw.Draw(canvas)
    for left, top, value, text in places:
        colour = colours.get(value) or stable_colour(value)
        pen.rectangle((left + 2, top + 2, left + line - 5, top + line - 4), fill=colour, outline=INK)
        pen.text((left + line, top), text, fill=INK, font=font(size))
    return np.array(canvas)
