"""DAFormer's head (Hoyer et al. 2022, arXiv 2111.14887), section 3.2; the host of HRDA, MIC and MFM.

Authors' code: github.com/lhoyer/MIC, commit 2f932a9, Apache-2.0 (seg/mmseg/models/decode_heads/daformer_head.py); names
of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.conv import ConvModule, DepthwiseSeparableConv, resize
from vistrain.segmentation.head import DecodeHead
from vistrain.segmentation.projections import LevelProjection


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: convolutions of several dilations beside each other, then one of all of them.

    Args:
        in_channels, out_channels: of the map, before and after.
        dilations: of the branches; dilation 1 is a 1x1 convolution.
        separable: depthwise-separable convolutions in the dilated branches.
        pool: a branch with the mean over the image, the first.
        align_corners: of that branch's enlargement.

    Raises:
        ConfigError: there are no dilations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        separable: bool,
        pool: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ConfigError("dilations", f"{list(dilations)}", "whole numbers above 0, one at least")
        self.align_corners = align_corners
        self.image_pool = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(in_channels, out_channels)) if pool else None
        )
        dilated = DepthwiseSeparableConv if separable else ConvModule
        self.aspp_modules = nn.ModuleList(
            ConvModule(in_channels, out_channels) if d == 1 else dilated(in_channels, out_channels, 3, dilation=d)
            for d in dilations
        )
        self.bottleneck = ConvModule((len(dilations) + pool) * out_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H, W]`."""
        pooled = [] if self.image_pool is None else [resize(self.image_pool(x), x.shape[2:], self.align_corners)]
        return self.bottleneck(torch.cat([*pooled, *(branch(x) for branch in self.aspp_modules)], 1))


class DAFormerHead(DecodeHead):
    """A linear layer per level, all levels enlarged to the finest and fused by dilated convolutions.

    Args:
        embed_dim: width of the levels and after the fusion (256).
        dilations, separable, pool: of the fusion, see `ASPP`.
        base: see `DecodeHead`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        embed_dim: int = 256,
        dilations: tuple[int, ...] = (1, 6, 12, 18),
        separable: bool = True,
        pool: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(channels, strides, num_classes, embed_dim=embed_dim, **base)
        self.embed_layers = nn.ModuleList(LevelProjection(c, embed_dim) for c in channels)
        width = len(channels) * embed_dim
        self.fuse_layer = ASPP(width, embed_dim, dilations, separable, pool, self.align_corners)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        levels = [
            resize(embed(x), maps[0].shape[2:], self.align_corners)
            for embed, x in zip(self.embed_layers, maps, strict=True)
        ]
        return self.fuse_layer(torch.cat(levels, 1))
