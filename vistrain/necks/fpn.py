"""Feature Pyramid Networks for Object Detection (Lin et al. 2017, arXiv 1612.03144).

As in OpenMMLab's detectors and segmenters (github.com/open-mmlab/mmdetection, Apache-2.0, mmdet/models/necks/fpn.py),
with their names of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.conv import ConvModule


class FPN(nn.Module):
    """Lateral 1x1 convolutions, coarse levels added to finer ones by nearest enlargement, a 3x3 convolution on each.

    Args:
        channels, strides: of the backbone's maps, fine to coarse.
        embed_dim: width of the levels.
        num_levels: levels to give out; None: one for each map.
        extra: where further levels come from: `pool` (every second cell of the last), or 3x3 convolutions of stride 2,
            the first on the backbone's coarsest map (`on_input`: RetinaNet), its lateral map (`on_lateral`) or the
            coarsest level (`on_output`: ATSS, GFL).
        relu_before_extra: ReLU before each extra convolution but the first.

    Attributes:
        channels, strides: of the levels given out, fine to coarse.

    Raises:
        ConfigError: fewer levels than maps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int = 256,
        num_levels: int | None = None,
        extra: Literal["pool", "on_input", "on_lateral", "on_output"] = "pool",
        relu_before_extra: bool = False,
    ) -> None:
        super().__init__()
        num_levels = len(channels) if num_levels is None else num_levels
        if num_levels < len(channels):
            raise ConfigError("num_levels", f"{num_levels} levels of {len(channels)} maps", "ask for fewer strides")
        self.extra, self.relu_before_extra, self.num_extra = extra, relu_before_extra, num_levels - len(channels)
        self.lateral_convs = nn.ModuleList(_conv(c, embed_dim, 1, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(_conv(embed_dim, embed_dim, 3, 1) for _ in channels)
        if extra != "pool":
            for i in range(self.num_extra):
                width = channels[-1] if i == 0 and extra == "on_input" else embed_dim
                self.fpn_convs.append(_conv(width, embed_dim, 3, 2))
        self.channels = (embed_dim,) * num_levels
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(self.num_extra)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps `[B, C_i, H_i, W_i]` -> levels `[B, embed_dim, H_l, W_l]`, fine to coarse."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], laterals[i - 1].shape[2:])
        convs = list(self.fpn_convs)
        levels = [conv(x) for conv, x in zip(convs, laterals, strict=False)]
        if self.extra == "pool":
            for _ in range(self.num_extra):
                levels.append(levels[-1][..., ::2, ::2])
            return levels
        x = {"on_input": maps[-1], "on_lateral": laterals[-1], "on_output": levels[-1]}[self.extra]
        for i, conv in enumerate(convs[len(laterals) :]):
            x = conv(torch.relu(x) if i and self.relu_before_extra else x)
            levels.append(x)
        return levels


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> ConvModule:
    module = ConvModule(in_channels, out_channels, kernel_size, stride=stride, norm=None, act=False)
    nn.init.xavier_uniform_(module.conv.weight)
    return module
