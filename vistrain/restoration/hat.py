"""HAT: Hybrid Attention Transformer for image restoration (arXiv 2205.04437, 2309.05239).

Names of parameters are those of XPixelGroup/HAT, hat/archs/hat_arch.py, commit 1638a9a (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.window import SwinWindowAttention
from vistrain.errors import ConfigError
from vistrain.layers.drop_path import DropPath
from vistrain.layers.mlp import TokenMLP
from vistrain.layers.windows import (
    WindowOrder,
    relative_position_bias,
    window_attention,
    window_merge,
    window_partition,
)
from vistrain.restoration.super_resolver import (
    check_depths,
    drop_path_schedule,
    init_transformer,
    residual_conv,
    to_map,
    to_tokens,
)
from vistrain.restoration.swinir import WindowSuperResolver


class HATChannelAttention(nn.Module):
    """Factors in 0..1 for the channels, from their means over the map (RCAN).

    Args:
        channels: C.
        squeeze_factor: C over the width between the two layers.
    """

    def __init__(self, channels: int, squeeze_factor: int = 16) -> None:
        super().__init__()
        narrow = channels // squeeze_factor
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, 1, 1]`."""
        return self.attention(x)


class ChannelAttentionBlock(nn.Module):
    """HAT's CAB (section 3.2): two convolutions with a narrow map between them, and channel attention.

    Args:
        channels: C.
        compress_ratio: C over the width of the narrow map.
        squeeze_factor: of the attention.
        scale: factor of the output.
    """

    def __init__(self, channels: int, compress_ratio: int, squeeze_factor: int, scale: float) -> None:
        super().__init__()
        narrow = channels // compress_ratio
        self.scale = scale
        self.cab = nn.Sequential(
            nn.Conv2d(channels, narrow, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(narrow, channels, 3, padding=1),
            HATChannelAttention(channels, squeeze_factor),
        )

    def add_to(self, x: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
        """`x + scale * block(y)` of tokens `[B, H * W, C]`; size is (H, W)."""
        features = self.cab[2](self.cab[1](self.cab[0](to_map(y, size))))
        factors = (self.cab[3](features) * self.scale).flatten(2).transpose(1, 2)
        return torch.addcmul(x, to_tokens(features), factors)


class HybridAttentionBlock(nn.Module):
    """HAT's HAB (section 3.2): a Swin block with a channel attention block beside its attention.

    Args:
        dim: channels C.
        num_heads, window_size, qkv_bias, qk_scale: see `SwinWindowAttention`.
        shifted: whether windows are shifted by half of their side.
        compress_ratio, squeeze_factor, conv_scale: see `ChannelAttentionBlock`.
        mlp_ratio: width of the perceptron over C.
        drop, attn_drop, drop_path: dropout, dropout of attention, stochastic depth (not of the convolutions: faithful).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shifted: bool,
        compress_ratio: int,
        squeeze_factor: int,
        conv_scale: float,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SwinWindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.conv_block = ChannelAttentionBlock(dim, compress_ratio, squeeze_factor, conv_scale)
        self.mlp = TokenMLP(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int], orders: Sequence[WindowOrder]) -> Tensor:
        """Args: x: `[B, N, C]`; size: (H, W); orders: of plain and of shifted windows. Returns: `[B, N, C]`."""
        y = self.norm1(x)
        x = x + self.drop_path(self.attn(y, size, orders[self.shifted]))
        x = self.conv_block.add_to(x, y, size)  # sees the map as it is, never shifted
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlappingCrossAttentionBlock(nn.Module):
    """HAT's OCAB (section 3.3): queries of a window attend to a larger window around it; then a perceptron.

    Windows at the border reach over zeros, which are neither masked nor given the projection's bias: faithful.

    Args:
        dim: channels C.
        window_size: side of the queries' windows.
        overlap_ratio: how much the side of the larger window exceeds it.
        num_heads: number of heads.
        qkv_bias, qk_scale: see `SwinWindowAttention`.
        mlp_ratio: width of the perceptron over C.

    Raises:
        ConfigError: the larger windows cannot be centred on the smaller ones.
    """

    index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        overlap_ratio: float,
        num_heads: int,
        qkv_bias: bool,
        qk_scale: float | None,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.scale, self.window_size = num_heads, qk_scale, window_size
        self.reach = window_size + int(window_size * overlap_ratio)
        if (self.reach - window_size) % 2:
            problem = f"{overlap_ratio} makes windows of {self.reach} around {window_size}"
            raise ConfigError("overlap_ratio", problem, "the difference must be even")
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        self.mlp = TokenMLP(dim, int(dim * mlp_ratio))
        table = torch.empty((window_size + self.reach - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("index", overlapping_position_index(window_size, self.reach), persistent=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Args: x: `[B, H * W, C]`; size: (H, W). Returns: `[B, H * W, C]`."""
        side, window = self.window_size, (self.window_size, self.window_size)
        q, kv = self.qkv(self.norm1(x)).view(x.shape[0], *size, -1).tensor_split((x.shape[2],), -1)
        q = window_partition(q, window).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        margin = (self.reach - side) // 2
        kv = F.pad(kv, (0, 0, margin, margin, margin, margin))
        around = kv.unfold(1, self.reach, side).unfold(2, self.reach, side).permute(0, 1, 2, 4, 5, 3)
        k, v = around.reshape(q.shape[0], self.reach**2, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = relative_position_bias(self.relative_position_bias_table, self.index)
        y = window_attention(q, k, v, bias, ((q.shape[0], None),), self.scale)
        x = x + self.proj(window_merge(y, window, size).flatten(1, 2))
        return x + self.mlp(self.norm2(x))


def overlapping_position_index(window: int, reach: int) -> Tensor:
    """Rows of the table of relative positions between a window and the larger window around it.

    Args:
        window: side of the queries' windows.
        reach: side of the larger window.

    Returns:
        `[window ** 2, reach ** 2]` int64. The authors' offsets start at `2 - reach` instead of 0, so that some of their
        rows are negative and count from the table's end. Each offset still has a row of its own; weights depend on it.
    """
    inner, outer = (torch.cartesian_prod(torch.arange(side), torch.arange(side)) for side in (window, reach))
    offsets = outer[None, :] - inner[:, None] + window - reach + 1
    return (offsets[..., 0] * (window + reach - 1) + offsets[..., 1]) % (window + reach - 1) ** 2


class ResidualHybridGroup(nn.Module):
    """HAT's RHAG (section 3.1): hybrid blocks, an overlapping cross-attention block, a convolution, and what came in.

    Args:
        blocks: the hybrid blocks.
        overlap_attn: the overlapping cross-attention block.
        conv: in front of the residual connection.
    """

    def __init__(
        self, blocks: Sequence[HybridAttentionBlock], overlap_attn: OverlappingCrossAttentionBlock, conv: nn.Module
    ) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "overlap_attn": overlap_attn})
        self.conv = conv

    def forward(self, x: Tensor, size: tuple[int, int], orders: Sequence[WindowOrder]) -> Tensor:
        """Args: x: `[B, N, C]`; size: (H, W); orders: see the hybrid block. Returns: `[B, N, C]`."""
        y = x
        for block in cast(nn.ModuleList, self.residual_group["blocks"]):
            y = block(y, size, orders)
        y = self.residual_group["overlap_attn"](y, size)
        return to_tokens(self.conv(to_map(y, size))) + x


class HAT(WindowSuperResolver):
    """Hybrid Attention Transformer.

    Defaults are the published base model's; HAT-S has `embed_dim` 144, `compress_ratio` 24 and `squeeze_factor` 24,
    HAT-L twelve groups.

    Args:
        depths, num_heads: hybrid blocks and heads of each group.
        window_size: side of windows.
        compress_ratio, squeeze_factor, conv_scale: see `ChannelAttentionBlock`.
        overlap_ratio: see `OverlappingCrossAttentionBlock`.
        mlp_ratio: width of the perceptrons over C.
        qkv_bias, qk_scale: see `SwinWindowAttention`.
        attn_drop_rate, drop_path_rate: dropout of attention, greatest stochastic depth.
        base: see `WindowSuperResolver`. The authors' upsampler is `pixelshuffle`.
    """

    def __init__(
        self,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 16,
        compress_ratio: int = 3,
        squeeze_factor: int = 30,
        conv_scale: float = 0.01,
        overlap_ratio: float = 0.5,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(window_size=window_size, **base)
        embed_dim, drop_rate = self.embed_dim, self.drop_rate
        check_depths(depths, num_heads)
        for name, ratio in (("compress_ratio", compress_ratio), ("squeeze_factor", squeeze_factor)):
            if not 1 <= ratio <= embed_dim:
                raise ConfigError(name, f"{ratio} of {embed_dim} channels leaves none")
        self.layers = nn.ModuleList()
        for heads, rates in zip(num_heads, drop_path_schedule(drop_path_rate, depths), strict=True):
            blocks = [
                HybridAttentionBlock(
                    embed_dim,
                    heads,
                    window_size,
                    i % 2 == 1,
                    compress_ratio,
                    squeeze_factor,
                    conv_scale,
                    mlp_ratio,
                    qkv_bias,
                    qk_scale,
                    drop_rate,
                    attn_drop_rate,
                    rate,
                )
                for i, rate in enumerate(rates)
            ]
            last = OverlappingCrossAttentionBlock(
                embed_dim, window_size, overlap_ratio, heads, qkv_bias, qk_scale, mlp_ratio
            )
            self.layers.append(ResidualHybridGroup(blocks, last, residual_conv(embed_dim, self.resi_connection)))
        init_transformer(self)
