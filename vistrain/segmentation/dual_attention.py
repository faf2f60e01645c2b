"""Position and channel attention: Dual Attention Network for Scene Segmentation (Fu et al. 2019, arXiv 1809.02983),
sections 3.2 and 3.3, in any number of axes. Written from the equations; no code, and so no licence, is behind it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.layers.precision import at_least_float32

CONVOLUTIONS: tuple[type[nn.Conv2d] | type[nn.Conv3d], ...] = (nn.Conv2d, nn.Conv3d)


class PositionAttention(nn.Module):
    """`y_i = gamma sum_j softmax_j(q_i k_j) v_j + x_i` over the cells of a map; products are not scaled, one head.

    Parameters have the names of the published DANet modules, and stand in the order in which Keras's port makes them.

    Args:
        dim: C.
        axes: 2 for pictures, 3 for volumes.
        reduction: queries and keys have C / reduction channels.
        bias: of the projections.
    """

    def __init__(self, dim: int, axes: int = 2, reduction: int = 8, bias: bool = True) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes - 2]
        narrow = max(1, dim // reduction)
        self.key_conv, self.query_conv = conv(dim, narrow, 1, bias=bias), conv(dim, narrow, 1, bias=bias)
        self.value_conv = conv(dim, dim, 1, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *S]` -> `[B, C, *S]`."""
        layers = (self.query_conv, self.key_conv, self.value_conv)
        q, k, v = (layer(x).flatten(2).transpose(1, 2)[:, None] for layer in layers)
        found = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.gamma * found[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]) + x


class ChannelAttention(nn.Module):
    """Channels as mixtures of channels that are like them, `gamma A(x) x + x`; `E = x x^T` over the cells.

    Args:
        form: `danet`: `A = softmax(max(E) - E)` along rows, so that what is unlike weighs most, as the published code
            does; `plain`: `A = softmax(E)^T`, as in its port to Keras.
    """

    def __init__(self, form: Literal["danet", "plain"] = "danet") -> None:
        super().__init__()
        self.form = form
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *S]` -> `[B, C, *S]`."""
        with torch.autocast(x.device.type, enabled=False):  # sums over all cells leave half types
            flat = at_least_float32(x).flatten(2)
            energy = flat @ flat.mT
            weights = (-energy).softmax(-1) if self.form == "danet" else energy.softmax(-1).mT
            found = (weights @ flat).view(x.shape)
        return self.gamma * found.to(x.dtype) + x
