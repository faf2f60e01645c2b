"""Swin's window attention: tokens attend inside windows, which every second block shifts by half of their side.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, arXiv 2103.14030, section 3.2. Authors' code:
microsoft/Swin-Transformer, MIT (models/swin_transformer.py), whose names of parameters these are. Theirs rolls the map
and keeps a mask for each of its windows; here one order of the tokens serves all blocks, with a mask for each kind of
window (`layers.windows.WindowOrder`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistrain.attention.base import AttentionOperator
from vistrain.errors import ConfigError
from vistrain.layers.windows import (
    Size,
    WindowOrder,
    relative_position_bias,
    relative_position_index,
    window_attention,
    window_order,
)


class SwinWindowAttention(AttentionOperator):
    """Multi-head self-attention inside (shifted) windows, with a learnt bias for each relative position.

    Args:
        dim: channels C.
        window_size: side of the square windows.
        num_heads: number of heads.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: factor of the logits; `(C / heads) ** -0.5` if None.
        attn_drop, proj_drop: dropout of attention weights and of the output.
        shift: rows and columns that windows are shifted by, unless the call brings their order.

    Raises:
        ConfigError: the heads do not divide the channels.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d) + b_{j-i}) v_j, j in the window of i"
    cost = "4NC^2 + 2NM^2C"
    growth = "N"
    sizes = "multiples of window_size"

    index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int = 7,
        num_heads: int = 4,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        shift: int = 0,
    ) -> None:
        super().__init__()
        if window_size < 1:
            raise ConfigError("window_size", f"{window_size} is too small", "windows are of 1 cell or more")
        if dim % num_heads:
            raise ConfigError("num_heads", f"{dim} channels are not divisible by {num_heads} heads")
        self.num_heads, self.scale, self.attn_drop = num_heads, qk_scale, attn_drop
        self.window, self.shift = (window_size, window_size), (shift, shift)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", relative_position_index(self.window), persistent=False)

    def fitting(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The next multiples of the window."""
        return tuple(-(-side // step) * step for side, step in zip(size, self.window, strict=True))

    def path(self, device: torch.device) -> str:
        """Windows are cut by one permutation; see `layers.windows.attend_few` for what is done in them."""
        fused = "scaled_dot_product_attention"
        return f"windows, products in training, {fused} without" if device.type == "cpu" else f"windows, {fused}"

    def forward(self, x: Tensor, size: Size, order: WindowOrder | None = None) -> Tensor:
        """Attend inside windows.

        Args:
            x: `[B, H * W, C]`.
            size: (H, W), multiples of the window.
            order: of the windows, where several blocks share one; None makes it.

        Returns:
            `[B, H * W, C]`.

        Raises:
            DataError: windows do not tile the map.
        """
        if order is None:
            self.check_size(size)
            order = window_order(x.shape[0], size, self.window, self.shift, device=x.device)
        q, k, v = self.qkv(order.cut(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = relative_position_bias(self.relative_position_bias_table, self.index)
        drop = self.attn_drop if self.training else 0.0
        windows = window_attention(q, k, v, bias, order.groups, self.scale, drop)
        return self.proj_drop(order.join(self.proj(windows), x.shape[0]))


class WindowAttention(SwinWindowAttention):
    """Window attention whose windows never move.

    Args:
        dim, num_heads: see `SwinWindowAttention`.
        window_size: side of the windows.
        base: see `SwinWindowAttention`.
    """

    sets_itself = ("shift",)

    def __init__(self, dim: int, num_heads: int = 4, window_size: int = 7, **base: Any) -> None:
        super().__init__(dim, window_size, num_heads, **base)


class ShiftedWindowAttention(SwinWindowAttention):
    """Window attention that is shifted by half a window in every second block, as in Swin.

    Args:
        dim, num_heads, window_size: see `WindowAttention`.
        layer: of the block; those of odd number are shifted.
        base: see `SwinWindowAttention`.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d) + b_{j-i}) v_j, j in the window of i, moved by M / 2 in odd blocks"
    sets_itself = ("shift",)

    def __init__(self, dim: int, num_heads: int = 4, window_size: int = 7, layer: int = 1, **base: Any) -> None:
        shift = window_size // 2 if layer % 2 else 0
        super().__init__(dim, window_size, num_heads, shift=shift, **base)
