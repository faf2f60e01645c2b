"""A U-Net's decoder on the maps of any backbone, plain or with what a paper puts into it.

Written from the papers; no code, and so no licence, is behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.conv import ConvModule, resize
from vistrain.segmentation.daformer import ASPP
from vistrain.segmentation.head import DecodeHead


class ChannelGate(nn.Module):
    """Squeeze and excitation: each channel times a weight in 0..1 that the means of all channels decide (Hu et al.
    2018, arXiv 1709.01507).

    Args:
        channels: C.
        reduction: of the channels between.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x * self.weights(x).sigmoid()


class DecoderStep(nn.Module):
    """Two 3x3 convolutions of the enlarged map beside the finer one.

    Args:
        in_channels: of both together.
        out_channels: C.
        residual: a 1x1 convolution of what comes in is added before the last ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, residual: bool) -> None:
        super().__init__()
        self.first = ConvModule(in_channels, out_channels, 3)
        self.second = ConvModule(out_channels, out_channels, 3, act=not residual)
        self.shortcut = ConvModule(in_channels, out_channels, act=False) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, H, W]` -> `[B, C, H, W]`."""
        found = self.second(self.first(x))
        return found if self.shortcut is None else (found + self.shortcut(x)).relu()


class UNetHead(DecodeHead):
    """From the coarsest map to the finest: enlarge twofold, put the backbone's map beside it, convolve.

    With everything at its default it is a plain U-Net's decoder (Ronneberger et al. 2015, arXiv 1505.04597). Residual
    steps, channel attention and ASPP are named, and not described, by the abstract of arXiv 2501.11196, which is all of
    that paper that could be read: where and how they stand here is our interpretation.

    Args:
        widths: channels of each step, coarse to fine; one for each map but the coarsest, and one more for `whole`.
        whole: a last step at the image's size, twice that of the finest map, where no map of the backbone stands.
        residual: residual steps. An interpretation of "ResUNet".
        reduction: of channel attention on the backbone's maps before they are put beside, see `ChannelGate`; None:
            without. An interpretation of "channel attention".
        dilations: of atrous spatial pyramid pooling, with a branch of the mean, on the coarsest map; empty: without. An
            interpretation of "ASPP".
        pyramid_dim: channels that it gives. An interpretation, too.
        base: see `DecodeHead`; the last of `widths` is what is classified.

    Raises:
        ConfigError: not as many widths as steps.
    """

    sets_itself = ("embed_dim",)

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        widths: tuple[int, ...] = (256, 128, 64, 32),
        whole: bool = False,
        residual: bool = False,
        reduction: int | None = None,
        dilations: tuple[int, ...] = (),
        pyramid_dim: int = 256,
        **base: Any,
    ) -> None:
        steps = len(channels) - 1 + whole
        if len(widths) != steps or not widths:
            problem = f"{len(widths)} widths for {steps} steps between maps of strides {list(strides)}"
            raise ConfigError("model.head.widths", problem, "write one for each step, coarse to fine")
        super().__init__(channels, strides, num_classes, embed_dim=widths[-1], **base)
        self.pyramid: nn.Module = nn.Identity()
        below = channels[-1]
        if dilations:
            self.pyramid = ASPP(below, pyramid_dim, dilations, separable=False, pool=True, align_corners=False)
            below = pyramid_dim
        skips = [*channels[-2::-1], *([0] * whole)]
        self.gates = nn.ModuleList(ChannelGate(c, reduction) if reduction else nn.Identity() for c in channels[-2::-1])
        self.steps = nn.ModuleList(
            DecoderStep(a + skip, b, residual)
            for (a, b), skip in zip(itertools.pairwise((below, *widths)), skips, strict=True)
        )
        self.whole = whole

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        x = self.pyramid(maps[-1])
        for step, gate, skip in zip(self.steps, self.gates, maps[-2::-1], strict=False):
            x = step(torch.cat((resize(x, skip.shape[2:], self.align_corners), gate(skip)), 1))
        if self.whole:
            sides = (2 * x.shape[2], 2 * x.shape[3])
            x = self.steps[-1](resize(x, sides, self.align_corners))
        return x
