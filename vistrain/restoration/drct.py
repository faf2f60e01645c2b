"""DRCT: Saving Image Super-resolution away from Information Bottleneck (arXiv 2404.00722).

Names of parameters are those of ming053l/DRCT, drct/archs/DRCT_arch.py, commit c0a8b51 (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.windows import WindowOrder
from vistrain.restoration.super_resolver import check_depths, drop_path_schedule, init_transformer, to_map, to_tokens
from vistrain.restoration.swinir import SwinBlock, WindowSuperResolver

BLOCKS = 5


class ResidualDenseGroup(nn.Module):
    """DRCT's RDG (section 3.2): five Swin blocks, each of which sees what all before it found, densely connected.

    Block i works on `C + i * gc` channels; a 1x1 convolution turns its output into `gc` new channels (the last one's
    into C, which is added to what came in with a weight of 0.2). Blocks 2 and 4 have shifted windows; blocks 4 and 5
    perceptrons without expansion.

    Args:
        dim: channels C.
        num_heads: h; a block of width w has `h - (w % h)` heads.
        window_size, qkv_bias, qk_scale: see `SwinWindowAttention`.
        gc: channels that each block adds.
        mlp_ratio: width of the first three blocks' perceptrons over their channels.
        drop, attn_drop, drop_path: of all blocks.

    Raises:
        ConfigError: the heads of a block do not divide its channels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        gc: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        for i in range(BLOCKS):
            width = dim + i * gc
            heads, ratio = num_heads - width % num_heads, mlp_ratio if i < 3 else 1.0
            block = SwinBlock(
                width, heads, window_size, i % 2 == 1, ratio, qkv_bias, qk_scale, drop, attn_drop, drop_path
            )
            self.add_module(f"swin{i + 1}", block)
            self.add_module(f"adjust{i + 1}", nn.Conv2d(width, gc if i < BLOCKS - 1 else dim, 1))

    def forward(self, x: Tensor, size: tuple[int, int], orders: Sequence[WindowOrder]) -> Tensor:
        """Args: x: `[B, N, C]`; size: (H, W); orders: of plain and of shifted windows. Returns: `[B, N, C]`."""
        seen = x
        for i in range(1, BLOCKS):
            seen = torch.cat((seen, F.leaky_relu(self._new_channels(i, seen, size, orders), 0.2)), -1)
        return torch.add(x, self._new_channels(BLOCKS, seen, size, orders), alpha=0.2)

    def _new_channels(self, i: int, x: Tensor, size: tuple[int, int], orders: Sequence[WindowOrder]) -> Tensor:
        block, adjust = self.get_submodule(f"swin{i}"), self.get_submodule(f"adjust{i}")
        return to_tokens(adjust(to_map(block(x, size, orders), size)))


class DRCT(WindowSuperResolver):
    """Dense-residual-connected Transformer.

    Defaults are the published base model's; DRCT-L has twelve groups. The authors' constructor takes more arguments of
    HAT, which it does not use.

    Args:
        depths: one for each group. All groups have five blocks; depths only shape the schedule of stochastic depth,
            where all blocks of a group have the rate of its first: faithful.
        num_heads: of each group, see `ResidualDenseGroup`.
        window_size: side of windows.
        mlp_ratio, gc: see `ResidualDenseGroup`.
        qkv_bias, qk_scale: see `SwinWindowAttention`.
        attn_drop_rate, drop_path_rate: dropout of attention, greatest stochastic depth.
        base: see `WindowSuperResolver`. The authors' upsampler is `pixelshuffle`; `resi_connection`, `1conv` or
            `identity`, is of the convolution behind all groups.
    """

    def __init__(
        self,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 16,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        gc: int = 32,
        **base: Any,
    ) -> None:
        super().__init__(window_size=window_size, **base)
        embed_dim, drop_rate = self.embed_dim, self.drop_rate
        check_depths(depths, num_heads)
        if gc < 1:
            raise ConfigError("gc", f"{gc} new channels", "at least 1")
        rates = drop_path_schedule(drop_path_rate, depths)
        groups = [
            ResidualDenseGroup(
                embed_dim, heads, window_size, gc, mlp_ratio, qkv_bias, qk_scale, drop_rate, attn_drop_rate, rate[0]
            )
            for heads, rate in zip(num_heads, rates, strict=True)
        ]
        self.layers = nn.ModuleList(groups)
        init_transformer(self)
