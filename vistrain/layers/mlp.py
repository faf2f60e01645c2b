"""Perceptrons: of box heads, of transformers, and of cells.

The last are PVTv2's (arXiv 2106.13797; whai362/PVT, Apache-2.0), written from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers with ReLU between them (DETR's box head).

    Args:
        in_features, hidden, out_features: widths.
        num_layers: number of linear layers.
        initial: `[out_features]` values that the perceptron gives for every input before training; None leaves the
            usual random start.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        num_layers: int = 3,
        initial: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        widths = [in_features, *[hidden] * (num_layers - 1), out_features]
        linears = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList(linears)
        if initial is not None:
            nn.init.zeros_(linears[-1].weight)
            with torch.no_grad():
                linears[-1].bias.copy_(torch.tensor(initial))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` -> `[..., out_features]`."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class TokenMLP(nn.Module):
    """The perceptron of transformers: linear, GELU, linear, with dropout after each.

    Args:
        dim: width of input and output.
        hidden: width between.
        drop: dropout.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class ConvMlp(nn.Module):
    """A perceptron of cells that sees its neighbours, by a 3x3 convolution of each channel between its layers.

    `fc2(GELU(conv(fc1(x))))` is PVTv2's (section 3.2).

    Args:
        dim: channels of input and output.
        hidden: channels between.
        residual: the convolution is added to what it sees.
        act_first: GELU stands before the convolution, otherwise after it.
    """

    def __init__(self, dim: int, hidden: int, residual: bool = False, act_first: bool = False) -> None:
        super().__init__()
        self.residual, self.act_first = residual, act_first
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        x = self.fc1(x)
        x = F.gelu(x) if self.act_first else x
        seen = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + seen if self.residual else seen
        return self.fc2(x if self.act_first else F.gelu(x))
