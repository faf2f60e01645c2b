"""Boxes on pictures: labels that stay readable from 64 pixels to 4k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vistrain.pictures.colours import RGB, stable_colour
from vistrain.pictures.text import line_height, shorten, text_width, write_text

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive


def draw_boxes(
    image: np.ndarray,
    boxes: Any,
    labels: Any,
    scores: Any = None,
    names: Mapping[int, str] | Sequence[str] = (),
    threshold: float = 0.0,
    colours: Mapping[int, RGB] | None = None,
) -> np.ndarray:
    """A copy of the image with boxes, and a label at each: the class and, where there are scores, the score.

    Args:
        image: uint8 `[H, W, 3]`.
        boxes: `[N, 4]` (x1, y1, x2, y2) in pixels of `image`, array or CPU tensor. Parts outside the image are cut off;
            boxes that are empty, outside or not finite are not drawn.
        labels: `[N]` class channels.
        scores: `[N]` in 0..1, or None for ground truth. The best are drawn last, on top.
        names: channel -> class name (`LabelSpace.name_of`), or names in the order of channels; a class without a name
            is shown by its number.
        threshold: boxes with lower scores are not drawn.
        colours: channel -> RGB (`class_colours`); default: stable colours by the position in `names`.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: the image is not uint8 `[H, W, 3]`, or the lengths differ.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    boxes, labels = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(labels, dtype=np.int64).reshape(-1)
    shown = np.ones(len(labels)) if scores is None else np.asarray(scores, dtype=np.float64).reshape(-1)
    if not len(boxes) == len(labels) == len(shown):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels and {len(shown)} scores do not pair up")
    named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    position = {channel: i for i, channel in enumerate(named)}
    drawn = Image.fromarray(np.ascontiguousarray(image))
    pen = ImageDraw.Draw(drawn)
    size, line = _sizes(drawn.size)
    placed: list[tuple[Rectangle, str, RGB]] = []
    outlines: list[tuple[Rectangle, RGB]] = []
    for i in np.argsort(-shown, kind="stable"):
        box = _clip(boxes[i], drawn.size)
        if box is None or (scores is not None and not shown[i] >= threshold):
            continue
        label = int(labels[i])
        colour = (colours or {}).get(label) or stable_colour(position.get(label, label))
        text = named.get(label, f"class {label}") + ("" if scores is None else f" {shown[i]:.2f}")
        text = shorten(text, drawn.width - 2 * line, size)
        placed.append((_place(box, text, size, line, drawn.size, [p[0] for p in placed]), text, colour))
        outlines.append((box, colour))
    for box, colour in reversed(outlines):
        _outline(pen, box, colour, line)
    for area, text, colour in reversed(placed):
        _label(pen, area, text, colour, size, line)
    return np.array(drawn)


def _sizes(picture: tuple[int, int]) -> tuple[int, int]:
    """Font size and line width in pixels for a picture of this width and height."""
    side = float(np.sqrt(picture[0] * picture[1]))
    return int(np.clip(round(side / 44), 8, 96)), max(1, round(side / 300))


def _clip(box: np.ndarray, picture: tuple[int, int]) -> Rectangle | None:
    """Whole pixels of a box inside the picture; None where nothing of it is."""
    if not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
        return None
    width, height = picture
    if (box[2:] <= 0).any() or box[0] >= width or box[1] >= height:
        return None
    left, top = (int(np.floor(max(v, 0))) for v in box[:2])
    right, bottom = min(int(np.ceil(box[2])), width), min(int(np.ceil(box[3])), height)
    return left, top, right, bottom


def _outline(pen: ImageDraw.ImageDraw, box: Rectangle, colour: RGB, line: int) -> None:
    left, top, right, bottom = box
    dark = (colour[0] // 4, colour[1] // 4, colour[2] // 4)  # an edge that keeps a light box visible on a light ground
    if line > 2 and min(right - left, bottom - top) > 4 * line:
        pen.rectangle((left, top, right - 1, bottom - 1), outline=dark, width=line + max(1, line // 3))
    pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)


def _label(pen: ImageDraw.ImageDraw, area: Rectangle, text: str, colour: RGB, size: int, line: int) -> None:
    if not text:
        return
    left, top, right, bottom = area
    pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    write_text(pen, (left + line, top), text, size, (0, 0, 0) if luminance > 128 else (255, 255, 255))


def _place(
    box: Rectangle, text: str, size: int, line: int, picture: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Where a label goes: above its box, else inside at the top, below, inside at the bottom - the first that is inside
    the picture and hides no better label; else wherever it fits."""
    width, height = int(np.ceil(text_width(text, size))) + 2 * line, line_height(size)
    left = max(0, min(box[0], picture[0] - width))
    tops = (box[1] - height, box[1], box[3], box[3] - height)
    inside = [t for t in tops if t >= 0 and t + height <= picture[1]] or [max(0, min(box[1], picture[1] - height))]
    for top in inside:
        area = (left, top, left + width, top + height)
        if not any(_overlap(area, other) for other in taken):
            return area
    return left, inside[0], left + width, inside[0] + height


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
