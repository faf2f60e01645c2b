"""Degraded, restored and true image side by side, with the numbers on them."""

from __future__ import annotations

import numpy as np
from PIL import Image


def restoration_row(
    low: np.ndarray,
    restored: np.ndarray | None,
    truth: np.ndarray | None,
    name: str = "",
    numbers: str = "",
    side: int = 480,
) -> list[tuple[str, np.ndarray]]:
    """One image as a row for `pictures.grid`: the middle of large images, so that pixels stay visible.

    Args:
        low: uint8 `[h, w, C]`, degraded; enlarged pixel by pixel to the size of the others.
        restored: uint8 `[H, W, C]`, or None.
        truth: uint8 `[H, W, C]`, or None.
        name: of the image.
        numbers: of the restored image, such as `28.42 dB, 0.810`.
        side: of the part that is shown, pixels of the restored image.

    Returns:
        Captions and pictures, uint8 `[h, w, 3]` with sides of at most `side`.
    """
    height, width = next((x.shape[:2] for x in (restored, truth) if x is not None), low.shape[:2])
    top, left = (max(n - side, 0) // 2 for n in (height, width))
    large = np.asarray(Image.fromarray(_rgb(low)).resize((width, height), Image.Resampling.NEAREST))
    cells = [(f"{name}: input", large), (f"restored {numbers}".rstrip(), restored), ("truth", truth)]
    return [
        (caption, np.ascontiguousarray(_rgb(image)[top : top + side, left : left + side]))
        for caption, image in cells
        if image is not None
    ]


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image
