"""Enlargements, cuts and mirrorings along one axis as linear maps, put together before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """A linear map of one side: each of N new cells is a weighted sum of T neighbouring old ones.

    Attributes:
        start: `[N]` int64, the first of the neighbours.
        weights: `[N, T]` float64.
        side: how many old cells there are.
    """

    start: Tensor
    weights: Tensor
    side: int

    @classmethod
    def resized(cls, old: int, new: int, align_corners: bool = False) -> Axis:
        """Linear interpolation of `old` cells to `new` ones, as `torch.nn.functional.interpolate` has it."""
        if old == new:
            return cls(torch.arange(new), torch.ones(new, 1, dtype=torch.float64), old)
        index = torch.arange(new, dtype=torch.float64)
        scale, shift = ((old - 1) / max(new - 1, 1), 0.0) if align_corners else (old / new, 0.5)
        place = ((index + shift) * scale - shift).clamp(0, old - 1)
        if old == 1:
            return cls(torch.zeros(new, dtype=torch.int64), torch.ones(new, 1, dtype=torch.float64), old)
        low = place.floor().long().clamp(max=old - 2)
        return cls(low, torch.stack((1 - (place - low), place - low), 1), old)

    def __len__(self) -> int:
        return len(self.start)

    def then(self, other: Axis) -> Axis:
        """This map, and another one upon what it gives."""
        places = other.start[:, None] + torch.arange(other.weights.shape[1])  # [N, T2] into what this map gives
        starts, inner = self.start[places], self.weights[places]  # [N, T2], [N, T2, T1]
        first = starts.amin(1)
        taps = int((starts - first[:, None]).max()) + self.weights.shape[1]
        first = first.clamp(max=self.side - taps)
        weights = inner.new_zeros(len(other), taps)
        columns = (starts - first[:, None])[..., None] + torch.arange(self.weights.shape[1])
        weights.scatter_add_(1, columns.flatten(1), (other.weights[..., None] * inner).flatten(1))
        return Axis(first, weights, self.side)

    def first(self, count: int) -> Axis:
        """The map without what comes after the first `count` new cells."""
        return Axis(self.start[:count], self.weights[:count], self.side)

    def mirrored(self) -> Axis:
        """New cells in reverse order."""
        return Axis(self.start.flip(0), self.weights.flip(0), self.side)

    def between(self, low: int, high: int, like: Tensor) -> tuple[slice, Tensor]:
        """The old cells that new ones `low` to `high` are made of, and the matrix `[high - low, cells]` for them."""
        start, weights = self.start[low:high], self.weights[low:high]
        begin = int(start.min())
        cells = int(start.max()) - begin + weights.shape[1]
        matrix = weights.new_zeros(len(start), cells)
        matrix.scatter_(1, (start - begin)[:, None] + torch.arange(weights.shape[1]), weights)
        return slice(begin, begin + cells), matrix.to(like)
