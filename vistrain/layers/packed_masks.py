"""Masks of objects as targets hold them until a loss asks for pixels: eight pixels in a byte, within each one's box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks of one image. Losses take it in the place of a tensor `[N, H, W]` bool, whose `shape`, `device`, `len` and
    `masks[i]` it has; 200 objects of 2048 x 2048 pixels fill at most 105 MB, where the tensor fills 839.

    Attributes:
        bits: `[B]` uint8, the pixels of all boxes, row by row, the first in the lowest bit; each box starts a byte.
        table: `[N, 5]` int64 on the bits' device: the box's first byte, top, left, height and width.
        spans: the same on the host.
        size: H, W.
    """

    bits: Tensor
    table: Tensor
    spans: tuple[tuple[int, int, int, int, int], ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, parts: Iterable[tuple[int, int, np.ndarray]], size: tuple[int, int]) -> PackedMasks:
        """Pack masks one by one.

        Args:
            parts: top, left and bool `[h, w]` of each, a part of the image beyond which the mask is empty.
            size: H, W of the image.

        Raises:
            ValueError: a part reaches beyond the image.
        """
        found, spans, first = [], [], 0
        for top, left, mask in parts:
            height, width = mask.shape
            if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
                raise ValueError(f"a mask of {height}x{width} at ({top}, {left}) in an image of {size[0]}x{size[1]}")
            found.append(np.packbits(mask, bitorder="little"))
            spans.append((first, int(top), int(left), height, width))
            first += len(found[-1])
        bits = torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *found]))
        return cls(bits, torch.tensor(spans, dtype=torch.int64).view(-1, 5), tuple(spans), size)

    @classmethod
    def of_tensor(cls, masks: Tensor) -> PackedMasks:
        """Pack `[N, H, W]` bool, from any device, on the host."""
        return cls.of((_within(mask.cpu().numpy()) for mask in masks), (masks.shape[1], masks.shape[2]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, H, W."""
        return len(self.spans), *self.size

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: Tensor) -> PackedMasks: ...

    def __getitem__(self, index: int | Tensor) -> Tensor | PackedMasks:
        """One mask, `[H, W]` bool; or some, packed, by `[N]` bool or positions: their bits are not copied."""
        if isinstance(index, Tensor):
            chosen = torch.arange(len(self))[index.cpu()]
            spans = tuple(self.spans[i] for i in chosen.tolist())
            return PackedMasks(self.bits, self.table[chosen.to(self.device)], spans, self.size)
        first, top, left, height, width = self.spans[index]
        whole = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        count = height * width
        packed = self.bits[first : first + -(-count // 8)]
        places = torch.arange(8, dtype=torch.uint8, device=self.device)
        pixels = (packed[:, None] >> places & 1).flatten()[:count].bool()
        whole[top : top + height, left : left + width] = pixels.view(height, width)
        return whole

    def part(self, index: int) -> tuple[int, int, np.ndarray]:
        """What `of` packs of one: top, left and bool `[h, w]`."""
        first, top, left, height, width = self.spans[index]
        count = height * width
        packed = self.bits[first : first + -(-count // 8)].cpu().numpy()
        return top, left, np.unpackbits(packed, count=count, bitorder="little").reshape(height, width).view(bool)

    def parts(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Of all, one after the other."""
        return (self.part(i) for i in range(len(self)))

    def at(self, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Single pixels.

        Args:
            index: `[M]` int64, which masks.
            rows, columns: `[M or 1, P]` int64, of each; beyond the image there is nothing.

        Returns:
            `[M, P]` bool.
        """
        first, top, left, height, width = self.table[index].unbind(1)
        y, x = rows - top[:, None], columns - left[:, None]
        inside = (y >= 0) & (y < height[:, None]) & (x >= 0) & (x < width[:, None])
        cell = torch.where(inside, y * width[:, None] + x, 0)
        if not len(self.bits):
            return inside
        byte = self.bits[(first[:, None] + (cell >> 3)).clamp(max=len(self.bits) - 1)]
        return inside & (byte >> (cell & 7).to(torch.uint8) & 1).bool()

    def unpacked(self) -> Tensor:
        """`[N, H, W]` bool: all at once, for few masks or small images."""
        return torch.stack(list(self)) if len(self) else torch.zeros(self.shape, dtype=torch.bool, device=self.device)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedMasks:
        """The same on a device; from pinned memory without waiting, as Lightning asks for that of tensors alone."""
        bits, table = (x.to(device, non_blocking=non_blocking or x.is_pinned()) for x in (self.bits, self.table))
        return PackedMasks(bits, table, self.spans, self.size)

    def pin_memory(self) -> PackedMasks:
        """The same where a device can fetch it without waiting; loaders call it."""
        return PackedMasks(self.bits.pin_memory(), self.table.pin_memory(), self.spans, self.size)


def _within(mask: np.ndarray) -> tuple[int, int, np.ndarray]:
    """The part of a mask `[H, W]` that holds all of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, mask[:0, :0]
    top, left = int(rows[0]), int(columns[0])
    return top, left, mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
