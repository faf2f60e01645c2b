"""SwinIR: Image Restoration Using Swin Transformer (arXiv 2108.10257).

Names of parameters are those of JingyunLiang/SwinIR, models/network_swinir.py (Apache-2.0). `SwinBlock` is
Swin's (arXiv 2103.14030; microsoft/Swin-Transformer, MIT), which HAT and DRCT take up.
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
from vistrain.layers.padding import EdgeMode
from vistrain.layers.windows import WindowOrder, window_order
from vistrain.restoration.super_resolver import (
    TransformerSuperResolver,
    check_depths,
    drop_path_schedule,
    init_transformer,
    residual_conv,
    to_map,
    to_tokens,
)


class SwinBlock(nn.Module):
    """Attention in (shifted) windows and a perceptron, each normalised before and added to what came in.

    Args:
        dim: channels C.
        num_heads, window_size, qkv_bias, qk_scale: as `SwinWindowAttention`.
        shifted: whether windows are shifted by half of their side.
        mlp_ratio: width of the perceptron over C.
        drop, attn_drop, drop_path: dropout of outputs and of attention weights, stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shifted: bool,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SwinWindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.mlp = TokenMLP(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int], orders: Sequence[WindowOrder]) -> Tensor:
        """Args: x: `[B, H * W, C]`; size: (H, W); orders: of plain and of shifted windows. Returns: `[B, H * W, C]`."""
        x = x + self.drop_path(self.attn(self.norm1(x), size, orders[self.shifted]))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowSuperResolver(TransformerSuperResolver):
    """What SwinIR, HAT and DRCT share: norms, position embedding, and one order of windows for all blocks.

    Subclasses fill `layers` with residual groups, `(x: [B, N, C], size, orders) -> [B, N, C]`.

    Args:
        img_size: side that the position embedding is for; windows are not shifted if they are not smaller than it.
        window_size: side of windows.
        drop_rate: dropout of the tokens.
        ape: adds a learnt embedding of absolute positions; only images of `img_size` are taken then.
        patch_norm: normalises the first tokens.
        base: see `TransformerSuperResolver`.
    """

    sets_itself = ("multiple",)

    computed = r"(^|\.)(attn_mask|relative_position_index(_SA|_OCA)?)$"

    layers: nn.ModuleList

    def __init__(
        self,
        img_size: int = 64,
        window_size: int = 8,
        drop_rate: float = 0.0,
        ape: bool = False,
        patch_norm: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(multiple=window_size, **base)
        embed_dim = self.embed_dim
        if window_size > img_size:
            raise ConfigError("window_size", f"{window_size} is larger than img_size {img_size}")
        self.window_size, self.shift = window_size, window_size // 2 if window_size < img_size else 0
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)} if patch_norm else {})
        self.absolute_pos_embed: nn.Parameter | None = None
        if ape:
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, img_size**2, embed_dim))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.drop_rate, self.pos_drop = drop_rate, nn.Dropout(drop_rate)
        self.norm = nn.LayerNorm(embed_dim)

    def tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """See `TransformerSuperResolver`."""
        for norm in self.patch_embed.values():
            x = norm(x)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed
        x = self.pos_drop(x)
        window = (self.window_size, self.window_size)
        orders = [window_order(x.shape[0], size, window, (shift, shift), device=x.device) for shift in (0, self.shift)]
        for layer in self.layers:
            x = self.run(layer, x, size, orders)
        return self.norm(x)


class ResidualSwinGroup(nn.Module):
    """SwinIR's RSTB (section 3.2): Swin blocks, a convolution, and what came in.

    Args:
        dim: channels C.
        depth: number of blocks, every second one shifted.
        num_heads, window_size, mlp_ratio, qkv_bias, qk_scale, drop, attn_drop: of the blocks.
        drop_path: stochastic depth of each block.
        resi_connection: see `residual_conv`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: Sequence[float],
        resi_connection: str,
    ) -> None:
        super().__init__()
        blocks = [
            SwinBlock(
                dim, num_heads, window_size, i % 2 == 1, mlp_ratio, qkv_bias, qk_scale, drop, attn_drop, drop_path[i]
            )
            for i in range(depth)
        ]
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.conv = residual_conv(dim, resi_connection)

    def forward(self, x: Tensor, size: tuple[int, int], orders: Sequence[WindowOrder]) -> Tensor:
        """Args: x: `[B, H * W, C]`; size: (H, W); orders: see `SwinBlock`. Returns: `[B, H * W, C]`."""
        y = x
        for block in cast(nn.ModuleList, self.residual_group["blocks"]):
            y = block(y, size, orders)
        return to_tokens(self.conv(to_map(y, size))) + x


class SwinIR(WindowSuperResolver):
    """SwinIR for super-resolution and denoising.

    Images of any size are taken: as in the authors' code they are reflected at the bottom and right up to a multiple of
    the window. Their test script pads before that, by mirrored pixels and always by at least one, which
    `RestorationModel` does too (`padding`, `least_padding`).

    Args:
        depths, num_heads: blocks and heads of each group.
        mlp_ratio: width of the perceptrons over C.
        qkv_bias, qk_scale: see `SwinWindowAttention`.
        attn_drop_rate, drop_path_rate: dropout of attention, greatest stochastic depth.
        base: see `WindowSuperResolver`. Windows are 8 wide, 7 for JPEG artefacts; `resi_connection` is `3conv` in the
            large network.
    """

    padding: EdgeMode = "symmetric"
    least_padding = 1

    def __init__(
        self,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_depths(depths, num_heads)
        rates = drop_path_schedule(drop_path_rate, depths)
        groups = [
            ResidualSwinGroup(
                self.embed_dim,
                depth,
                heads,
                self.window_size,
                mlp_ratio,
                qkv_bias,
                qk_scale,
                self.drop_rate,
                attn_drop_rate,
                rate,
                self.resi_connection,
            )
            for depth, heads, rate in zip(depths, num_heads, rates, strict=True)
        ]
        self.layers = nn.ModuleList(groups)
        init_transformer(self)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, h, w]` of any size -> `[B, C_in, h * scale, w * scale]`; see `SuperResolver`."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if x.dim() == 4 and (bottom or right) > 0 and bottom < height and right < width:
            x = F.pad(x, (0, right, 0, bottom), mode="reflect")  # smaller images are refused with the reason
        return super().forward(x)[..., : height * self.scale, : width * self.scale]
