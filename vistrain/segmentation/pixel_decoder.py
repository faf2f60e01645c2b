"""Mask2Former's pixel decoder: deformable attention over the coarse levels, then a feature pyramid (arXiv 2112.01527).

Authors' code: github.com/facebookresearch/Mask2Former, commit 9b0651c, MIT (modeling/pixel_decoder/msdeformattn.py).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vistrain.contract import GuardedContract
from vistrain.detr import flatten_pyramid
from vistrain.detr.deformable import DeformableEncoder, DeformableEncoderLayer
from vistrain.errors import ConfigError
from vistrain.layers.conv import resize
from vistrain.layers.deformable import MSDeformAttn
from vistrain.layers.position import SinePositionEncoding

FFN_DIM = 1024  # of the encoder, whatever the decoder's: fixed in the authors' code
LEVELS = 3


@dataclass(frozen=True)
class PixelFeatures:
    """What a query decoder reads.

    Attributes:
        mask_features: `[B, C', H, W]` of the finest map's size: a query's mask is its product with an embedding.
        levels: the three coarsest `[B, C, H_l, W_l]`, coarse to fine: what queries attend to.
        extras: further outputs by name.
    """

    mask_features: Tensor
    levels: Sequence[Tensor]
    extras: dict[str, Tensor]


class PixelDecoder(GuardedContract, nn.Module, abc.ABC):
    """Base of what stands between a backbone and a query decoder; built with `channels` and `strides`.

    Attributes:
        embed_dim: width of the levels.
        mask_dim: width of the mask features.
        complete: run every layer, where a decoder would choose how many: what it costs at the most.
    """

    embed_dim: int
    mask_dim: int
    complete: bool = False

    @abc.abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:
        """Maps `[B, C_i, H_i, W_i]`, fine to coarse -> what a decoder reads."""


class NormConv(nn.Conv2d):
    """A convolution without bias and group norm, ReLU if wanted, under detectron2's names.

    Args:
        in_channels, out_channels, kernel_size: of the convolution, which keeps the size.
        act: ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, act: bool) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm, self.act = nn.GroupNorm(32, out_channels), act
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H, W]`."""
        x = self.norm(super().forward(x))
        return x.relu() if self.act else x


class DeformablePixelDecoder(PixelDecoder):
    """Deformable self-attention over the three coarsest maps; finer maps join in a feature pyramid.

    Padding is never hidden, as in the authors' code.

    Args:
        channels, strides: of the backbone's maps, fine to coarse; at least three.
        embed_dim, mask_dim: widths of the levels and of the mask features.
        num_layers, num_heads, num_points, dropout, ffn_dim: of the encoder.

    Raises:
        ConfigError: fewer than three maps, or `embed_dim` is no multiple of 32.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int = 256,
        mask_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        dropout: float = 0.0,
        ffn_dim: int = FFN_DIM,
    ) -> None:
        super().__init__()
        if len(channels) < LEVELS:
            raise ConfigError("model.backbone.strides", f"{len(channels)} maps", "give [4, 8, 16, 32]")
        if embed_dim % 32:
            raise ConfigError("embed_dim", f"{embed_dim} is no multiple of the 32 groups of its norms")
        self.embed_dim, self.mask_dim = embed_dim, mask_dim
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, embed_dim, 1), nn.GroupNorm(32, embed_dim)) for c in reversed(channels[-LEVELS:])
        )
        self.position = SinePositionEncoding(embed_dim // 2, offset=0.0)
        self.encoder = DeformableEncoder(
            lambda: DeformableEncoderLayer(embed_dim, num_heads, LEVELS, num_points, ffn_dim, dropout), num_layers
        )
        self.level_embed = nn.Parameter(torch.empty(LEVELS, embed_dim))
        self.num_finer = len(channels) - LEVELS
        for i, width in enumerate(channels[: self.num_finer], 1):
            self.add_module(f"adapter_{i}", NormConv(width, embed_dim, 1, act=False))
            self.add_module(f"layer_{i}", NormConv(embed_dim, embed_dim, 3, act=True))
        self.mask_features = nn.Conv2d(embed_dim, mask_dim, 1)
        self._initialize()

    def _initialize(self) -> None:
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.encoder.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        for name, parameter in self.input_proj.named_parameters():
            if name.endswith(".0.weight"):
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(".0.bias"):
                nn.init.zeros_(parameter)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:
        """See `PixelDecoder`."""
        with torch.autocast(maps[0].device.type, enabled=False):  # as published: half precision moves the samples
            maps = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in maps]
            levels = [proj(x) for proj, x in zip(self.input_proj, reversed(maps[-LEVELS:]), strict=True)]
            pyramid = flatten_pyramid(levels, None, self.position, self.level_embed)
            tokens, extras = self.encode(pyramid.tokens, pyramid.position, pyramid.shapes)
            cut = tokens.split([h * w for h, w in pyramid.shapes], 1)
            levels = [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(cut, pyramid.shapes, strict=True)]
            finest = levels[-1]
            for i in range(self.num_finer, 0, -1):
                lateral = self.get_submodule(f"adapter_{i}")(maps[i - 1])
                finest = self.get_submodule(f"layer_{i}")(lateral + resize(finest, lateral.shape[2:]))
            return PixelFeatures(self.mask_features(finest), levels, extras)

    def encode(
        self, tokens: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`[B, N, C]` tokens, coarse to fine -> the same, encoded, and further outputs by name."""
        return self.encoder(tokens, position, shapes, None, None), {}
