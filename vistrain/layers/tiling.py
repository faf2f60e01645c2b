"""Where tiles lie that cover a side of an image."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

MANY = 10_000  # of one image: more are seldom meant

Rectangle = tuple[int, int, int, int]  # top, left, bottom, right; the last two exclusive


def starts(side: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where tiles start along a side: at multiples of `multiple`, at most `tile - overlap` apart, up to the last one
    that reaches the end."""
    if side <= tile:
        return [0]
    step = max((tile - overlap) // multiple, 1) * multiple
    return list(range(0, side - tile + step, step))


def tiles_of(height: int, width: int, tile: int, overlap: int) -> list[Rectangle]:
    """The tiles that cover an image, row by row."""
    rows, columns = (starts(side, tile, overlap) for side in (height, width))
    warn_of_many(len(rows) * len(columns), height, width)
    return [(y, x, min(y + tile, height), min(x + tile, width)) for y in rows for x in columns]


def warn_of_many(count: int, height: int, width: int) -> None:
    """Say so, before it takes hours, where one image is cut into very many tiles or windows."""
    if count > MANY:
        message = "an image of %d x %d pixels is cut into %d tiles: larger ones, or less overlap, take less time"
        log.warning(message, height, width, count)
