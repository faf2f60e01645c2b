"""Ultra-lightweight subspace attention: one map of attention for each group of channels.

ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks, arXiv 2006.15102, section
3. Authors' code: Nandan91/ULSAM, no licence (ulsam.py): nothing of it is here, it is written from the formulae;
parameters have its names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.modules.base import ConvModule


class Subspace(nn.Module):
    """Attention of one group of channels.

    Args:
        dim: channels of the group.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_dws = nn.Conv2d(dim, dim, 1, groups=dim)
        self.bn_dws = nn.BatchNorm2d(dim, momentum=0.9)
        self.conv_point = nn.Conv2d(dim, 1, 1)
        self.bn_point = nn.BatchNorm2d(1, momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        seen = F.max_pool2d(self.bn_dws(self.conv_dws(x)).relu(), 3, 1, 1)
        logits = self.bn_point(self.conv_point(seen)).relu()
        return x + x * logits.flatten(2).softmax(-1).view(logits.shape)


class ULSAM(ConvModule):
    """Channels in groups, each with a softmax over cells that tells how much more of it there is.

    Args:
        dim: channels C.
        num_splits: groups, dividing C.

    Raises:
        ConfigError: groups do not divide the channels.
    """

    formula = "y_g = x_g + x_g * softmax_cells(relu(BN(PW(maxpool3(relu(BN(DW1(x_g)))))))), g groups of channels"
    cost = "5C + 3g parameters, g = num_splits; 3NC"

    def __init__(self, dim: int, num_splits: int = 4) -> None:
        super().__init__()
        if num_splits < 1 or dim % num_splits:
            problem = f"{dim} channels are not divisible by {num_splits}"
            raise ConfigError("num_splits", problem, "choose a divisor of the channels of all stages")
        self.subspaces = nn.ModuleList(Subspace(dim // num_splits) for _ in range(num_splits))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        parts = x.chunk(len(self.subspaces), 1)
        return torch.cat([attend(part) for attend, part in zip(self.subspaces, parts, strict=True)], 1)
