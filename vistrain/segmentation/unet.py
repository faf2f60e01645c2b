"""U-Net, the yardstick: plain and residual, in two and three axes (Ronneberger et al. 2015, arXiv 1505.04597; Cicek et
al. 2016, arXiv 1606.06650), built as nnU-Net builds it (Isensee et al. 2021, arXiv 1904.08128; residual encoder: 2024,
arXiv 2404.09556): strided convolutions, instance norm, leaky ReLU, transposed convolutions, logits at every level.

Written from the papers. Authors' code: github.com/MIC-DKFZ/dynamic-network-architectures 0.4.4, Apache-2.0, whose names
load (`PlainConvUNet`, `ResidualEncoderUNet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.segmentation.attention_block import AttentionBlock
from vistrain.segmentation.unet_keys import nnunet_names
from vistrain.segmentation.volume import SliceNetwork, VolumeNetwork
from vistrain.structures import Factory


class ChannelsLastConv3d(nn.Conv3d):
    """A 3-D convolution that is computed with channels last on a CPU, where that is faster at equal values.

    Weights are kept as they are, so that files and other devices do not notice.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[B, N, D, H, W]` -> `[B, M, D', H', W']`; the format of the weights decides that of the computation."""
        weight = self.weight
        if input.device.type == "cpu":
            weight = weight.contiguous(memory_format=torch.channels_last_3d)
        return self._conv_forward(input, weight, self.bias)


CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: ChannelsLastConv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
Sides = tuple[int, ...]
INPUTS = (r"^body\.stem\.0\.weight$", r"^body\.encoder\.0\.0\.0\.weight$")  # of the residual one, and the plain


class ConvNorm(nn.Sequential):
    """Convolution, instance norm and, unless it is left out, leaky ReLU.

    Args:
        in_channels, out_channels: N and M.
        kernel: sides, odd; their number is that of the axes.
        stride: along each axis.
        activated: whether the ReLU is there.
        bias: of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sides,
        stride: Sides,
        activated: bool = True,
        bias: bool = True,
    ) -> None:
        axes, padding = len(kernel), tuple(side // 2 for side in kernel)
        super().__init__(
            CONVOLUTION[axes](in_channels, out_channels, kernel, stride, padding, bias=bias),
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
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, ones, ones, activated=False, bias=False)

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
        decoder_depth: convolutions of each level of the decoder.
        residual: residual units in the encoder, after a convolution.
        deep: give logits of all levels but the coarsest while training.
        attention: unbuilt, see `AttentionBlock`; stands at the end of some levels of the encoder.
        attended: these levels, from 0, the finest; the coarsest if there are none.
        patch: sides of what the network is built for, for operators that must know them.

    Raises:
        ConfigError: there are not as many numbers as levels, or attention is wanted on a level that is not there.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        strides: Sequence[Sides],
        kernels: Sequence[Sides],
        depths: Sequence[int],
        decoder_depth: int,
        residual: bool,
        deep: bool,
        attention: Factory[AttentionBlock] | None,
        attended: Sequence[int],
        patch: Sides,
    ) -> None:
        super().__init__()
        if not len(widths):
            raise ConfigError("model.network.widths", "[] - whole numbers of 1 or more", "the channels of each level")
        counts = {"strides": len(strides), "kernels": len(kernels), "depths": len(depths)}
        if wrong := {name: n for name, n in counts.items() if n != len(widths)}:
            name, number = next(iter(wrong.items()))
            problem = f"{number} of them, and {len(widths)} widths"
            raise ConfigError(f"model.network.{name}", problem, "write one for each level")
        levels: dict[str, Sequence[Any]] = {"widths": widths, "strides": strides, "kernels": kernels, "depths": depths}
        for name, sizes in levels.items():
            if np.min(sizes) < 1:
                problem = f"{_listed(sizes)} - whole numbers of 1 or more, for each level"
                raise ConfigError(f"model.network.{name}", problem, "1 keeps a level as large as the one above it")
        self.deep = deep
        self.encoder, self.up, self.decoder, self.heads = (nn.ModuleList() for _ in range(4))
        channels, axes = in_channels, len(kernels[0])
        ones = (1,) * axes
        self.stem: nn.Module = nn.Identity()
        if residual:
            self.stem, channels = ConvNorm(in_channels, widths[0], kernels[0], ones), widths[0]
        for width, stride, kernel, depth in zip(widths, strides, kernels, depths, strict=True):
            unit = ResidualUnit if residual else ConvNorm
            first = unit(channels, width, kernel, tuple(stride))
            self.encoder.append(nn.Sequential(first, *(unit(width, width, kernel, ones) for _ in range(depth - 1))))
            channels = width
        for level in reversed(range(len(widths) - 1)):
            below, width, stride = widths[level + 1], widths[level], tuple(strides[level + 1])
            self.up.append(TRANSPOSED[axes](below, width, stride, stride))
            kernel = kernels[level]
            inputs = (2 * width, *((width,) * (decoder_depth - 1)))
            self.decoder.append(nn.Sequential(*(ConvNorm(n, width, kernel, ones) for n in inputs)))
            self.heads.append(CONVOLUTION[axes](width, out_channels, 1))
        for module in self.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if attention is not None:  # operators keep the start that they give themselves
            self._attend(attention, attended or (len(widths) - 1,), widths, strides, patch)

    def _attend(
        self,
        attention: Factory[AttentionBlock],
        attended: Sequence[int],
        widths: Sequence[int],
        strides: Sequence[Sides],
        patch: Sides,
    ) -> None:
        if not set(attended) <= set(range(len(widths))):
            problem = f"{list(attended)}, and there are {len(widths)} levels"
            raise ConfigError("model.network.attended", problem, f"levels are 0, the finest, to {len(widths) - 1}")
        for layer, level in enumerate(sorted(set(attended))):
            grid = tuple(max(1, side // by) for side, by in zip(patch, _divisors(strides[: level + 1]), strict=True))
            block = attention(dim=widths[level], grid=grid, layer=layer, layers=len(set(attended)))
            self.encoder[level] = nn.Sequential(*self.encoder[level].children(), block)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images `[B, C, *S]` -> logits `[B, K, *S]`; see `VolumeNetwork`."""
        images = self.stem(images)
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


def _listed(sizes: Sequence[Any]) -> list[Any]:
    return [list(size) if isinstance(size, Sequence) else size for size in sizes]


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
        decoder_depth: convolutions of each level of the decoder; None: 2, or as residual 1.
        residual: residual units in the encoder, after a convolution.
        deep: logits of all levels but the coarsest are trained.
        attention: a block at the end of some levels of the encoder; None: none.
        attended: these levels, from 0, the finest; empty: the coarsest.
        patch: sides of what the network is built for, for operators that must know them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (32, 64, 128, 256, 320),
        strides: tuple[tuple[int, int, int], ...] | None = None,
        kernels: tuple[tuple[int, int, int], ...] | None = None,
        depths: tuple[int, ...] | None = None,
        decoder_depth: int | None = None,
        residual: bool = False,
        deep: bool = True,
        attention: Factory[AttentionBlock] | None = None,
        attended: tuple[int, ...] = (),
        patch: tuple[int, int, int] = (128, 128, 128),
    ) -> None:
        super().__init__()
        levels = len(widths)
        steps = tuple(strides or ((1, 1, 1), *(((2, 2, 2),) * (levels - 1))))
        sides = tuple(kernels or ((3, 3, 3),) * levels)
        of_encoder, of_decoder = depths or _depths(levels, residual), decoder_depth or (1 if residual else 2)
        form = (of_encoder, of_decoder, residual, deep, attention, attended, patch)
        self.body = UNetBody(in_channels, out_channels, widths, steps, sides, *form)
        d, h, w = _divisors(steps)
        self.divisors, self.class_layers = (d, h, w), (r"^body\.heads\.",)
        self.key_maps, self.input_layers = (nnunet_names(steps),), INPUTS

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """See `VolumeNetwork`."""
        return self.body(images)


class UNet2d(SliceNetwork):
    """A U-Net for slices.

    Args:
        in_channels, out_channels, widths, depths, decoder_depth, residual, deep, attention, attended: see `UNet3d`.
        strides, kernels, patch: as there, of height and width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        strides: tuple[tuple[int, int], ...] | None = None,
        kernels: tuple[tuple[int, int], ...] | None = None,
        depths: tuple[int, ...] | None = None,
        decoder_depth: int | None = None,
        residual: bool = False,
        deep: bool = True,
        attention: Factory[AttentionBlock] | None = None,
        attended: tuple[int, ...] = (),
        patch: tuple[int, int] = (256, 256),
    ) -> None:
        super().__init__()
        levels = len(widths)
        steps = tuple(strides or ((1, 1), *(((2, 2),) * (levels - 1))))
        sides = tuple(kernels or ((3, 3),) * levels)
        of_encoder, of_decoder = depths or _depths(levels, residual), decoder_depth or (1 if residual else 2)
        form = (of_encoder, of_decoder, residual, deep, attention, attended, patch)
        self.body = UNetBody(in_channels, out_channels, widths, steps, sides, *form)
        h, w = _divisors(steps)
        self.divisors, self.class_layers = (h, w), (r"^body\.heads\.",)
        self.key_maps, self.input_layers = (nnunet_names(steps),), INPUTS

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """See `SliceNetwork`."""
        return self.body(images)


def _depths(levels: int, residual: bool) -> tuple[int, ...]:
    """nnU-Net's: two convolutions a level, or residual units of its encoder."""
    return (1, 3, 4, *((6,) * levels))[:levels] if residual else (2,) * levels
