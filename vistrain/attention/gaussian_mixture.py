"""Attention whose logits are multiplied by a mixture of Gaussians of the distance of two cells.

RetNet viewed through convolution, arXiv 2309.05375, section 3. Authors' code: CatworldLee/
Gaussian-Mixture-Mask-Attention, no licence (models/gmm.py): nothing of it is here, it is written from the formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention
from vistrain.attention.window import SwinWindowAttention
from vistrain.layers.windows import WindowOrder, relative_position_bias, window_order

LEAST = 1e-5  # added to the variances


class GaussianMixtureMask(nn.Module):
    """`M_ij = sum_k alpha_k g_ij ^ (1 / (sigma_k^2 + 1e-5))`, `g_ij = exp(-|i - j|^2 / 2)`, for each head.

    Args:
        num_heads: one mixture for each.
        num_kernels: Gaussians of a mixture.
    """

    def __init__(self, num_heads: int, num_kernels: int) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.randn(num_kernels, num_heads, 1, 1) * 10 + 10)
        self.alpha = nn.Parameter(torch.randn(num_kernels, num_heads, 1, 1) * 2)

    def forward(self, size: Size) -> Tensor:
        """`[heads, N, N]`, N = H * W; each distance is computed once.

        g is of float32, faithfully: it is 0 beyond 14 cells, whatever the variance.
        """
        (height, width), device = size, self.sigma.device
        rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in size)
        g = torch.exp(-(rows[:, None].square() + columns.square()) / 2).to(self.sigma.dtype)
        mixture = (self.alpha * g ** (1 / (self.sigma.square() + LEAST))).sum(0)  # [heads, H, W], by |dy| and |dx|
        down = (torch.arange(height, device=device)[:, None] - torch.arange(height, device=device)).abs()
        across = (torch.arange(width, device=device)[:, None] - torch.arange(width, device=device)).abs()
        mask = mixture.index_select(1, down.flatten()).index_select(2, across.flatten())
        return mask.unflatten(2, (width, width)).unflatten(1, (height, height)).transpose(2, 3).flatten(3).flatten(1, 2)


class GaussianMixtureAttention(MultiHeadAttention):
    """`softmax((q k^T / sqrt(d)) * M) v`: logits, not weights, are multiplied.

    Args:
        dim: channels C.
        num_heads: dividing C.
        num_kernels: Gaussians of each head's mixture.
        head_dim: channels of a head; None is its share of C.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    formula = "y = softmax((q k^T / sqrt(d)) * M) v, M_ij = sum_k alpha_k exp(-|i - j|^2 / (2 sigma_k^2))"
    cost = "4NC^2 + 2N^2C"
    growth = "N^2"
    oddities = "the mask is of single precision before it is widened: 0 beyond 14 cells"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        num_kernels: int = 5,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.mask = GaussianMixtureMask(num_heads, num_kernels)
        if head_dim is not None:
            inner, self.scale = num_heads * head_dim, head_dim**-0.5
            self.qkv, self.proj = nn.Linear(dim, 3 * inner, bias=qkv_bias), nn.Linear(inner, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        q, k, v = self.heads(x)
        logits = (q * self.scale) @ k.mT * self.mask(size)
        return self.output(F.dropout(logits.softmax(-1), self.attn_drop, self.training).to(v.dtype) @ v)


class GaussianMixtureWindowAttention(SwinWindowAttention):
    """The same inside (shifted) windows: the mask multiplies logits before biases of relative positions are added.

    Args:
        dim, num_heads: see `SwinWindowAttention`.
        num_kernels: Gaussians of each head's mixture.
        base: see `SwinWindowAttention`.
    """

    formula = "y_i = softmax_j((q_i k_j / sqrt(d)) M_ij + b_{i-j}) v_j, j in the window of i"
    cost = "4NC^2 + 2NM^2C"

    def __init__(self, dim: int, num_heads: int = 4, num_kernels: int = 5, **base: Any) -> None:
        super().__init__(dim, num_heads=num_heads, **base)
        self.mask = GaussianMixtureMask(num_heads, num_kernels)

    def forward(self, x: Tensor, size: Size, order: WindowOrder | None = None) -> Tensor:
        """See `SwinWindowAttention`."""
        if order is None:
            self.check_size(size)
            order = window_order(x.shape[0], (size[0], size[1]), self.window, self.shift, device=x.device)
        q, k, v = self.qkv(order.cut(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = relative_position_bias(self.relative_position_bias_table, self.index)
        logits = (q * (self.scale or q.shape[-1] ** -0.5)) @ k.mT * self.mask(self.window) + bias
        counts = [count for count, _ in order.groups]
        parts = [
            part if mask is None else part + mask.to(part.dtype)
            for part, (_, mask) in zip(logits.split(counts), order.groups, strict=True)
        ]
        weights = F.dropout(torch.cat(parts).softmax(-1), self.attn_drop, self.training).to(v.dtype)
        windows = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return self.proj_drop(order.join(windows, x.shape[0]))
