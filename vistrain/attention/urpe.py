"""Universal relative positional encoding: weights after the softmax are multiplied by a factor for each offset.

Your Transformer May Not be as Powerful as You Expect, arXiv 2205.13401, section 4. Authors' code: lsj2408/URPE, MIT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention


class URPEAttention(MultiHeadAttention):
    """`(softmax(q k^T / sqrt(d) + b_{i-j}) * c_{i-j}) v`; rows of the product do not sum to one.

    Args:
        dim: channels C.
        num_heads: dividing C.
        grid: of the map that the model is built for; offsets beyond its own take those at the border.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    formula = "y = (softmax(q k^T / sqrt(d) + b_{i-j}) * c_{i-j}) v"
    cost = "4NC^2 + 2N^2C"
    growth = "N^2"
    sizes = "any; offsets beyond the grid's count as its largest"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        grid: Size = (14, 14),
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.grid = grid
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.rp_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(offsets, num_heads), std=0.02))
        self.ur_rp_bias = nn.Parameter(torch.ones(offsets, num_heads))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        q, k, v = self.heads(x)
        return self.output(self.attend(q, k, v, size))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        """`[B, heads, H * W, d]` each -> `[B, heads, H * W, d]`."""
        bias, factor = (spread(table, self.grid, size) for table in (self.rp_bias, self.ur_rp_bias))
        weights = ((q * self.scale) @ k.mT + bias).softmax(-1) * factor
        return F.dropout(weights, self.attn_drop, self.training).to(v.dtype) @ v


def spread(table: Tensor, grid: Size, size: Size) -> Tensor:
    """A value for each pair of cells, by their offset.

    Args:
        table: `[(2h - 1) * (2w - 1), heads]`, offsets of a map of (h, w) = `grid`, from (1 - h, 1 - w) row by row.
        grid: of the table.
        size: (H, W) of the map; offsets beyond the table take the value at its border.

    Returns:
        `[heads, H * W, H * W]`; entry (i, j) is of the offset i - j.
    """
    heads = table.T.unflatten(1, (2 * grid[0] - 1, 2 * grid[1] - 1))
    for axis, (side, cells) in enumerate(zip(size, grid, strict=True)):
        place = torch.arange(side, device=table.device)
        offset = (place[:, None] - place + cells - 1).clamp(0, 2 * cells - 2)
        heads = heads.index_select(2 * axis + 1, offset.flatten()).unflatten(2 * axis + 1, (side, side))
    return heads.transpose(2, 3).flatten(3).flatten(1, 2)
