"""The neck of deformable detectors: one width for all levels, and the strides that the backbone lacks.

Deformable-DETR (arXiv 2010.04159). Authors' code: github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/
deformable_detr.py); its form with named levels is detrex's, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.norms import LayerNorm2d


class ConvNorm(nn.Module):
    """Convolution with bias, then group normalisation: `[B, C, H, W]` -> `[B, C', H', W']`."""

    def __init__(self, channels: int, embed_dim: int, kernel_size: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, embed_dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(num_groups, embed_dim)
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:  # there always is one; its declared type is optional
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, embed_dim, ceil(H / stride), ceil(W / stride)]`."""
        norm = self.norm
        # Not norm(x): the module refuses groups of a single value, which is what a tiny image has on a coarse level.
        return torch.group_norm(self.conv(x), norm.num_groups, norm.weight, norm.bias, norm.eps)


class ChannelMapper(nn.Module):
    """Maps backbone maps to one width; extra levels are 3x3 stride-2 convolutions (Deformable-DETR, section 4.1).

    The first extra level is made from the backbone's last map, each further one from the extra level before it. With
    fewer levels than maps, the coarsest maps are used.

    Args:
        channels, strides: of the backbone's maps, fine to coarse.
        num_levels: levels to give out.
        embed_dim: their width.
        num_groups: of the group normalisation.
        input_norm: layer normalisation over the channels of each of the backbone's maps, which timm's pyramids give
            out as they are. The authors' dense Swin has these norms (in its backbone).

    Attributes:
        channels, strides: of the levels given out, fine to coarse.

    Raises:
        ConfigError: `num_groups` does not divide `embed_dim`, or `num_levels` is below 1.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_levels: int = 4,
        embed_dim: int = 256,
        num_groups: int = 32,
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        if embed_dim % num_groups:
            raise ConfigError(
                "model.embed_dim", f"{embed_dim} is not divisible by the neck's {num_groups} groups", "set num_groups"
            )
        if num_levels < 1:
            raise ConfigError("model.num_levels", f"{num_levels} levels", "at least 1")
        self.num_maps = min(num_levels, len(channels))
        channels, strides = channels[-self.num_maps :], strides[-self.num_maps :]
        extra = num_levels - self.num_maps
        self.norms = nn.ModuleList(LayerNorm2d(c, eps=1e-5) for c in channels if input_norm)
        self.convs = nn.ModuleList(ConvNorm(c, embed_dim, 1, 1, num_groups) for c in channels)
        self.extra_convs = nn.ModuleList(
            ConvNorm(channels[-1] if i == 0 else embed_dim, embed_dim, 3, 2, num_groups) for i in range(extra)
        )
        self.channels = (embed_dim,) * num_levels
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps `[B, C_i, H_i, W_i]` -> `num_levels` maps `[B, embed_dim, H_l, W_l]`, fine to coarse."""
        maps = maps[-self.num_maps :]
        if self.norms:
            maps = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        levels = [conv(x) for conv, x in zip(self.convs, maps, strict=True)]
        x = maps[-1]
        for conv in self.extra_convs:
            x = conv(x)
            levels.append(x)
        return levels
