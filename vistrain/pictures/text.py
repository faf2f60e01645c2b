"""Text in pictures: one font that is always there, and the few sums that place it."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageFont


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans (Latin, Greek, Cyrillic and more) at `size` pixels, from matplotlib's files: needs no system font."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def shorten(text: str, width: float, size: int) -> str:
    """The text on one line, or its beginning and an ellipsis, at most `width` pixels wide; empty if nothing fits."""
    text = " ".join(text.split())  # Pillow cannot measure line breaks
    if font(size).getlength(text) <= width:
        return text
    for end in range(len(text) - 1, 0, -1):
        candidate = text[:end].rstrip() + "…"
        if font(size).getlength(candidate) <= width:
            return candidate
    return ""


def line_height(size: int) -> int:
    """Pixels from the top of one line to the top of the next."""
    ascent, descent = font(size).getmetrics()
    return ascent + descent
