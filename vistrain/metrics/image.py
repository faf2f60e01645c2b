"""Decibels and structural similarity of images, as the restoration literature measures them.

Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (IEEE TIP 2004), and the
code that the field measures with: BasicSR 8d56e3a, `metrics/psnr_ssim.py` and `utils/color_util.py`
(github.com/XPixelGroup/BasicSR, Apache-2.0), and scikit-image's `structural_similarity` (BSD-3-Clause). All in float64,
of values 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

WINDOW, SIGMA = 11, 1.5
LUMA = np.array([65.481, 128.553, 24.966])  # BT.601 in the studio range: black is 16, white 235


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 in the studio range, not rounded.

    Args:
        image: `[H, W, 3]` RGB in 0..255; `[H, W, 1]` is luma already and comes back as it is.

    Returns:
        `[H, W, 1]` float64, 16..235.
    """
    if image.shape[2] == 1:
        return image.astype(np.float64)
    return (image.astype(np.float64) @ (LUMA / 255) + 16)[..., None]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images of one shape with peak 255; infinite for equal ones."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity with a Gaussian window of 11x11 pixels and sigma 1.5, where the window fits.

    Variances are the weighted ones (weights sum to 1). Channels are measured apart, then averaged.

    Args:
        a, b: `[H, W, C]` in 0..255.

    Returns:
        -1..1; NaN where the image is smaller than the window.
    """
    if min(a.shape[:2]) < WINDOW:
        return math.nan
    place = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(place**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    edge = WINDOW // 2

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(x, cv2.CV_64F, kernel, kernel)[edge:-edge, edge:-edge]

    values = [_similarity(x, y, mean) for x, y in zip(_planes(a), _planes(b), strict=True)]
    return float(np.mean(values))


def ssim_uniform(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity as scikit-image has it by default: a uniform 7x7 window, sample covariances.

    Args:
        a, b: `[H, W, C]` in 0..255.

    Returns:
        -1..1; NaN where the image is smaller than the window.
    """
    side = 7
    if min(a.shape[:2]) < side:
        return math.nan
    edge, sample = side // 2, side**2 / (side**2 - 1)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (side, side))[edge:-edge, edge:-edge]

    values = [_similarity(x, y, mean, sample) for x, y in zip(_planes(a), _planes(b), strict=True)]
    return float(np.mean(values))


def _planes(image: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(image[..., c], np.float64) for c in range(image.shape[2])]


def _similarity(
    a: np.ndarray, b: np.ndarray, mean: Callable[[np.ndarray], np.ndarray], correction: float = 1.0
) -> float:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = mean(a), mean(b)
    variance_a = correction * (mean(a * a) - mean_a**2)
    variance_b = correction * (mean(b * b) - mean_b**2)
    covariance = correction * (mean(a * b) - mean_a * mean_b)
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float((top / bottom).mean())
