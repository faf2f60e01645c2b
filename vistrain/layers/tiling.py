"""Where tiles lie that cover a side of an image."""

from __future__ import annotations


def starts(side: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where tiles start along a side: at multiples of `multiple`, at most `tile - overlap` apart, up to the last one
    that reaches the end."""
    if side <= tile:
        return [0]
    step = max((tile - overlap) // multiple, 1) * multiple
    return list(range(0, side - tile + step, step))
