"""How images of any sides, channels and type become the batch that every network takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from vistrain.errors import VistrainError

Batch = dict[str, Any]


def batch_of(
    images: Sequence[np.ndarray],
    original_sizes: Sequence[Sequence[int]],
    ids: Sequence[Any],
    targets: Sequence[Any],
    size_divisor: int = 1,
    names: Sequence[str] = (),
) -> Batch:
    """The keys that all tasks' batches have (see `Network`); a task's own `collate` adds to them.

    Args:
        images: `[*S, C]`, as in `stack_padded`.
        original_sizes: sides of each image before any transform, in pixels.
        ids: of the images in their data set.
        targets: one for each.
        size_divisor: see `stack_padded`.
        names: of the images' files, where ids do not say them.

    Returns:
        `image` `[B, C, *S]`, `size` (without padding) and `original_size` int64 `[B, len(S)]`, `host_size`, `id` and
        `target`, lists of B, and `name`, where there are names. `host_size` is `size` in numbers: who wants them there
        does not wait for a device.
    """
    stacked, sizes = stack_padded(images, size_divisor)
    original = torch.tensor([list(size) for size in original_sizes], dtype=torch.int64)
    known = [tuple(size) for size in sizes.tolist()]
    batch = {"image": stacked, "size": sizes, "host_size": known, "original_size": original}
    return {**batch, "id": list(ids), "target": list(targets), **({"name": list(names)} if names else {})}


def stack_padded(images: Sequence[np.ndarray], size_divisor: int = 1) -> tuple[Tensor, Tensor]:
    """Pads images with zeros at the end of each side to common sides, and stacks them with the channels first.

    The type stays: bytes are normalised on the device, four times fewer go there.

    Args:
        images: at least one `[*S, C]`, S two or three sides, all of one type and as many channels.
        size_divisor: the common sides are rounded up to multiples of it.

    Returns:
        `[B, C, *S]` of the images' type, and the sides without padding, int64 `[B, len(S)]`.

    Raises:
        ValueError: the images differ in type, channels or number of sides.
    """
    kinds = {(image.dtype, image.ndim, image.shape[-1]) for image in images}
    if len(kinds) != 1:
        raise ValueError(f"images of different kinds cannot be stacked: {sorted(map(str, kinds))}")
    ((dtype, dimensions, channels),) = kinds
    sizes = [image.shape[:-1] for image in images]
    sides = tuple(-(-max(side) // size_divisor) * size_divisor for side in zip(*sizes, strict=True))
    if dtype == np.uint8 and dimensions == 3 and channels == 3:
        stacked = np.empty((len(images), channels, *sides), dtype)
        for planes, image in zip(stacked, images, strict=True):
            _split(image, planes)
    else:
        stacked = np.zeros((len(images), channels, *sides), dtype)
        for planes, image in zip(stacked, images, strict=True):
            planes[(slice(None), *map(slice, image.shape[:-1]))] = np.moveaxis(image, -1, 0)
    return torch.from_numpy(stacked), torch.tensor(sizes, dtype=torch.int64)


def _split(image: np.ndarray, planes: np.ndarray) -> None:
    """Writes a colour image `[h, w, 3]` into planes `[3, H, W]`; several times faster than NumPy."""
    (height, width), (_, rows, columns) = image.shape[:2], planes.shape
    if (height, width) != (rows, columns):
        # Padding first keeps the planes contiguous, where OpenCV splits four times faster than into parts of rows.
        image = cv2.copyMakeBorder(image, 0, rows - height, 0, columns - width, cv2.BORDER_CONSTANT)
    cv2.split(image, list(planes))


def batch_or_error(samples: Sequence[Any], collate: Callable[[Sequence[Any]], Batch]) -> Batch | VistrainError:
    """A batch; or, where there are errors in the samples' places, the first of them, for the main process to raise."""
    for sample in samples:
        if isinstance(sample, VistrainError):
            return sample
    return collate(samples)
