"""Disparity and optical flow in colours."""

from __future__ import annotations

import cv2
import numpy as np

UNKNOWN = 0  # black


def displacement_range(*fields: np.ndarray) -> float:
    """The displacement, pixels, that the strongest colour stands for: the 98th percentile of all that is known, 1 at
    least.

    Args:
        fields: float `[A, H, W]`, NaN where nothing is known.
    """
    lengths = [np.linalg.norm(field, axis=0) for field in fields]
    known = np.concatenate([length[np.isfinite(length)] for length in lengths])
    return max(float(np.percentile(known, 98)), 1.0) if known.size else 1.0


def coloured_displacements(field: np.ndarray, most: float) -> np.ndarray:
    """uint8 `[H, W, 3]`: disparity from dark blue (0) to dark red (`most`); of flow the direction as a hue, and the
    length as its strength, white is none. Black is not known.

    Args:
        field: float `[A, H, W]`, pixels.
        most: pixels of the strongest colour.
    """
    known = np.isfinite(field).all(0)
    values = np.where(known, field, 0).astype(np.float32)
    if len(field) == 1:
        levels = (values[0] / most).clip(0, 1) * 255
        colours = cv2.cvtColor(cv2.applyColorMap(levels.round().astype(np.uint8), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    else:
        length, angle = cv2.cartToPolar(values[0], values[1], angleInDegrees=True)
        hsv = np.stack((angle, (length / most).clip(0, 1), np.ones_like(length)), 2)
        colours = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).round().astype(np.uint8)
    colours[~known] = UNKNOWN
    return colours


def endpoint_errors(found: np.ndarray, truth: np.ndarray, most: float = 5.0) -> np.ndarray:
    """uint8 `[H, W, 3]`: how far displacements are from the truth, black (0) to white (`most` pixels or more); blue is
    not known.

    Args:
        found, truth: float `[A, H, W]`, pixels.
        most: pixels that are drawn white.
    """
    errors = np.linalg.norm(found - truth, axis=0)
    grey = (np.nan_to_num(errors) / most).clip(0, 1) * 255
    picture = np.repeat(grey.round().astype(np.uint8)[..., None], 3, 2)
    picture[~np.isfinite(errors)] = (0, 0, 120)
    return picture
