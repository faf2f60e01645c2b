"""Coordinate attention and squeeze-and-excitation side by side, in a share that is learnt.

Balanced Multi-Task Attention for Satellite Image Classification, arXiv 2510.15527, section 3. Authors' code:
virAditya/satellite-image-classification-eurosat, MIT (models/balanced_12layer.py); parameters have its names.
Coordinate attention: arXiv 2103.02907; squeeze-and-excitation: arXiv 1709.01507.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.modules.base import ConvModule


class CoordinateAttention(nn.Module):
    """Gates of rows and of columns, made of the means of both together.

    Args:
        dim: channels C.
        reduction: channels by hidden channels.
    """

    def __init__(self, dim: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = dim // reduction
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_h = nn.Conv2d(hidden, dim, 1, bias=False)
        self.conv_w = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        means = torch.cat((x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT), 2)  # rows, then columns
        rows, columns = self.bn1(self.conv1(means)).relu().split(list(x.shape[2:]), 2)
        return x * self.conv_h(rows).sigmoid() * self.conv_w(columns.mT).sigmoid()


class SqueezeExcitation(nn.Module):
    """Gates of channels, made of the channels' means by two layers.

    Args:
        dim: channels C.
        reduction: channels by hidden channels.
    """

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.excitation = nn.Sequential(
            nn.Linear(dim, dim // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(dim // reduction, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x * self.excitation(x.mean((2, 3)))[..., None, None]


class CoordinateExcitation(ConvModule):
    """Coordinate attention and squeeze-and-excitation, added in a share that is learnt (.622 at the start).

    Args:
        dim: channels C, at least 16.
        coordinate_reduction, excitation_reduction: channels by hidden channels of either.

    Raises:
        ConfigError: there are fewer channels than the reductions need.
    """

    formula = "y = s CA(x) + (1 - s) SE(x), s = sigmoid(alpha), alpha learnt"
    cost = "3C^2 / 8 + C^2 / 8 parameters; 5NC + 3(H + W)C^2 / 8 + C^2 / 8"

    def __init__(self, dim: int, coordinate_reduction: int = 8, excitation_reduction: int = 16) -> None:
        super().__init__()
        reductions = {"coordinate_reduction": coordinate_reduction, "excitation_reduction": excitation_reduction}
        for name, reduction in reductions.items():
            if not 1 <= reduction <= dim:
                raise ConfigError(name, f"{dim} channels leave none at a reduction by {reduction}", f"use up to {dim}")
        self.coord_attention = CoordinateAttention(dim, coordinate_reduction)
        self.se_attention = SqueezeExcitation(dim, excitation_reduction)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        share = self.alpha.sigmoid()
        return share * self.coord_attention(x) + (1 - share) * self.se_attention(x)
