"""UPerNet: Unified Perceptual Parsing for Scene Understanding (Xiao et al. 2018, arXiv 1807.10221), section 3.

As in mmsegmentation 0.11 (github.com/open-mmlab/mmsegmentation, Apache-2.0, decode_heads/uper_head.py), which every
backbone paper uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.layers.conv import ConvModule, GridMean, resize
from vistrain.segmentation.head import DecodeHead
from vistrain.segmentation.projections import convolved_enlarged


class UPerHead(DecodeHead):
    """Pyramid pooling on the coarsest map, a feature pyramid, and all levels classified together.

    Args:
        pool_scales: sides of the grids that the coarsest map is averaged to.
        embed_dim: width of everything (512 in the papers).
        base: see `DecodeHead`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        embed_dim: int = 512,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
        **base: Any,
    ) -> None:
        super().__init__(channels, strides, num_classes, embed_dim=embed_dim, **base)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(GridMean(scale), ConvModule(channels[-1], embed_dim)) for scale in pool_scales
        )
        self.bottleneck = ConvModule(channels[-1] + len(pool_scales) * embed_dim, embed_dim, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(c, embed_dim) for c in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(embed_dim, embed_dim, 3) for _ in channels[:-1])
        self.fpn_bottleneck = ConvModule(len(channels) * embed_dim, embed_dim, 3)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        coarsest = maps[-1]
        pooled = [resize(branch(coarsest), coarsest.shape[2:], self.align_corners) for branch in self.psp_modules]
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.bottleneck(torch.cat((coarsest, *pooled), 1)))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1].shape[2:], self.align_corners)
        outs = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        outs.append(levels[-1])
        # The convolution of all levels side by side, one share after the other: most of this head's work.
        parts = self.fpn_bottleneck.conv.weight.split(outs[0].shape[1], 1)
        fused = F.conv2d(outs[0], parts[0], padding=1)
        for x, weight in zip(outs[1:], parts[1:], strict=True):
            fused = fused + convolved_enlarged(x, weight, fused.shape[2:], self.align_corners)
        return self.fpn_bottleneck.finish(fused)
