"""What is shown of an image whose pixels matter."""

from __future__ import annotations

import numpy as np


def middle(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image, so that its pixels stay visible.

    Args:
        image: uint8 `[H, W, 3]` or `[H, W, 1]`.
        side: of the part, pixels.

    Returns:
        uint8 `[h, w, 3]` with sides of at most `side`.
    """
    top, left = (max(n - side, 0) // 2 for n in image.shape[:2])
    part = image[top : top + side, left : left + side]
    return np.ascontiguousarray(np.repeat(part, 3, 2) if part.shape[2] == 1 else part)
