"""Samples, and how they become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


def _no_labels() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass
class Sample:
    """One image on its way to a batch.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        id: the image's id in its data set.
        original_size: height, width in pixels before any transform.
        boxes: `[N, 4]` float32 xyxy, pixels of `image`.
        labels: `[N]` int64, class channels.
        masks: bool `[N, H, W]`, or None where the data set does not load them.
    """

    image: np.ndarray
    id: int
    original_size: tuple[int, int]
    boxes: np.ndarray = field(default_factory=_no_boxes)
    labels: np.ndarray = field(default_factory=_no_labels)
    masks: np.ndarray | None = None


def collate(samples: Sequence[Sample], size_divisor: int = 1) -> dict[str, Any]:
    """Pads images bottom and right with zeros to a common size and stacks them.

    Images stay uint8 (they are normalised on the device, four times fewer bytes go there).

    Args:
        samples: at least one.
        size_divisor: height and width of the batch are rounded up to multiples of it.

    Returns:
        `image` uint8 `[B, 3, H, W]`, `size` int64 `[B, 2]` (height, width without padding), `original_size` int64 `[B,
        2]`, `id` list of int, `target` list of dicts with `boxes` float32 `[N, 4]` (xyxy pixels of the unpadded image),
        `labels` int64 `[N]` and, where loaded, `masks` bool `[N, h, w]` (unpadded).
    """
    sizes = [s.image.shape[:2] for s in samples]
    height, width = (-(-max(side) // size_divisor) * size_divisor for side in zip(*sizes, strict=True))
    images = np.empty((len(samples), 3, height, width), np.uint8)
    for planes, sample, (h, w) in zip(images, samples, sizes, strict=True):
        # Padding first keeps the planes contiguous, where OpenCV splits four times faster than into parts of rows.
        image = sample.image
        if (h, w) != (height, width):
            image = cv2.copyMakeBorder(image, 0, height - h, 0, width - w, cv2.BORDER_CONSTANT)
        cv2.split(image, list(planes))
    return {
        "image": torch.from_numpy(images),
        "size": torch.tensor(sizes, dtype=torch.int64),
        "original_size": torch.tensor([s.original_size for s in samples], dtype=torch.int64),
        "id": [s.id for s in samples],
        "target": [_target(s) for s in samples],
    }


def _target(sample: Sample) -> dict[str, torch.Tensor]:
    target = {"boxes": torch.from_numpy(sample.boxes), "labels": torch.from_numpy(sample.labels)}
    if sample.masks is not None:
        target["masks"] = torch.from_numpy(sample.masks)
    return target
