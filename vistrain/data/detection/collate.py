"""Images with boxes, and how they become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from vistrain.data.base.collate import Batch, batch_of
from vistrain.data.coco.instance_masks import InstanceMasks


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
        masks: of the objects, or None where the data set does not load them.
        name: of the image's file, as it is listed.
    """

    image: np.ndarray
    id: int
    original_size: tuple[int, int]
    boxes: np.ndarray = field(default_factory=_no_boxes)
    labels: np.ndarray = field(default_factory=_no_labels)
    masks: InstanceMasks | None = None
    name: str = ""


def relabelled(sample: Sample, channels: tuple[int, ...]) -> Sample:
    """A sample with other class channels.

    Args:
        sample: its labels are places in `channels`.
        channels: the new ones; objects of -1 are left out.
    """
    labels = np.array(channels, dtype=np.int64)[sample.labels]
    kept = labels >= 0
    masks = None if sample.masks is None else sample.masks.kept(kept)
    return replace(sample, labels=labels[kept], boxes=sample.boxes[kept], masks=masks)


def collate(samples: Sequence[Sample], size_divisor: int = 1) -> Batch:
    """Pads images bottom and right with zeros to a common size and stacks them.

    Args:
        samples: at least one.
        size_divisor: height and width of the batch are rounded up to multiples of it.

    Returns:
        `image` uint8 `[B, 3, H, W]`, `size` int64 `[B, 2]` (height, width without padding), `original_size` int64 `[B,
        2]`, `id` list of int, `name` list of str, `target` list of dicts with `boxes` float32 `[N, 4]` (xyxy pixels of
        the unpadded image), `labels` int64 `[N]` and, where loaded, `masks`, `PackedMasks` of the unpadded image.
    """
    images, sizes, ids = zip(*((s.image, s.original_size, s.id) for s in samples), strict=True)
    names = [s.name for s in samples]
    return batch_of(images, sizes, ids, [_target(s) for s in samples], size_divisor, names)


def _target(sample: Sample) -> dict[str, Any]:
    target: dict[str, Any] = {"boxes": torch.from_numpy(sample.boxes), "labels": torch.from_numpy(sample.labels)}
    if sample.masks is not None:
        target["masks"] = sample.masks.packed()
    return target
