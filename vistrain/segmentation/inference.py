"""From logits to class maps of the original size, whole images and sliding windows, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vistrain.layers.conv import resize

SLAB = 1 << 24  # logits that are enlarged at once


def class_map(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Arg-max of bilinearly resized logits, in slabs of rows: the enlarged logits are never held at once.

    Args:
        logits: `[K, h, w]`.
        size: (H, W).
        align_corners: of the interpolation.

    Returns:
        `[H, W]` int64.
    """
    if tuple(logits.shape[1:]) == tuple(size):
        return logits.argmax(0)
    return torch.cat([slab.argmax(0) for slab in enlarged(logits, size, align_corners)])


def enlarged(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Iterator[Tensor]:
    """Bilinearly resized maps in slabs of rows: what is large is never held at once.

    Args:
        maps: `[K, h, w]`.
        size: (H, W).
        align_corners: of the interpolation.

    Returns:
        Parts `[K, rows, W]`, which stand below one another.
    """
    if not len(maps):
        yield maps.new_zeros((0, *size))
        return
    rows = max(1, SLAB // (len(maps) * size[1]))
    if tuple(maps.shape[1:]) == tuple(size):
        yield from maps.split(rows, 1)
        return
    low, high, fraction = _row_weights(maps.shape[1], size[0], align_corners, maps)
    for start in range(0, size[0], rows):
        part = slice(start, start + rows)
        # Along the height by hand, so that a slab needs its own rows alone; then along the width.
        slab = torch.lerp(maps[:, low[part]], maps[:, high[part]], fraction[part])
        yield resize(slab[None], (slab.shape[1], size[1]), align_corners)[0]


def sliding_logits(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    num_classes: int,
    batch: int = 4,
) -> Tensor:
    """Mean logits of overlapping windows, as mmsegmentation places them: the last ones end at the border.

    Args:
        network: `[B, C, h, w]` -> logits `[B, K, h, w]` of the same size.
        image: `[C, H, W]`, normalised.
        window: (height, width); a smaller image is one window.
        stride: between windows.
        num_classes: K.
        batch: windows that are computed at once.

    Returns:
        `[K, H, W]` float32.
    """
    total = image.new_zeros((num_classes, *image.shape[1:]), dtype=torch.float32)
    count = image.new_zeros(image.shape[1:])
    places = list(_windows(image.shape[1:], window, stride))
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        logits = network(torch.stack([image[:, y, x] for y, x in part]))
        for (y, x), values in zip(part, logits, strict=True):
            total[:, y, x] += values
            count[y, x] += 1
    return total.div_(count)


def _windows(size: torch.Size, window: tuple[int, int], stride: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    spans = []
    for side, length, step in zip(size, window, stride, strict=True):
        starts = range(0, max(side - length + step - 1, 0) // step * step + 1, step)
        ends = [min(start + length, side) for start in starts]
        spans.append([slice(max(end - length, 0), end) for end in ends])
    for y in spans[0]:
        for x in spans[1]:
            yield y, x


def _row_weights(old: int, new: int, align_corners: bool, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours `[new]` of each new row, and how far it lies towards the second."""
    index = torch.arange(new, device=like.device, dtype=torch.float32)
    scale, shift = ((old - 1) / max(new - 1, 1), 0.0) if align_corners else (old / new, 0.5)
    place = ((index + shift) * scale - shift).clamp(min=0)
    low = place.floor().long().clamp(max=old - 1)
    return low, (low + 1).clamp(max=old - 1), (place - low).to(like.dtype)[:, None]
