"""What a network was shown of an image, what it made of it, and the image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vistrain.layers.padding import to_unit
from vistrain.predictions import Reconstruction

GREY = 128  # of hidden patches


def cells(original: np.ndarray, found: Reconstruction) -> list[tuple[str, np.ndarray]]:
    """Masked | reconstructed (where pixels are) | original, with captions.

    Args:
        original: uint8 `[H, W, 3]`, as the network got it.
        found: what it made of it.
    """
    masked = original.copy() if found.shown is None else picture(found.shown)
    if found.hidden is not None:
        height, width = found.hidden.shape
        rows, columns = original.shape[0] // height, original.shape[1] // width
        masked[np.kron(found.hidden.numpy(), np.ones((rows, columns), bool))] = GREY
    told = ", ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in found.loss.items())
    made = [] if found.image is None else [(f"reconstructed: {told}", picture(found.image))]
    return [("masked" if made else f"masked: {told}", masked), *made, ("original", original)]


def picture(image: Tensor) -> np.ndarray:
    """`[C, H, W]`, brightest pixel 1 -> uint8 `[H, W, 3]`: the first three channels, or the first one in grey."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    values = (to_unit(shown.detach().cpu()).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())
