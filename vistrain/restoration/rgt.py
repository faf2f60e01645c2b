"""RGT: Recursive Generalization Transformer for image super-resolution (arXiv 2303.06373, ICLR 2024).

Names of parameters are those of zhengchen1999/RGT, basicsr/archs/rgt_arch.py, commit 01b4379 (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError, DataError
from vistrain.layers.biased_attention import biased_attention
from vistrain.layers.drop_path import DropPath
from vistrain.layers.windows import (
    WindowOrder,
    relative_position_bias,
    relative_position_index,
    window_attention,
    window_order,
)
from vistrain.restoration.super_resolver import (
    TransformerSuperResolver,
    check_depths,
    drop_path_schedule,
    init_transformer,
    residual_conv,
    to_map,
    to_tokens,
)

Orders = dict[tuple[int, bool], WindowOrder]  # by branch, and whether windows are shifted


class SpatialGateMLP(nn.Module):
    """A perceptron whose hidden half is gated by the other half, normalised and convolved depthwise (section 3.2).

    Args:
        dim: channels C.
        hidden: width between, both halves together.
        drop: dropout.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        half = hidden // 2
        self.fc1, self.fc2, self.drop = nn.Linear(dim, hidden), nn.Linear(half, dim), nn.Dropout(drop)
        conv = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.sg = nn.ModuleDict({"norm": nn.LayerNorm(half), "conv": conv})

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Args: x: `[B, H * W, C]`; size: (H, W). Returns: `[B, H * W, C]`."""
        values, gate = self.drop(F.gelu(self.fc1(x))).chunk(2, -1)
        gate = to_tokens(self.sg["conv"](to_map(self.sg["norm"](gate), size)))
        return self.drop(self.fc2(self.drop(values * gate)))


class DynamicPositionBias(nn.Module):
    """A bias for each relative position inside a window, from a small network (CrossFormer).

    Args:
        width: of the network.
        num_heads: number of heads.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.pos_proj = nn.Linear(2, width)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)) for out in (width, width, num_heads)
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Offsets `[P, 2]` -> biases `[P, heads]`."""
        return self.pos3(self.pos2(self.pos1(self.pos_proj(positions))))


class RectangleAttention(nn.Module):
    """Attention inside rectangular windows, without projections: one branch of `RGTLocalAttention`.

    Args:
        dim: channels C' of the branch.
        window: (h, w).
        num_heads: of the branch.
        qk_scale: factor of the logits; `(C' / heads) ** -0.5` if None.
        attn_drop: dropout of attention weights.
    """

    index: Tensor
    positions: Tensor

    def __init__(
        self, dim: int, window: tuple[int, int], num_heads: int, qk_scale: float | None, attn_drop: float
    ) -> None:
        super().__init__()
        self.num_heads, self.scale, self.attn_drop = num_heads, qk_scale, attn_drop
        self.pos = DynamicPositionBias(dim // 16, num_heads)
        offsets = [torch.arange(1 - side, side) for side in window]
        self.register_buffer("positions", torch.cartesian_prod(*offsets).float(), persistent=False)
        self.register_buffer("index", relative_position_index(window), persistent=False)

    def forward(self, qkv: Tensor, order: WindowOrder) -> Tensor:
        """Args: qkv: `[B, H * W, 3 * C']`; order: of the windows. Returns: `[B, H * W, C']`."""
        q, k, v = order.cut(qkv).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = relative_position_bias(self.pos(self.positions), self.index)
        drop = self.attn_drop if self.training else 0.0
        return order.join(window_attention(q, k, v, bias, order.groups, self.scale, drop), len(qkv))


class RGTLocalAttention(nn.Module):
    """RGT's L-SA: half of the channels attend in wide windows, half in high ones; a depthwise convolution adds detail.

    Maps are padded after the projection, by queries, keys and values of zero that are not masked: faithful.

    Args:
        dim: channels C.
        split_size: (h, w) of the first half's windows; the second half's are (w, h).
        num_heads: of both halves together.
        shifted: whether windows are shifted by half of their sides.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: see `RectangleAttention`.
        drop, attn_drop: dropout of the output and of attention weights.
    """

    def __init__(
        self,
        dim: int,
        split_size: tuple[int, int],
        num_heads: int,
        shifted: bool,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)
        self.attns = nn.ModuleList(
            RectangleAttention(dim // 2, window, num_heads // 2, qk_scale, attn_drop)
            for window in (split_size, split_size[::-1])
        )
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, int], padded: tuple[int, int], orders: Orders) -> Tensor:
        """Local attention.

        Args:
            x: `[B, H * W, C]`.
            size: (H, W).
            padded: (H, W) rounded up to whole windows.
            orders: of both branches' windows on the padded map.

        Returns:
            `[B, H * W, C]`.
        """
        dim, half = x.shape[2], x.shape[2] // 2
        # One projection for each branch saves cutting queries, keys and values out of a common one
        weights = self.qkv.weight.view(3, 2, half, dim).unbind(1)
        biases = (None, None) if self.qkv.bias is None else self.qkv.bias.view(3, 2, half).unbind(1)
        parts = [
            F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
            for weight, bias in zip(weights, biases, strict=True)
        ]
        v = torch.cat([part[..., 2 * half :] for part in parts], -1)
        detail = to_tokens(self.get_v(to_map(v, size)))
        branches = []
        for i, (attention, part) in enumerate(zip(self.attns, parts, strict=True)):
            if padded != size:
                right, bottom = padded[1] - size[1], padded[0] - size[0]
                part = F.pad(part.unflatten(1, size), (0, 0, 0, right, 0, bottom)).flatten(1, 2)
            out = attention(part, orders[i, self.shifted])
            if padded != size:
                out = out.unflatten(1, padded)[:, : size[0], : size[1]].flatten(1, 2)
            branches.append(out)
        return self.proj_drop(self.proj(torch.cat(branches, -1) + detail))


class RGTRecursiveAttention(nn.Module):
    """RGT's RG-SA (section 3.3): all tokens attend to a small map, which one strided convolution makes recursively.

    Args:
        dim: channels C.
        num_heads: number of heads.
        c_ratio: width of queries and keys over C.
        qkv_bias: whether the projections have a bias.
        qk_scale: factor of the logits; `(C / heads * c_ratio) ** -0.5` if None.
        drop, attn_drop: dropout of the output and of attention weights.

    Raises:
        ConfigError: the heads do not divide the narrow width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        c_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
    ) -> None:
        super().__init__()
        narrow = int(dim * c_ratio)
        if narrow < 1 or narrow % num_heads or dim % num_heads:
            problem = f"{num_heads} heads for widths {dim} and {narrow}"
            raise ConfigError("num_heads", problem, "both must be divisible by the heads")
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.scale = qk_scale or (dim // num_heads * c_ratio) ** -0.5
        self.reduction1 = nn.Conv2d(dim, dim, 4, stride=4, groups=dim)
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.conv = nn.Conv2d(dim, narrow, 1)
        self.norm_act = nn.Sequential(nn.LayerNorm(narrow), nn.GELU())
        self.q, self.k = nn.Linear(dim, narrow, bias=qkv_bias), nn.Linear(narrow, narrow, bias=qkv_bias)
        self.v = nn.Linear(narrow, dim, bias=qkv_bias)
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(drop)

    def forward(self, x: Tensor, size: tuple[int, int], times: int) -> Tensor:
        """Args: x: `[B, H * W, C]`; size: (H, W); times: of the reduction by 4. Returns: `[B, H * W, C]`."""
        small = to_map(x, size)
        for _ in range(times):
            small = self.reduction1(small)
        reduced = (small.shape[2], small.shape[3])
        context = self.norm_act(to_tokens(self.conv(self.dwconv(small))))
        v = self.v(context)
        v = v + to_tokens(self.cpe(to_map(v, reduced)))
        q, k, v = (y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(context), v))
        drop = self.attn_drop if self.training else 0.0
        mixed = biased_attention(q, k, v, None, self.scale, drop)  # of keys narrower than values
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class RGTBlock(nn.Module):
    """Attention, perceptron, and the block's own input once more, weighted for each channel (HAI, section 3.4).

    Args:
        dim: channels C.
        attn: `RGTLocalAttention` or `RGTRecursiveAttention`.
        mlp: the perceptron.
        drop_path: stochastic depth.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp: SpatialGateMLP, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp, self.drop_path = attn, mlp, DropPath(drop_path)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-4))

    def forward(self, x: Tensor, size: tuple[int, int], padded: tuple[int, int], orders: Orders, times: int) -> Tensor:
        """See `RGTLocalAttention` and `RGTRecursiveAttention`; `[B, H * W, C]` -> `[B, H * W, C]`."""
        local = isinstance(self.attn, RGTLocalAttention)
        y = self.norm1(x)
        y = x + self.drop_path(self.attn(y, size, padded, orders) if local else self.attn(y, size, times))
        y = y + self.drop_path(self.mlp(self.norm2(y), size))
        return torch.addcmul(y, x, self.gamma)


class ResidualRGTGroup(nn.Module):
    """Blocks with local and recursive attention in turn, a convolution, and what came in.

    Args:
        dim: channels C.
        blocks: of the group.
        resi_connection: see `residual_conv`.
    """

    def __init__(self, dim: int, blocks: Sequence[RGTBlock], resi_connection: str) -> None:
        super().__init__()
        self.blocks, self.conv = nn.ModuleList(blocks), residual_conv(dim, resi_connection)

    def forward(self, x: Tensor, size: tuple[int, int], padded: tuple[int, int], orders: Orders, times: int) -> Tensor:
        """See `RGTBlock`; `[B, H * W, C]` -> `[B, H * W, C]`."""
        y = x
        for block in self.blocks:
            y = block(y, size, padded, orders, times)
        return to_tokens(self.conv(to_map(y, size))) + x


class RGT(TransformerSuperResolver):
    """Recursive Generalization Transformer. Images of any size of at least 16x16 are taken.

    Defaults are the published base model's; RGT-S has six groups.

    Args:
        img_size: side of training patches. The authors store masks for it and compute others as they are needed: it
            changes nothing.
        depth, num_heads: blocks and heads of each group.
        mlp_ratio: hidden width of the perceptrons over C.
        qkv_bias, qk_scale: see the two attentions.
        drop_rate, attn_drop_rate, drop_path_rate: dropout, dropout of attention, greatest stochastic depth.
        use_chk: recompute groups in training instead of keeping their activations.
        split_size: see `RGTLocalAttention`.
        c_ratio: see `RGTRecursiveAttention`.
        base: see `TransformerSuperResolver`.

    Raises:
        ConfigError: depths and heads that do not fit, or an odd number of heads or channels.
    """

    computed = r"(^|\.)(attn_mask_[01]|rpe_biases|relative_position_index)$"
    smallest = 16
    sets_itself = ("upsampler", "multiple", "use_checkpoint")

    def __init__(
        self,
        img_size: int = 64,
        depth: Sequence[int] = (6, 6, 6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6, 6, 6),
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_chk: bool = False,
        split_size: tuple[int, int] = (8, 32),
        c_ratio: float = 0.5,
        **base: Any,
    ) -> None:
        super().__init__(upsampler="pixelshuffle", multiple=1, use_checkpoint=use_chk, **base)
        embed_dim = self.embed_dim
        check_depths(depth, num_heads, "depth")
        if embed_dim < 32 or any(heads % 2 or embed_dim % heads for heads in num_heads):
            problem = f"{embed_dim} channels and {list(num_heads)} heads"
            raise ConfigError("num_heads", problem, "even numbers that divide at least 32 channels")
        self.split_size = (split_size[0], split_size[1])
        self.before_RG = nn.Sequential(nn.Identity(), nn.LayerNorm(embed_dim))
        self.norm = nn.LayerNorm(embed_dim)
        self.layers = nn.ModuleList()
        for i, (heads, rates) in enumerate(zip(num_heads, drop_path_schedule(drop_path_rate, depth), strict=True)):
            blocks = []
            for j, rate in enumerate(rates):
                attn: nn.Module
                if j % 2 == 0:
                    shifted = j % 4 == 0 if i % 2 else j % 4 == 2
                    attn = RGTLocalAttention(
                        embed_dim, self.split_size, heads, shifted, qkv_bias, qk_scale, drop_rate, attn_drop_rate
                    )
                else:
                    attn = RGTRecursiveAttention(
                        embed_dim, heads, c_ratio, qkv_bias, qk_scale, drop_rate, attn_drop_rate
                    )
                mlp = SpatialGateMLP(embed_dim, int(embed_dim * mlp_ratio), drop_rate)
                blocks.append(RGTBlock(embed_dim, attn, mlp, rate))
            self.layers.append(ResidualRGTGroup(embed_dim, blocks, self.resi_connection))
        init_transformer(self)

    def tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """See `TransformerSuperResolver`."""
        x, times = self.before_RG(x), self.reductions(size)
        whole = max(self.split_size)
        padded = ((size[0] + whole - 1) // whole * whole, (size[1] + whole - 1) // whole * whole)
        orders = {
            (i, shifted): window_order(
                x.shape[0], padded, window, (window[0] // 2, window[1] // 2) if shifted else (0, 0), device=x.device
            )
            for i, window in enumerate((self.split_size, self.split_size[::-1]))
            for shifted in (False, True)
        }
        for layer in self.layers:
            x = self.run(layer, x, size, padded, orders, times)
        return self.norm(x)

    def reductions(self, size: tuple[int, int]) -> int:
        """How often the recursive attention reduces a map of (H, W) by 4: by the longer side, and more in training.

        Raises:
            DataError: the shorter side is too short for it.
        """
        longer, shorter = max(size), min(size)
        cells = longer // 4 if self.training else longer // 16
        times = int(math.log(cells, 4)) if cells else 0
        times = times if self.training else max(times, 2)
        if shorter < 4**times:
            problem = f"{size[0]}x{size[1]}, but RGT reduces by {4**times}, so that no side may be shorter"
            raise DataError("image", problem, "pad it, or use tiles")
        return times
