"""U-Net, the yardstick: plain and residual, in two and three axes (Ronneberger et al. 2015, arXiv 1505.04597; Cicek et
al. 2016, arXiv 1606.06650), built as nnU-Net builds it (Isensee et al. 2021, arXiv 1904.08128; residual encoder: 2024,
arXiv 2404.09556): strided convolutions, instance norm, leaky ReLU, transposed convolutions, logits at every level.

Written from the papers; no code, and so no licence, is behind it, and no names of others' checkpoints are followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.segmentation.volume import SliceNetwork, VolumeNetwork

CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
Sides = tuple[int, ...]


class ConvNorm(nn.Sequential):
    """Convolution, instance norm and, unless it is left out, leaky ReLU.

    Args:
        in_channels, out_channels: N and M.
        kernel: sides, odd; their number is that of the axes.
        stride: along each axis.
        activated: whether the ReLU is there.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sides, stride: Sides, activated: bool = True
    ) -> None:
        axes, padding = len(kernel), tuple(side // 2 for side in kernel)
        super().__init__(
            CONVOLUTION[axes](in_channels, out_channels, kernel, stride, padding),
            NORM[axes](out_channels, affine=True),
            *([nn.LeakyReLU(0.01, inplace=True)] if activated else []),
        )


class ResidualUnit(nn.Module):
    """Two convolutions and what they are added to, averaged over what the stride skips, and projected where channels
    differ.

    Args:
        in_channels, out_channels, kernel, stride: see `ConvNorm`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sides, stride: Sides) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.convs = nn.Sequential(
            ConvNorm(in_channels, out_channels, kernel, stride),
            ConvNorm(out_channels, out_channels, kernel, ones, activated=False),
        )
        self.stride = stride
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else ConvNorm(in_channels, out_channels, ones, ones, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, *S]` -> `[B, M, *S / stride]`."""
        skipped = x
        if max(self.stride) > 1:
            pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
            skipped = pool(x, self.stride, self.stride)
        return F.leaky_relu(self.convs(x) + self.shortcut(skipped), 0.01)


class UNetBody(nn.Module):
    """Encoder, decoder and the logits of every level.

    Args:
        in_channels, out_channels: C and K.
        widths: channels of each level, fine to coarse.
        strides: of each level along each axis; those of the first are 1 as a rule.
        kernels: sides of the convolutions of each level.
        depths: convolutions (or residual units) of each level of the encoder.
        residual: residual units in the encoder.
        deep: give logits of all levels but the coarsest while training.

    Raises:
        ConfigError: there are not as many numbers as levels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        strides: Sequence[Sides],
        kernels: Sequence[Sides],
        depths: Sequence[int],
        residual: bool,
        deep: bool,
    ) -> None:
        super().__init__()
        counts = {"strides": len(strides), "kernels": len(kernels), "depths": len(depths)}
        if wrong := {name: n for name, n in counts.items() if n != len(widths)}:
            name, number = next(iter(wrong.items()))
            problem = f"{number} of them, and {len(widths)} widths"
            raise ConfigError(f"model.network.{name}", problem, "write one for each level")
        self.deep = deep
        self.encoder, self.up, self.decoder, self.heads = (nn.ModuleList() for _ in range(4))
        channels, axes = in_channels, len(kernels[0])
        ones = (1,) * axes
        for width, stride, kernel, depth in zip(widths, strides, kernels, depths, strict=True):
            unit = ResidualUnit if residual else ConvNorm
            first = unit(channels, width, kernel, tuple(stride))
            self.encoder.append(nn.Sequential(first, *(unit(width, width, kernel, ones) for _ in range(depth - 1))))
            channels = width
        for level in reversed(range(len(widths) - 1)):
            below, width, stride = widths[level + 1], widths[level], tuple(strides[level + 1])
            self.up.append(TRANSPOSED[axes](below, width, stride, stride))
            kernel = kernels[level]
            self.decoder.append(
                nn.Sequential(ConvNorm(2 * width, width, kernel, ones), ConvNorm(width, width, kernel, ones))
            )
            self.heads.append(CONVOLUTION[axes](width, out_channels, 1))
        for module in self.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images `[B, C, *S]` -> logits `[B, K, *S]`; see `VolumeNetwork`."""
        maps = []
        for stage in self.encoder:
            images = stage(images)
            maps.append(images)
        x, found = maps.pop(), []
        for level, (up, stage, head) in enumerate(zip(self.up, self.decoder, self.heads, strict=True)):
            x = stage(torch.cat((up(x), maps.pop()), 1))
            last = level == len(self.up) - 1
            if last or (self.deep and self.training):
                found.append(head(x))
        return found[0] if len(found) == 1 else found[::-1]


def _divisors(strides: Sequence[Sides]) -> tuple[int, ...]:
    found = [1] * len(strides[0])
    for stride in strides:
        found = [a * b for a, b in zip(found, stride, strict=True)]
    return tuple(found)


class UNet3d(VolumeNetwork):
    """A U-Net for volumes.

    Args:
        in_channels, out_channels: C and K.
        widths: channels of each level, fine to coarse.
        strides: depth, height and width of each level's first step; None: 1, and 2 along all axes for the others.
        kernels: depth, height and width of the convolutions of each level; None: 3 along all axes.
        depths: convolutions (residual units) of each level of the encoder; None: 2, or as residual 1, 3, 4, 6, 6, ...
        residual: residual units in the encoder.
        deep: logits of all levels but the coarsest are trained.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (32, 64, 128, 256, 320),
        strides: tuple[tuple[int, int, int], ...] | None = None,
        kernels: tuple[tuple[int, int, int], ...] | None = None,
        depths: tuple[int, ...] | None = None,
        residual: bool = False,
        deep: bool = True,
    ) -> None:
        super().__init__()
        levels = len(widths)
        steps = tuple(strides or ((1, 1, 1), *(((2, 2, 2),) * (levels - 1))))
        sides = tuple(kernels or ((3, 3, 3),) * levels)
        self.body = UNetBody(
            in_channels, out_channels, widths, steps, sides, depths or _depths(levels, residual), residual, deep
        )
        d, h, w = _divisors(steps)
        self.divisors, self.class_layers = (d, h, w), (r"^body\.heads\.",)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """See `VolumeNetwork`."""
        return self.body(images)


class UNet2d(SliceNetwork):
    """A U-Net for slices.

    Args:
        in_channels, out_channels, widths, depths, residual, deep: see `UNet3d`.
        strides, kernels: as there, of height and width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        strides: tuple[tuple[int, int], ...] | None = None,
        kernels: tuple[tuple[int, int], ...] | None = None,
        depths: tuple[int, ...] | None = None,
        residual: bool = False,
        deep: bool = True,
    ) -> None:
        super().__init__()
        levels = len(widths)
        steps = tuple(strides or ((1, 1), *(((2, 2),) * (levels - 1))))
        sides = tuple(kernels or ((3, 3),) * levels)
        self.body = UNetBody(
            in_channels, out_channels, widths, steps, sides, depths or _depths(levels, residual), residual, deep
        )
        h, w = _divisors(steps)
        self.divisors, self.class_layers = (h, w), (r"^body\.heads\.",)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """See `SliceNetwork`."""
        return self.body(images)


def _depths(levels: int, residual: bool) -> tuple[int, ...]:
    """nnU-Net's: two convolutions a level, or residual units of its encoder."""
    return (1, 3, 4, *((6,) * levels))[:levels] if residual else (2,) * levels
