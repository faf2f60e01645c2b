"""Semantic FPN: Panoptic Feature Pyramid Networks (Kirillov et al. 2019, arXiv 1901.02446), section 3.1.

As in mmsegmentation 0.11 (github.com/open-mmlab/mmsegmentation, Apache-2.0, decode_heads/fpn_head.py); it stands on
the neck `necks.FPN`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vistrain.layers.conv import ConvModule, resize
from vistrain.segmentation.head import DecodeHead


class _Double(nn.Module):
    """`[B, C, H, W]` -> `[B, C, 2H, 2W]`, bilinear."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]), self.align_corners)


class FPNHead(DecodeHead):
    """Each level is convolved and doubled until it has the finest size; the sum is classified.

    Args:
        embed_dim: width (128 in the papers).
        base: see `DecodeHead`.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, embed_dim: int = 128, **base: Any
    ) -> None:
        super().__init__(channels, strides, num_classes, embed_dim=embed_dim, **base)
        self.scale_heads = nn.ModuleList()
        for width, stride in zip(channels, strides, strict=True):
            layers: list[nn.Module] = []
            for i in range(max(1, round(math.log2(stride / strides[0])))):
                layers.append(ConvModule(embed_dim if i else width, embed_dim, 3))
                if stride != strides[0]:
                    layers.append(_Double(self.align_corners))
            self.scale_heads.append(nn.Sequential(*layers))

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        out: Tensor = self.scale_heads[0](maps[0])
        for head, x in zip(list(self.scale_heads)[1:], maps[1:], strict=True):
            out = out + resize(head(x), out.shape[2:], self.align_corners)  # an odd side doubles to one more
        return out
