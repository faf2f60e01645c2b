"""Masks of objects on their way from a file to a batch: run lengths, and which rows and columns of them are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_tools

from vistrain.layers.packed_masks import PackedMasks


@dataclass(frozen=True)
class InstanceMasks:
    """Masks of an image's objects.

    Mirroring, cutting and resizing (to the nearest pixel) all choose rows and columns of what is stored. So a chain of
    them touches no mask: `packed` unpacks one at a time, and only what is shown of it.

    Attributes:
        runs: pycocotools' compressed run lengths (`metrics.coco_masks.encode_mask` checks them), all of one size.
        rows, columns: int64, what each row and column of the image is of the stored masks; -1 lies beyond them.
    """

    runs: tuple[dict[str, Any], ...]
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, runs: Iterable[dict[str, Any]], size: tuple[int, int]) -> InstanceMasks:
        """Masks as they are stored, in an image of (height, width)."""
        return cls(tuple(runs), np.arange(size[0]), np.arange(size[1]))

    @classmethod
    def encoded(cls, masks: Sequence[np.ndarray], size: tuple[int, int]) -> InstanceMasks:
        """Masks `[H, W]` bool of an image of that size."""
        return cls.of((mask_tools.encode(np.asfortranarray(mask, np.uint8)) for mask in masks), size)

    @property
    def size(self) -> tuple[int, int]:
        """Height, width of the image."""
        return len(self.rows), len(self.columns)

    def __len__(self) -> int:
        return len(self.runs)

    def kept(self, keep: np.ndarray) -> InstanceMasks:
        """Some of the objects, `[N]` bool."""
        return replace(self, runs=tuple(run for run, good in zip(self.runs, keep, strict=True) if good))

    def resized(self, height: int, width: int) -> InstanceMasks:
        """Each pixel is the one that its centre falls into."""
        return replace(self, rows=_nearest(self.rows, height), columns=_nearest(self.columns, width))

    def mirrored(self) -> InstanceMasks:
        """Left to right."""
        return replace(self, columns=self.columns[::-1])

    def window(self, top: int, left: int, height: int, width: int) -> InstanceMasks:
        """A part of the image, which may reach beyond it."""
        return replace(self, rows=_part(self.rows, top, height), columns=_part(self.columns, left, width))

    def parts(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Top, left and bool `[h, w]` of each mask, the part of the image that holds all of it; as `PackedMasks`
        takes them."""
        boxes = mask_tools.toBbox(list(self.runs)).astype(np.int64) if self.runs else np.zeros((0, 4), np.int64)
        for run, (x, y, w, h) in zip(self.runs, boxes.tolist(), strict=True):
            inside = [
                np.flatnonzero((s >= low) & (s < low + n)) for s, low, n in ((self.rows, y, h), (self.columns, x, w))
            ]
            if not (len(inside[0]) and len(inside[1])):
                yield 0, 0, np.zeros((0, 0), bool)
                continue
            (top, bottom), (left, right) = ((int(i[0]), int(i[-1]) + 1) for i in inside)  # all between is inside, too
            across = mask_tools.decode(run).T[self.columns[left:right], y : y + h]  # its memory goes down the columns
            yield top, left, cv2.transpose(across)[self.rows[top:bottom] - y].view(bool)

    def packed(self) -> PackedMasks:
        """As targets of a batch hold them."""
        return PackedMasks.of(self.parts(), self.size)


def _within(source: np.ndarray, low: int, count: int) -> tuple[int, int]:
    """First and last (exclusive) of those within a range; all between are, as they ascend or descend."""
    index = np.flatnonzero((source >= low) & (source < low + count))
    return (int(index[0]), int(index[-1]) + 1) if len(index) else (0, 0)


def _nearest(source: np.ndarray, count: int) -> np.ndarray:
    return source[(2 * np.arange(count) + 1) * len(source) // (2 * count)]


def _part(source: np.ndarray, start: int, count: int) -> np.ndarray:
    wanted = np.arange(start, start + count)
    there = (wanted >= 0) & (wanted < len(source))
    return np.where(there, source[np.where(there, wanted, 0)], -1)
