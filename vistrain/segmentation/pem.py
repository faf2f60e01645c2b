"""PEM: Prototype-based Efficient MaskFormer for Image Segmentation (Cavagnero et al. 2024, arXiv 2402.19422).

Authors' code: github.com/NiccoloCavagnero/PEM, commit 2dfeb3d, no licence: written from the paper and a description of
its order of operations, with the names of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.errors import ConfigError
from vistrain.layers.conv import ConvModule
from vistrain.segmentation.mask_classifier import OFFICIAL, MaskClassifier
from vistrain.segmentation.pixel_decoder import PixelDecoder, PixelFeatures
from vistrain.segmentation.query_decoder import CrossAttentionLayer, QueryDecoder
from vistrain.structures import Factory, LabelSpace

LEVELS = 4


class ContextModulation(nn.Module):
    """Context-based self-modulation: channels are weighted by the mean over the image (section 3.4).

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers = (nn.Conv2d(dim, dim // 2, 1, bias=False), nn.BatchNorm2d(dim // 2), nn.ReLU())
        self.mlp = nn.Sequential(nn.Sequential(*layers, nn.Conv2d(dim // 2, dim, 1, bias=False)))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        # Two sigmoids, one upon the other: faithful to the authors' code. Weights are 0.5 to 0.73.
        return x + x * self.mlp(x.mean((2, 3), keepdim=True)).sigmoid().sigmoid()


class DeformableUpsampling(nn.Module):
    """A modulated deformable convolution, then a transposed one that doubles the size.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dcn_offset = nn.Conv2d(dim, 27, 3, padding=1)
        nn.init.zeros_(self.dcn_offset.weight)
        nn.init.zeros_(self.dcn_offset.bias)  # type: ignore[arg-type]
        self.dcn = nn.Conv2d(dim, dim, 3, padding=1, bias=False)  # its weights; the sampling is below
        nn.init.kaiming_normal_(self.dcn.weight, mode="fan_out", nonlinearity="relu")
        self.dcn_bn = nn.BatchNorm2d(dim)
        self.up_sample = nn.ConvTranspose2d(dim, dim, 4, 2, 1, bias=False)
        self.up_bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` -> what the convolution gave, and that twice as large."""
        offset, weight = self.dcn_offset(x).split((18, 9), 1)
        # The authors' code samples in half precision on a GPU; this is what it computes but for rounding.
        with torch.autocast(x.device.type, enabled=False):
            out = deform_conv2d(
                x.float(), offset.float(), self.dcn.weight.float(), padding=1, mask=weight.float().sigmoid()
            )
        out = self.dcn_bn(out.to(self.dcn_bn.weight.dtype)).relu()
        return out, self.up_bn(self.up_sample(out)).relu()


class PEMPixelDecoder(PixelDecoder):
    """Convolutional pixel decoder of four levels, each modulated by its context (section 3.4).

    Args:
        channels, strides: of the backbone's four maps, fine to coarse.
        embed_dim, mask_dim: widths of the levels and of the mask features.

    Raises:
        ConfigError: not four maps.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], embed_dim: int = 128, mask_dim: int = 256
    ) -> None:
        super().__init__()
        if len(channels) != LEVELS:
            raise ConfigError("model.backbone.strides", f"{len(channels)} maps", "PEM takes [4, 8, 16, 32]")
        self.embed_dim, self.mask_dim = embed_dim, mask_dim
        self.in_projections = nn.ModuleList(ConvModule(c, embed_dim) for c in channels)
        self.conv_avg = ConvModule(channels[-1], embed_dim)
        self.csm = nn.ModuleList(ContextModulation(embed_dim) for _ in channels)
        self.dcn = nn.ModuleList(DeformableUpsampling(embed_dim) for _ in channels[1:])
        self.out = ConvModule(embed_dim, mask_dim)

    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:
        """See `PixelDecoder`; sides of the coarsest map double exactly."""
        levels = []
        above = self.conv_avg(maps[-1].mean((2, 3), keepdim=True))
        for project, x, modulate, double in zip(
            list(self.in_projections)[:0:-1], list(maps)[:0:-1], self.csm, self.dcn, strict=False
        ):
            level, above = double(modulate(project(x)) + above)
            levels.append(level)
        finest = self.csm[-1](self.in_projections[0](maps[0])) + above
        return PixelFeatures(self.out(finest), levels, {})


class LocalProjection(nn.Module):
    """Batch norm, a 3x3 depthwise convolution and a linear layer: `[B, C, H, W]` -> tokens `[B, H * W, C]`.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_query_3x3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.bn, self.out = nn.BatchNorm2d(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, H * W, C]`."""
        return self.out(self.to_query_3x3(self.bn(x)).flatten(2).transpose(1, 2))


class PrototypeCrossAttention(CrossAttentionLayer):
    """Each head of a query picks the one pixel that is most like it, and mixes with it (section 3.3).

    Args:
        embed_dim, num_heads: C and heads, which share it.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.feature_proj = LocalProjection(embed_dim)
        self.query_proj = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim))
        self.proj, self.final = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.alpha = nn.Parameter(torch.ones(1, 1, embed_dim))

    def forward(
        self, queries: Tensor, query_position: Tensor, memory: Tensor, position: Tensor, mask: Tensor
    ) -> Tensor:
        """See `CrossAttentionLayer`."""
        pixels = memory + position.transpose(1, 2).unflatten(2, memory.shape[2:])
        features = F.normalize(self.feature_proj(pixels), dim=-1)
        keys = F.normalize(self.query_proj(queries + query_position), dim=-1)
        picked = self._prototypes(features, keys, mask)
        # Over the queries, not the channels: faithful to the authors' code.
        mixed = F.normalize(self.proj(picked * keys), dim=1) * self.alpha + picked
        return self.final(mixed) + queries

    def _prototypes(self, features: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """`[B, N, C]` pixels, `[B, Q, C]` queries and their masks -> `[B, Q, C]`, the pixels picked."""
        pixels, wanted = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (features, keys))
        hidden = mask.flatten(2) < 0  # [B, Q, N]
        # Only where every query's mask is empty, none is hidden; an empty one beside others picks the first pixel.
        hidden = hidden & ~hidden.all(2).all(1)[:, None, None]
        with torch.no_grad():
            similarity = (wanted @ pixels.mT).masked_fill(hidden[:, None], -torch.inf)
            index = similarity.argmax(-1)  # [B, heads, Q]
        picked = pixels.gather(2, index[..., None].expand(-1, -1, -1, pixels.shape[-1]))
        return picked.transpose(1, 2).flatten(2)


class PEMDecoder(QueryDecoder):
    """PEM's decoder: prototypes instead of attention.

    Args:
        base: see `QueryDecoder`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        mask_dim: int,
        num_layers: int = 6,
        pre_norm: bool = True,
        enforce_input_proj: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(
            in_channels,
            num_classes,
            mask_dim,
            num_layers=num_layers,
            pre_norm=pre_norm,
            enforce_input_proj=enforce_input_proj,
            **base,
        )

    def cross_attention(self) -> CrossAttentionLayer:
        """See `QueryDecoder`."""
        return PrototypeCrossAttention(self.embed_dim, self.num_heads)


class PEM(MaskClassifier):
    """PEM.

    Args:
        base: see `MaskClassifier`.
    """

    default_pixel_decoder = Factory(PEMPixelDecoder)
    default_decoder = Factory(PEMDecoder)
    key_maps = (
        replace(
            OFFICIAL,
            rules=(
                *OFFICIAL.rules,
                (r"(\.csm\.\d\.mlp\.0)\.mlp\.", r"\1."),
                # as the public files call them
                (r"(cross_attention_layers\.\d+)\.to_query\.", r"\1.feature_proj."),
                (r"(cross_attention_layers\.\d+)\.to_key\.", r"\1.query_proj."),
            ),
            exports=(*OFFICIAL.exports, (r"(\.csm\.\d\.mlp\.0)\.(?=\d)", (r"\1.mlp.",))),
        ),
    )

    def __init__(self, backbone: Backbone | DenseBackbone, labels: LabelSpace, **base: Any) -> None:
        super().__init__(backbone, labels, **base)
