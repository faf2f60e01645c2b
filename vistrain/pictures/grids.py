"""Pictures side by side, whatever their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vistrain.pictures.text import line_height, shorten, write_text
from vistrain.writing import whole_file

GROUND = (250, 250, 250)
INK = (30, 30, 30)
GAP = 8  # pixels between cells
SMALL, HUGE = 480, 8192  # long sides of pictures to look at, pixels
ENLARGED = 2.5  # tiny images are shown up to this many times as large
COMPRESSION = 1  # of PNGs to look at: a quarter of the time of the usual 6, for a sixth more bytes


def fitted(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """An image of a size to look at, and how many times as large it is.

    Args:
        image: uint8 `[H, W, 3]`.
        side: of its long side, pixels; an image is enlarged 2.5 times at the most.
    """
    height, width = image.shape[:2]
    scale = min(ENLARGED, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size)), scale


def viewable(image: np.ndarray) -> tuple[np.ndarray, float]:
    """As `fitted`: small images enlarged, so that labels of a readable size leave something of them, huge ones smaller,
    all others as they are.

    Args:
        image: uint8 `[H, W, 3]`.
    """
    longest = max(image.shape[:2])
    return (image, 1.0) if SMALL <= longest <= HUGE else fitted(image, SMALL if longest < SMALL else HUGE)


def save_picture(picture: np.ndarray, png: str | Path) -> None:
    """Write a picture to look at; the file appears whole or not at all.

    Args:
        picture: uint8 `[H, W, 3]`.
        png: the file.

    Raises:
        DataError: it cannot be written.
    """
    with whole_file(png) as partial:
        Image.fromarray(picture).save(partial, format="png", compress_level=COMPRESSION)


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] | None = None,
    max_width: int = 1920,
    max_height: int = 4320,
    max_side: int = 640,
) -> np.ndarray:
    """Images in rows and columns, brought to one long side, with captions above them.

    Args:
        rows: rows of uint8 images `[H, W, 3]` or `[H, W]`, of any sizes; rows may differ in length.
        captions: a text for each image (same shape as `rows`), or None; too long ones end in an ellipsis.
        max_width, max_height: of the whole picture, pixels.
        max_side: largest long side of an image in the grid, pixels.

    Returns:
        uint8 `[H, W, 3]`; a single small blank picture where there is no image.

    Raises:
        ValueError: an image is not uint8, or the captions do not pair up with the images.
    """
    if captions is not None and [len(r) for r in captions] != [len(r) for r in rows]:
        raise ValueError(f"captions {[len(r) for r in captions]} do not pair up with images {[len(r) for r in rows]}")
    images = [[_as_image(image) for image in row] for row in rows if len(row)]
    if not images:
        return np.full((64, 64, 3), GROUND, np.uint8)
    texts = None if captions is None else [list(row) for row in captions if len(row)]
    columns = max(len(row) for row in images)
    largest = max(max(image.size) for row in images for image in row)
    row_height = (max_height - GAP) // len(images) - GAP
    side = max(16, min(max(largest, 160), max_side, (max_width - GAP) // columns - GAP, row_height))
    size = int(np.clip(side // 24, 10, 18))
    header = line_height(size) if texts is not None else 0
    side = max(16, min(side, row_height - header))
    scaled = [[_scale(image, side) for image in row] for row in images]
    widths = [max(row[c].width for row in scaled if c < len(row)) for c in range(columns)]
    heights = [max(image.height for image in row) for row in scaled]
    canvas = Image.new(
        "RGB", (sum(widths) + GAP * (columns + 1), sum(heights) + (GAP + header) * len(heights) + GAP), GROUND
    )
    pen = ImageDraw.Draw(canvas)
    top = GAP
    for r, row in enumerate(scaled):
        left = GAP
        for c, image in enumerate(row):
            if texts is not None:
                write_text(pen, (left, top), shorten(texts[r][c], widths[c], size), size, INK)
            canvas.paste(image, (left, top + header))
            left += widths[c] + GAP
        top += heights[r] + header + GAP
    if canvas.width > max_width or canvas.height > max_height:  # very many rows
        canvas.thumbnail((max_width, max_height), Image.Resampling.LANCZOS)
    return np.array(canvas)


def _as_image(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8:
        raise ValueError(f"an image is uint8, not {image.dtype}")
    return Image.fromarray(
        np.ascontiguousarray(image.squeeze() if image.ndim == 3 and image.shape[2] == 1 else image)
    ).convert("RGB")


def _scale(image: Image.Image, side: int) -> Image.Image:
    factor = side / max(image.size)
    if factor == 1:
        return image
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    # Enlarged pixels stay pixels: nobody should take interpolation for image content
    return image.resize(size, Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS)
