"""Halo attention: blocks of queries attend to their block and a halo around it.

Scaling Local Self-Attention for Parameter Efficient Visual Backbones (HaloNet), arXiv 2103.12731, section 3.1; relative
positions by Shaw et al. along each axis, as in Bottleneck Transformers (arXiv 2101.11605). The authors released no
code; timm's `HaloAttn`, Apache-2.0, computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention
from vistrain.errors import ConfigError
from vistrain.layers.windows import at_once, attend_few, window_merge, window_partition


class HaloAttention(MultiHeadAttention):
    """Multi-head attention of blocks to blocks with a halo; logits have a part that queries make of the distance.

    Args:
        dim, num_heads: see `MultiHeadAttention`.
        block_size: side of the square blocks of queries.
        halo_size: rows and columns around a block whose keys it sees, too.
        mask_border: leave out what lies beyond the map; by default it counts as zeros, as in the paper.
        base: see `MultiHeadAttention`.

    Raises:
        ConfigError: the block is empty, or the halo is negative.
    """

    formula = "y_i = softmax_j((q_i k_j + q_i r_{j-i}) / sqrt(d)) v_j, j in the block of i and h cells around it"
    cost = "4NC^2 + 2N(b + 2h)^2C + N(b + 2h)2C"
    growth = "N"
    sizes = "multiples of block_size"
    takes_mask = True
    padding = "padded cells take no part, where the host says which they are"
    oddities = "beyond the map keys and values are zeros, and count (mask_border: false)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        block_size: int = 8,
        halo_size: int = 3,
        mask_border: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(dim, num_heads, **base)
        if block_size < 1 or halo_size < 0:
            raise ConfigError("block_size", "blocks are of 1 cell or more, halos of 0 or more")
        self.block, self.halo, self.mask_border = block_size, halo_size, mask_border
        self.window = block_size + 2 * halo_size
        # Distances from -(window - halo - 1) to window - halo - 1: one row each
        shape = (2, 2 * (block_size + halo_size) - 1, dim // num_heads)
        self.relative = nn.Parameter(nn.init.normal_(torch.empty(shape), std=shape[-1] ** -0.5))

    def fitting(self, size: Size) -> Size:
        """The next multiples of the block."""
        return tuple(-(-side // self.block) * self.block for side in size)

    def forward(self, x: Tensor, size: Size, mask: Tensor | None = None) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`.

        Args:
            x: `[B, H * W, C]`.
            size: (H, W), multiples of the block.
            mask: `[B, H * W]` bool, True where a token is real.

        Raises:
            DataError: blocks do not tile the map.
        """
        self.check_size(size)
        height, width = size
        qkv = self.qkv(x)
        side = (self.block, self.block)
        grid = qkv.unflatten(1, (height, width))
        q = window_partition(grid[..., : x.shape[-1]], side)
        k, v = self._with_halo(grid[..., x.shape[-1] :]).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        seen = self._seen(x, (height, width), mask)
        mixed = self._attend(q, k, v, seen)
        out = window_merge(mixed.transpose(1, 2).flatten(2), side, (height, width))
        projected: Tensor = self.proj_drop(self.proj(out)).flatten(1, 2)
        return projected

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """`[n, heads, b * b, d]` of queries, `[n, heads, w * w, d]` of keys and values -> as the queries."""
        count = at_once(q, self.num_heads * q.shape[2] * k.shape[2])
        if count < 2**31 and q.shape[0] > count:
            parts = zip(q.split(count), k.split(count), v.split(count), strict=True)
            masks = [None] * (-(-q.shape[0] // count)) if seen is None else seen.split(count)
            done = [self._attend(*part, mask) for part, mask in zip(parts, masks, strict=True)]
            return torch.cat(done)
        bias = self._positions(q)
        if seen is not None:
            bias = bias.masked_fill(~seen[:, None, None], float("-inf"))
        drop = self.attn_drop if self.training else 0.0
        return attend_few(q, k, v, bias.to(q.dtype), self.scale, drop)

    def path(self, device: torch.device) -> str:
        """Overlapping windows are views that are copied once; see `layers.windows.attend_few`."""
        fused = "scaled_dot_product_attention"
        return f"blocks, products in training, {fused} without" if device.type == "cpu" else f"blocks, {fused}"

    def _with_halo(self, grid: Tensor) -> Tensor:
        """`[B, H, W, c]` -> `[B * blocks, window ** 2, c]`; zeros come in."""
        padded = F.pad(grid, (0, 0, *(self.halo,) * 4))
        views = padded.unfold(1, self.window, self.block).unfold(2, self.window, self.block)  # [B, h, w, c, win, win]
        return views.permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(0, 2)

    def _positions(self, q: Tensor) -> Tensor:
        """Queries `[n, heads, b * b, d]` -> what their distances to the window's cells add, `[n, heads, b * b, w * w]`.

        A product for each axis: of all queries of a row (column) with that row's (column's) distances.
        """
        steps = torch.arange(self.window, device=q.device) - torch.arange(self.block, device=q.device)[:, None]
        rows, columns = self.relative[:, steps + self.block - 1].to(q.dtype) * self.scale  # [b, w, d] each
        grid = q.unflatten(2, (self.block, self.block))
        by_row = grid @ rows.mT  # [n, heads, row, column, w]
        by_column = (grid.transpose(2, 3) @ columns.mT).transpose(2, 3)
        return (by_row[..., None] + by_column[..., None, :]).flatten(4).flatten(2, 3)

    def _seen(self, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor | None:
        """`[n, w * w]` bool, which keys count; all where a window has none, whose queries are not real. None: all."""
        if mask is None and not self.mask_border:
            return None
        real = torch.ones_like(x[:, :, 0], dtype=torch.bool) if mask is None else mask
        # 1 is counted, 0 is not; beyond the map 0 comes in
        count = real.to(x.dtype) if self.mask_border else real.to(x.dtype) - 1
        window = self._with_halo(count.unflatten(1, size)[..., None])[..., 0]
        seen = window > 0.5 if self.mask_border else window > -0.5
        return seen | ~seen.any(-1, keepdim=True)
