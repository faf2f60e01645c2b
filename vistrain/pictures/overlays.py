"""Maps of classes and masks of objects as people look at them: colours, colours over the image, and legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vistrain.layers.packed_masks import PackedMasks
from vistrain.pictures.colours import RGB, stable_colour
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


def draw_masks(
    image: np.ndarray,
    masks: PackedMasks,
    labels: Sequence[int],
    colours: Mapping[int, RGB],
    opacity: float = 0.45,
) -> np.ndarray:
    """A copy of an image under the masks of its objects, each in its class's colour, outlined.

    Args:
        image: uint8 `[H, W, 3]`.
        masks: of an image of any size; they are brought to this one's. The first is drawn last, on top.
        labels: class channel of each.
        colours: channel -> RGB (`class_colours`); a channel without one has its stable colour.
        opacity: of the colours, 0..1.

    Returns:
        uint8 `[H, W, 3]`.
    """
    drawn = image.copy()
    scale = np.array(image.shape[:2]) / masks.size
    for i in reversed(range(len(masks))):
        label, (top, left, mask) = labels[i], masks.part(i)
        low = np.floor((top, left) * scale).astype(int)
        high = np.minimum(np.ceil((top + mask.shape[0], left + mask.shape[1]) * scale).astype(int), image.shape[:2])
        if (high <= low).any() or not mask.size:
            continue
        fitted = cv2.resize(mask.view(np.uint8), tuple((high - low)[::-1].tolist()), interpolation=cv2.INTER_NEAREST)
        colour = colours.get(label) or stable_colour(label)
        region = drawn[low[0] : high[0], low[1] : high[1]]
        region[fitted > 0] = (region[fitted > 0] * (1 - opacity) + np.array(colour) * opacity).astype(np.uint8)
        outlines = cv2.findContours(fitted, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
        width = max(1, round(float(np.sqrt(drawn.shape[0] * drawn.shape[1])) / 600))
        cv2.drawContours(drawn, [line + low[::-1] for line in outlines], -1, colour, width)
    return drawn


def legend(
    names: Mapping[int, str], colours: Mapping[int, RGB], shown: Sequence[int], width: int, nothing: str = ""
) -> np.ndarray:
    """Names of classes beside their colours, in as many lines as the width needs.

    Args:
        names: class -> name.
        colours: class -> RGB; a class without one has its stable colour.
        shown: classes, in this order.
        width: pixels.
        nothing: what is written where no class is shown.

    Returns:
        uint8 `[h, width, 3]`; no rows where nothing is written.
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
    if not places and not nothing:
        return np.zeros((0, width, 3), np.uint8)
    canvas = Image.new("RGB", (width, top + line), GROUND)
    pen = ImageDraw.Draw(canvas)
    if not places:
        pen.text((2, 0), shorten(nothing, width - 4, size), fill=INK, font=font(size))
    for left, top, value, text in places:
        colour = colours.get(value) or stable_colour(value)
        pen.rectangle((left + 2, top + 2, left + line - 5, top + line - 4), fill=colour, outline=INK)
        pen.text((left + line, top), text, fill=INK, font=font(size))
    return np.array(canvas)
