"""Kernelised attention with relative positions: random features, and a Toeplitz product through the Fourier transform.

Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding, arXiv 2106.12566, sections 3 and 4.
No authors' code is known, no licence; written from the paper's formulae.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention


class KernelizedAttention(MultiHeadAttention):
    """`sum_j e^(b_{j-i}) phi(q_i) phi(k_j) v_j / sum_j e^(b_{j-i}) phi(q_i) phi(k_j)`, q and k of one length (NPRF).

    `phi(x) = exp(W x - |x|^2 / 2) / sqrt(m)`, rows of W normally distributed and orthogonal, drawn once. With more
    features it comes nearer to softmax attention of the normalised queries and keys.

    Args:
        dim: channels C.
        num_heads: dividing C.
        grid: of the map that the model is built for; offsets beyond its own take those at the border.
        features: m.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y_i = sum_j e^(b_{j-i}) (phi(q_i) phi(k_j)) v_j / sum_j e^(b_{j-i}) phi(q_i) phi(k_j)"
    cost = "4NC^2 + 2Nm(C + h) + 10 m(C + h) N log2(4N), m = features, h heads"
    growth = "N log N"
    sizes = "any; offsets beyond the grid's count as its largest"
    float32 = True

    weight: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        grid: Size = (14, 14),
        features: int = 16,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.grid = grid
        self.rpe = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1), std=0.02)
        )
        self.register_buffer("weight", orthogonal_features(num_heads, features, dim // num_heads))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        q, k, v = self.heads(x)
        length = q.shape[-1] ** 0.25  # of queries and keys; their product is in -sqrt(d) .. sqrt(d)
        q, k = (positive_features(F.normalize(part, dim=-1) * length, self.weight) for part in (q, k))
        values = torch.cat((v, torch.ones_like(v[..., :1])), -1).mT.unflatten(-1, size)  # [B, heads, d + 1, H, W]
        kernel = self._spectrum(size)
        whole = (2 * size[0], 2 * size[1])
        total: Tensor | None = None
        for query, key in zip(
            q.unbind(-1), k.unbind(-1), strict=True
        ):  # feature by feature: m of them at once are large
            spectrum = torch.fft.rfft2(values * key.unflatten(-1, size)[:, :, None], s=whole) * kernel
            summed = torch.fft.irfft2(spectrum, s=whole)[..., : size[0], : size[1]].flatten(-2)
            part = summed * query[:, :, None]
            total = part if total is None else total + part
        assert total is not None
        return self.output((total[:, :, :-1] / total[:, :, -1:]).mT)

    def _spectrum(self, size: Size) -> Tensor:
        """`[heads, 1, 2H, W + 1]` of the kernel that takes token j to token i by `e^(b_{j-i})`."""
        table: Tensor = self.rpe
        for axis, (side, cells) in enumerate(zip(size, self.grid, strict=True), 1):
            step = torch.arange(-side, side, device=table.device).roll(-side)  # i - j = 0, 1, ..., -side, ..., -1
            table = table.index_select(axis, (cells - 1 - step).clamp(0, 2 * cells - 2))
        return torch.fft.rfft2(table.exp())[:, None]


def orthogonal_features(heads: int, features: int, dim: int) -> Tensor:
    """`[heads, m, d]`: rows normally distributed, orthogonal within each d of them."""
    blocks = []
    for _ in range(-(-features // dim)):
        q, r = torch.linalg.qr(torch.randn(heads, dim, dim))
        directions = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # without it some directions come more often
        blocks.append(directions * torch.randn(heads, dim, dim).norm(dim=-1, keepdim=True))
    return torch.cat(blocks, 1)[:, :features].contiguous()


def positive_features(x: Tensor, weight: Tensor) -> Tensor:
    """`[B, heads, N, d]` by `[heads, m, d]` -> `exp(W x - |x|^2 / 2) / sqrt(m)`, `[B, heads, N, m]`."""
    return torch.exp(x @ weight.mT - x.square().sum(-1, keepdim=True) / 2) * weight.shape[1] ** -0.5
