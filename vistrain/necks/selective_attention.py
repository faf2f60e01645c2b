"""Selective dense attention: each level of a pyramid chooses from all levels, channel by channel and cell by cell.

Towards Real-World Prohibited Item Detection: A Large-Scale X-ray Benchmark (PIDray, SDANet), arXiv 2108.07020, section
4. Authors' code: bywang2018/security-dataset and lutao2021/PIDray, forks of MMDetection, Apache-2.0
(mmdet/models/necks/attfpn.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.necks.fpn import FPN


class ChannelChoice(nn.Module):
    """Weights of levels for each channel, from the mean of their sum over the map.

    Args:
        dim: channels C.
        levels: of the pyramid.
    """

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Conv2d(dim, dim // 2, 1, bias=False), nn.BatchNorm2d(dim // 2), nn.ReLU())
        self.fcs = nn.ModuleList(nn.Conv2d(dim // 2, dim, 1) for _ in range(levels))

    def forward(self, total: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, levels, C, 1, 1]`, which sum to 1 over levels."""
        hidden = self.fc(total.mean((2, 3), keepdim=True))
        return torch.stack([fc(hidden) for fc in self.fcs], 1).softmax(1)


class SpatialChoice(nn.Module):
    """Weights of levels for each cell, from the mean and the largest of its channels.

    Args:
        levels: of the pyramid.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(levels))

    def forward(self, total: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, levels, 1, H, W]`, which sum to 1 over levels."""
        seen = torch.cat((total.mean(1, keepdim=True), total.amax(1, keepdim=True)), 1)
        return torch.stack([conv(seen) for conv in self.conv], 1).softmax(1)


class GlobalContext(nn.Module):
    """What one query that all cells share attends to, added to each of them (GCNet, arXiv 1904.11492, section 4).

    Args:
        dim: channels C.
        ratio: hidden channels by channels.
    """

    def __init__(self, dim: int, ratio: float = 1 / 16) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.conv_mask = nn.Conv2d(dim, 1, 1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(dim, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), nn.Conv2d(hidden, dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        weights = self.conv_mask(x).flatten(2).softmax(-1)
        return x + self.channel_add_conv((x.flatten(2) @ weights.mT)[..., None])


class SelectiveAttention(nn.Module):
    """One level's choice from all: the others are resized to it, by the largest cells of finer ones.

    Args:
        level: which, counted from the finest.
        levels: of the pyramid.
        dim: channels C of each, at least 16.
    """

    def __init__(self, level: int, levels: int = 5, dim: int = 256) -> None:
        super().__init__()
        self.level = level
        self.channel_att, self.spatial_att = ChannelChoice(dim, levels), SpatialChoice(levels)
        self.refine = GlobalContext(dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps `[B, C, H_l, W_l]`, fine to coarse -> that of its level, `[B, C, H, W]`."""
        own = maps[self.level]
        size = (own.shape[2], own.shape[3])
        finer = [F.adaptive_max_pool2d(x, size) for x in maps[: self.level]]
        coarser = [F.interpolate(x, size, mode="nearest") for x in maps[self.level + 1 :]]
        every = torch.stack([*finer, own, *coarser], 1)
        total = every.sum(1)
        chosen = (every * self.channel_att(total)).sum(1) + (every * self.spatial_att(total)).sum(1)
        return own + self.refine(chosen)


class SelectiveDenseAttention(FPN):
    """An FPN whose levels are refined, each by a `SelectiveAttention` of its own (section 4).

    Args:
        channels, strides: see `FPN`.
        embed_dim: width of the levels, at least 16.
        base: see `FPN`.

    Raises:
        ConfigError: levels of fewer than 16 channels.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], embed_dim: int = 256, **base: Any) -> None:
        super().__init__(channels, strides, embed_dim, **base)
        if embed_dim < 16:
            raise ConfigError("embed_dim", f"{embed_dim} channels leave no hidden one: at least 16")
        count = len(self.channels)
        self.selective = nn.ModuleList(SelectiveAttention(level, count, embed_dim) for level in range(count))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps `[B, C_i, H_i, W_i]` -> levels `[B, embed_dim, H_l, W_l]`, fine to coarse."""
        levels = super().forward(maps)
        return [selective(levels) for selective in self.selective]
