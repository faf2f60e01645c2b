"""A sample of a batch as a picture, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vistrain.layers.padding import to_unit


def title_of(batch: Mapping[str, Any], index: int) -> str:
    """What a sample is called in pictures: the name of its file, where the data says it, else its id."""
    return batch["name"][index] if any(batch.get("name", ())) else str(batch["id"][index])


def picture_of(batch: Mapping[str, Any], index: int) -> np.ndarray:
    """The image of a sample without its padding, to look at.

    Args:
        batch: `image` `[B, C, *S]` and `size` `[B, len(S)]`; and `shown`, where others than the first three channels
            are red, green and blue.
        index: of the sample.

    Returns:
        uint8 `[H, W, 3]`: three channels, or the first one in grey; of a volume the middle slice.
    """
    sides = [slice(side) for side in batch["size"][index].tolist()]
    image = batch["image"][(index, slice(None), *sides)].detach()
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    image = image[list(batch["shown"])] if "shown" in batch else image
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    values = (to_unit(image.cpu()).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())
