"""Where tiles lie that cover a side of an image."""

from __future__ import annotations

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
    return [(y, x, min(y + tile, height), min(x + tile, width)) for y in rows for x in columns]
