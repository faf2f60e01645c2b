"""Axial attention: softmax attention along one axis of the map at a time.

Axial Attention in Multidimensional Transformers, arXiv 1912.12180, section 3. Authors' code: google-research/axial,
Apache-2.0 (TensorFlow). Parameters are named as in the widely used lucidrains/axial-attention, MIT, whose sum over the
axes this is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistrain.attention.base import AttentionOperator, Size
from vistrain.attention.heads import check_heads
from vistrain.layers.windows import attend_few


class AxialAttention(AttentionOperator):
    """Attention of each token to those of its row, and of its column, with projections of their own for each axis.

    Args:
        dim: channels C.
        num_heads: dividing C.
        axes: how many axes maps have.
        sum_axes: add what the axes give; otherwise one follows the other, the rows' axis first.
        attn_drop: dropout of attention weights.

    Raises:
        ConfigError: the heads do not divide the channels.
    """

    formula = "y_i = sum over axes a of W_a softmax_j(q_i^a k_j^a / sqrt(d)) v_j^a, j on the line through i along a"
    cost = "8NC^2 + 2N(H + W)C"
    growth = "N sqrt N"

    def __init__(
        self, dim: int, num_heads: int = 4, axes: int = 2, sum_axes: bool = True, attn_drop: float = 0.0
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.axes, self.sum_axes = (axes,), sum_axes
        self.lines = nn.ModuleList(LineAttention(dim, num_heads, attn_drop) for _ in range(axes))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; `size` has as many sides as there are axes."""
        grid = x.unflatten(1, size)
        total = None
        for axis, attention in enumerate(self.lines, 1):
            along = attention(grid.transpose(axis, -2)).transpose(axis, -2)
            if not self.sum_axes:
                grid = along
            total = along if total is None or not self.sum_axes else total + along
        assert total is not None
        return total.flatten(1, len(size))

    def path(self, device: torch.device) -> str:
        """Lines are brought into the batch by a transposition; see `layers.windows.attend_few` for what follows."""
        fused = "scaled_dot_product_attention"
        return f"lines, products in training, {fused} without" if device.type == "cpu" else f"lines, {fused}"


class LineAttention(nn.Module):
    """Softmax attention along the last axis but one.

    Args:
        dim: channels C.
        num_heads: dividing C.
        attn_drop: dropout of attention weights.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., L, C]` -> `[..., L, C]`."""
        lines = x.flatten(0, -3)
        q = self.to_q(lines).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.to_kv(lines).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend_few(q, k, v, None, dropout=self.attn_drop if self.training else 0.0)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2)).view(x.shape)
        return out
