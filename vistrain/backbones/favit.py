"""FaViT: channels in groups that look at pooled maps and at windows of several dilations, all in one attention.

Factorization Vision Transformer: Modeling Long Range Dependency with Local Window Cost, arXiv 2312.08614. Authors'
code: q2479036243/FaViT, no licence (FaViT/classification/favit.py): nothing of it is here, it is written from a
description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones.overlapping import overlapping_pyramid
from vistrain.backbones.staged import (
    Published,
    StagedBackbone,
    TokenBlock,
    build_variant,
    converter,
    default_cfg,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.errors import DataError
from vistrain.layers.mlp import ConvMlp
from vistrain.layers.padding import mirrored

# Authors' names -> ours. Theirs count stages from 1.
AUTHORS = KeyMap(
    name="FaViT",
    marker=r"^block1\.0\.attn\.kv_g\.",
    rules=(
        (r"^patch_embed1\.", "stem."),
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(4)),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
        (r"\.attn\.kv_l\.depth_conv\.", ".attn.kv.0."),
        (r"\.attn\.kv_l\.point_conv\.", ".attn.kv.1."),
        (r"\.attn\.(sr|norm|kv_g|local_conv_g)\.", r".attn.pooled.\1."),
        (r"\.attn\.fcs\.(\d)\.", r".attn.windowed.\1.fc."),
        (r"\.attn\.single_heads\.(\d)\.", r".attn.windowed.\1.kv."),
        (r"\.attn\.local_convs\.(\d)\.", r".attn.windowed.\1.local."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
WINDOW = 7  # cells of a window along an axis


class PooledKeys(nn.Module):
    """One head's keys and values: a map reduced by a strided convolution (PVT, arXiv 2102.12122).

    Args:
        dim: channels of the group.
        sr_ratio: cells by cells that become one.
        bias: whether the projection has one.
    """

    def __init__(self, dim: int, sr_ratio: int, bias: bool = True) -> None:
        super().__init__()
        self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
        self.norm = nn.LayerNorm(dim)
        self.kv_g = nn.Linear(dim, 2 * dim, bias=bias)
        self.local_conv_g = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` -> keys and values `[B, 1, H // sr * W // sr, C]`."""
        x = self.sr(x)
        k, v = self.kv_g(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2).chunk(2, 1)
        v = v + self.local_conv_g(v)
        return k.flatten(2).mT[:, None], v.flatten(2).mT[:, None]


class WindowedKeys(nn.Module):
    """Keys and values that stand for all windows of a map: 7 x 7 of them.

    Windows have 7 x 7 cells, `dilation` apart, and do not overlap. Each of the 49 places of a window is averaged over
    them, faithfully in runs of the flattened (window, channel) axis, which mixes windows and channels.

    Args:
        dim: channels of the group.
        num_heads: of the attention.
        dilation: of the windows.
        bias: whether projections have one.
    """

    def __init__(self, dim: int, num_heads: int, dilation: int, bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.dilation = num_heads, dilation
        head = dim // num_heads
        self.fc = nn.Linear(head, head, bias=bias)
        self.kv = nn.Linear(head, 2 * head, bias=bias)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` -> keys and values `[B, heads, 49, C / heads]`. Maps are mirrored until windows tile them."""
        x = x.permute(0, 2, 3, 1)
        for axis in (1, 2):
            x = self._seen(x, axis)
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        head = x.shape[3] // self.num_heads
        cut = x.reshape(-1, rows, WINDOW, columns, WINDOW, self.num_heads, head).permute(0, 5, 2, 4, 1, 3, 6)
        # Runs of as many as there are windows, in the flattened (window, channel) axis
        pooled = cut.flatten(2, 3).flatten(3).unflatten(3, (-1, rows * columns)).mean(-1)
        k, v = self.kv(self.fc(pooled)).chunk(2, -1)
        grid = v.mT.flatten(1, 2).unflatten(2, (WINDOW, WINDOW))
        return k, v + self.local(grid).flatten(2).unflatten(1, (self.num_heads, -1)).mT

    def _seen(self, x: Tensor, axis: int) -> Tensor:
        """The cells along an axis that windows see, window by window: no other one of a mirror image is ever made."""
        side, extent = x.shape[axis], self.dilation * (WINDOW - 1) + 1
        if not torch.compiler.is_compiling() and self.dilation == 1 and side % extent == 0:
            return x  # all of them; a graph for any size shall not depend on it
        starts = torch.arange(0, side, extent, device=x.device)
        places = starts[:, None] + torch.arange(0, extent, self.dilation, device=x.device)
        return x.index_select(axis, mirrored(places.flatten(), side))


class FactorizationAttention(nn.Module):
    """Groups of channels with keys of their own: of a pooled map, of windows, of dilated windows (section 3.2).

    Args:
        dim: channels, a multiple of 16.
        num_heads: of the groups with windows.
        sr_ratio: of the pooled map, and the dilation of the last group's windows. With 1 there is one such group.
        qkv_bias: whether projections to queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool = True) -> None:
        super().__init__()
        part = dim // 8
        self.groups = [part, 7 * part] if sr_ratio == 1 else [part, 7 * part // 2, 7 * part // 2]
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        rest = dim - part
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Sequential(nn.Conv2d(rest, rest, 3, padding=1, groups=rest), nn.Conv2d(rest, rest, 1))
        self.pooled = PooledKeys(part, sr_ratio, qkv_bias)
        steps = [1] if sr_ratio == 1 else [1, sr_ratio]
        self.windowed = nn.ModuleList(
            WindowedKeys(c, num_heads, step, qkv_bias) for c, step in zip(self.groups[1:], steps, strict=True)
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W).

        Raises:
            DataError: the map is smaller than what the pooled one reduces to a cell.
        """
        if min(size) < self.sr_ratio:
            problem = f"a map of {size[0]}x{size[1]} cells cannot be reduced by {self.sr_ratio}"
            raise DataError("image", problem, "use images of at least 32x32")
        first, rest = self.q(x).tensor_split([self.groups[0]], -1)
        # Heads first, then groups: a group's queries are a share of each head's channels, faithfully.
        shares = [channels // self.num_heads for channels in self.groups[1:]]
        others = rest.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).split(shares, -1)
        grid = x.mT.unflatten(2, size)
        out = [F.scaled_dot_product_attention(first[:, None], *self.pooled(grid[:, : self.groups[0]]))]
        maps = self.kv(grid[:, self.groups[0] :]).split(self.groups[1:], 1)
        for q, keys, of in zip(others, self.windowed, maps, strict=True):
            out.append(F.scaled_dot_product_attention(q, *keys(of)))
        return self.proj(torch.cat([part.transpose(1, 2).flatten(2) for part in out], -1))


class FaViT(StagedBackbone):
    """FaViT (arXiv 2312.08614, section 3.4). Maps that it gives out are normalised.

    Args:
        in_chans: channels of the images.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        qkv_bias, sr_ratios: see `FactorizationAttention`, the latter for each stage.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (8, 6, 4, 4),
        qkv_bias: bool = True,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        def block(stage: int, rate: float) -> TokenBlock:
            dim = embed_dims[stage]
            attention = FactorizationAttention(dim, num_heads[stage], sr_ratios[stage], qkv_bias)
            return TokenBlock(dim, attention, ConvMlp(dim, int(dim * mlp_ratios[stage])), drop_path=rate)

        stem, stages = overlapping_pyramid(in_chans, embed_dims, depths, drop_path_rate, block)
        super().__init__(stem, stages, nn.Identity(), channels=embed_dims, strides=(4, 8, 16, 32), **base)
        initialise(self, convolutions="fan_out")


PUBLISHED = {
    "favit_b0": Published(3.4, 0.6, 71.5),
    "favit_b1": Published(13, 2.4, 79.4),
    "favit_b2": Published(24.9, 4.5, 82.3),  # they print 24 and 48 million
    "favit_b3": Published(48.7, 8.5, 83.4),
}
_CODE = "https://github.com/q2479036243/FaViT"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2312.08614", _CODE, "none", "stem.proj", crop_pct=0.875) for name in PUBLISHED}
)


def _favit(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(FaViT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def favit_b0(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FaViT-B0."""
    return _favit("favit_b0", pretrained, {"embed_dims": (32, 64, 128, 256)}, kwargs)


@register_model
def favit_b1(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FaViT-B1."""
    return _favit("favit_b1", pretrained, {}, kwargs)


@register_model
def favit_b2(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FaViT-B2."""
    return _favit("favit_b2", pretrained, {"depths": (2, 3, 18, 3)}, kwargs)


@register_model
def favit_b3(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FaViT-B3."""
    return _favit("favit_b3", pretrained, {"embed_dims": (96, 192, 384, 768), "depths": (2, 3, 14, 3)}, kwargs)
