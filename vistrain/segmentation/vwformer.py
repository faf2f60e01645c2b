"""VWFormer: Multi-Scale Representations by Varying Window Attention for Semantic Segmentation (Yan et al. 2024, arXiv
2404.16573).

Authors' code: github.com/yan-hao-tian/VW, commit 9bc1891, MIT (mmseg/models/decode_heads/vw_head.py); names of its
checkpoints.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.conv import ConvModule
from vistrain.segmentation.head import DecodeHead
from vistrain.segmentation.projections import LevelProjection, fused, merged, shares, total

RATIOS = (2, 4, 8)  # sides of the contexts, in windows (section 3.2)
WINDOWS = 8  # along each axis, whatever the size of the map
LOW_LEVEL = 48  # channels of the finest map


class VaryingWindowHead(DecodeHead):
    """What both heads share: windows of a map attend to contexts two, four and eight times as large around them.

    Args:
        embed_dim: width C, a multiple of 64.
        num_heads: of the attention.
        short_cut: add the map itself to what each attention found (ADE20K with ConvNeXt; not with Swin, nor on
            Cityscapes).
        base: see `DecodeHead`.

    Raises:
        ConfigError: not four maps of strides that double, or an `embed_dim` that is no multiple of 64.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        embed_dim: int = 512,
        num_heads: int = 1,
        short_cut: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(channels, strides, num_classes, embed_dim=embed_dim, **base)
        if len(channels) != 4:
            raise ConfigError("model.backbone.strides", f"{type(self).__name__} takes four maps", "use [4, 8, 16, 32]")
        if embed_dim % RATIOS[-1] ** 2:
            raise ConfigError("embed_dim", f"{embed_dim} is no multiple of {RATIOS[-1] ** 2}")
        self.embed_dim, self.num_heads, self.short_cut = embed_dim, num_heads, short_cut
        self.linear_fuse = ConvModule(3 * embed_dim, embed_dim)
        # Pre-scaling: a context of r x r windows is as many numbers as one window.
        self.ds = nn.ModuleList(ConvModule(embed_dim, embed_dim // r**2, r, padding=0) for r in RATIOS)
        self.short_path = ConvModule(embed_dim, embed_dim)
        self.low_level_fuse = ConvModule(embed_dim + LOW_LEVEL, embed_dim)

    @abc.abstractmethod
    def attend(self, x: Tensor, contexts: Sequence[Tensor]) -> list[Tensor]:
        """The map and each ratio's contexts `[B * windows, C, h, w]` -> what was found, `[B, C, H, W]` each."""

    def contexts(self, x: Tensor) -> list[Tensor]:
        """`[B, C, H, W]` -> for each ratio `[B * windows, C, h, w]`, h x w the size of one window.

        Raises:
            ConfigError: H or W cannot be cut into eight windows.
        """
        height, width = x.shape[2:]
        if height % WINDOWS or width % WINDOWS:
            raise ConfigError(
                "model.head", f"a map of {height}x{width} has no {WINDOWS}x{WINDOWS} windows",
                "bring images to multiples of 64 pixels (the authors resize them, `size_divisor: 64` pads them)",
            )  # fmt: skip
        found = []
        for ratio, conv in zip(RATIOS, self.ds, strict=True):
            low, high = ratio // 2 - 1, ratio // 2
            context = conv(F.pad(x, (low, high, low, high)))
            context = _copy_shift(context, ratio, width // WINDOWS, 3)
            context = _copy_shift(context, ratio, height // WINDOWS, 2)
            found.append(_windows(context, ratio, height // WINDOWS, width // WINDOWS))
        return found

    def low_level(self, x: Tensor, finest: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Adds the finest map, whose share of the convolution is `weight`, to what the contexts gave."""
        main = shares(self.low_level_fuse.conv.weight, (self.embed_dim, LOW_LEVEL))[0]
        return self.low_level_fuse.finish(fused((finest, x), (weight, main), bias))


class VWHead(VaryingWindowHead):
    """VWFormer's head for ADE20K.

    Args:
        base: see `VaryingWindowHead`.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, **base: Any) -> None:
        super().__init__(channels, strides, num_classes, **base)
        dim = self.embed_dim
        for level in (4, 3, 2):
            self.add_module(f"linear_c{level}", LevelProjection(channels[level - 1], dim))
        self.attn = nn.ModuleList(NonLocalAttention(dim, self.num_heads) for _ in RATIOS)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(dim, dim))
        self.cat = ConvModule((2 + len(RATIOS)) * dim, dim)
        self.linear_c1 = LevelProjection(channels[0], LOW_LEVEL)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        cut = shares(self.linear_fuse.conv.weight, [self.embed_dim] * 3)[::-1]  # theirs: coarse to fine
        levels = [self.get_submodule(f"linear_c{level}") for level in (2, 3, 4)]
        pairs = [merged(share, p) for share, p in zip(cut, levels, strict=True) if isinstance(p, LevelProjection)]
        weights, biases = zip(*pairs, strict=True)
        x = self.linear_fuse.finish(fused(maps[1:], weights, total(biases)))
        pooled = self.image_pool(x).expand_as(x)
        x = self.cat(torch.cat((self.short_path(x), pooled, *self.attend(x, self.contexts(x))), 1))
        share = shares(self.low_level_fuse.conv.weight, (self.embed_dim, LOW_LEVEL))[1]
        return self.low_level(x, maps[0], *merged(share, self.linear_c1))

    def attend(self, x: Tensor, contexts: Sequence[Tensor]) -> list[Tensor]:
        """See `VaryingWindowHead`."""
        found = [attn(x, context) for attn, context in zip(self.attn, contexts, strict=True)]
        return [out + x for out in found] if self.short_cut else found


class VWCityHead(VaryingWindowHead):
    """VWFormer's head for Cityscapes: convolutions with norms on the levels, nearest enlargement, torch's attention.

    Args:
        base: see `VaryingWindowHead`.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, **base: Any) -> None:
        super().__init__(channels, strides, num_classes, **base)
        dim = self.embed_dim
        self.linear_c4 = ConvModule(channels[3], dim)
        self.linear_c3 = ConvModule(channels[2], dim)
        self.linear_c2 = ConvModule(channels[1], dim)
        self.linear_c1 = ConvModule(channels[0], LOW_LEVEL)
        self.cat = ConvModule((1 + len(RATIOS)) * dim, dim)
        self.attn = nn.ModuleList(nn.MultiheadAttention(dim, self.num_heads, batch_first=True) for _ in RATIOS)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        cut = shares(self.linear_fuse.conv.weight, [self.embed_dim] * 3)[::-1]
        levels = (self.linear_c2(maps[1]), self.linear_c3(maps[2]), self.linear_c4(maps[3]))
        x = self.linear_fuse.finish(fused(levels, cut, nearest=True))
        x = self.cat(torch.cat((self.short_path(x), *self.attend(x, self.contexts(x))), 1))
        share = shares(self.low_level_fuse.conv.weight, (self.embed_dim, LOW_LEVEL))[1]
        return self.low_level(x, self.linear_c1(maps[0]), share, None)

    def attend(self, x: Tensor, contexts: Sequence[Tensor]) -> list[Tensor]:
        """See `VaryingWindowHead`."""
        query, found = _tokens(_windows(x, 1, x.shape[2] // WINDOWS, x.shape[3] // WINDOWS)), []
        for attn, context in zip(self.attn, contexts, strict=True):
            keys = _tokens(context)
            out = _merge(attn(query, keys, keys, need_weights=False)[0], x.shape)
            found.append(out + x if self.short_cut else out)
        return found


class NonLocalAttention(nn.Module):
    """Attention of windows to their contexts, with mmcv's names of a non-local block (arXiv 1711.07971).

    Args:
        dim: C.
        num_heads: heads; they share C.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.g = ConvModule(dim, dim, norm=None, act=False)
        self.theta = ConvModule(dim, dim, norm=None, act=False)
        self.phi = ConvModule(dim, dim, norm=None, act=False)
        self.conv_out = ConvModule(dim, dim, act=False)
        nn.init.zeros_(self.conv_out.get_parameter("bn.weight"))  # a new branch begins by finding nothing

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`[B, C, H, W]` and `[B * windows, C, h, w]` -> `[B, C, H, W]`."""
        query = _tokens(_windows(self.theta(x), 1, x.shape[2] // WINDOWS, x.shape[3] // WINDOWS))
        heads = [
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (query, _tokens(self.phi(context)), _tokens(self.g(context)))
        ]
        out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.conv_out(_merge(out, x.shape))


def _copy_shift(x: Tensor, ratio: int, side: int, axis: int) -> Tensor:
    """Copy-shift padding (section 3.3): each border is filled with a strip of the map itself, not mirrored."""
    length, near, far = x.shape[axis], (ratio + 1) * side // 2, ratio * side
    before = x.narrow(axis, near, far - near)
    after = x.narrow(axis, length - far, far - near)
    return torch.cat((before, x, after), axis)


def _windows(x: Tensor, ratio: int, height: int, width: int) -> Tensor:
    """Overlapping windows of `ratio` times (height, width), each folded to that size.

    Args:
        x: `[B, c, H, W]`.
        ratio: r.
        height, width: of a window, pixels.

    Returns:
        `[B * 64, r * r * c, height, width]`; channel `(i * r + j) * c + k` has the pixels (i, j) of all r x r cells.
    """
    cut = x.unfold(2, ratio * height, height).unfold(3, ratio * width, width)  # [B, c, rows, columns, r h, r w]
    cut = cut[:, :, :WINDOWS, :WINDOWS].unflatten(5, (width, ratio)).unflatten(4, (height, ratio))
    order = cut.permute(0, 2, 3, 5, 7, 1, 4, 6)  # [B, rows, columns, i, j, c, h, w]
    return order.reshape(-1, ratio * ratio * x.shape[1], height, width)


def _tokens(x: Tensor) -> Tensor:
    """`[B, C, h, w]` -> `[B, h * w, C]`."""
    return x.flatten(2).transpose(1, 2)


def _merge(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Tokens of windows `[B * 64, h * w, C]` -> the map `[B, C, H, W]` of that shape."""
    batch, channels, height, width = shape
    grid = tokens.view(batch, WINDOWS, WINDOWS, height // WINDOWS, width // WINDOWS, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(shape)
