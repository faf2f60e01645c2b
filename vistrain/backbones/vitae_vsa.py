"""ViTAEv2 with varied-size window attention: convolutions beside attention in every cell, dilated ones before it.

VSA: Learning Varied-Size Window Attention in Vision Transformers, arXiv 2204.08446; ViTAEv2, arXiv 2202.10108. Authors'
code: ViTAE-Transformer/ViTAE-VSA, no licence (Image-Classification/vitaev2_vsa; Object-Detection/mmdet/models/
backbones has the dense form, `dense=True` here): nothing of it is here, it is written from papers and a description.
The attention is in `attention/varied_size_window.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.varied_size_window import VariedSizeWindowAttention
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    dense_key_map,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap

# Authors' names -> ours. The first stage's reduction is the stem here.
AUTHORS = KeyMap(
    name="ViTAEv2-VSA",
    marker=r"^layers\.0\.RC\.",
    rules=(
        (r"^layers\.0\.RC\.", "stem."),
        (r"^layers\.([123])\.RC\.", r"stages.\1.downsample."),
        (r"^layers\.(\d)\.NC\.", r"stages.\1.blocks."),
        (r"\.PCM\.", ".pcm."),
        (r"\.PRM\.convs\.(\d)\.0\.", r".prm.\1."),
        (r"\.sampling_(offsets|scales)\.2\.", r".sampling_\1."),
    ),
    drop=(r"\.relative_position_index$", r"\.(base_)?coords$"),  # constants
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, ())
DILATIONS = ((1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2))


def _convolutions(widths: Sequence[int], strides: Sequence[int], groups: int) -> nn.Sequential:
    """3x3 convolutions through these widths, batch norm and SiLU between them: `[B, C, H, W]` -> `[B, C', h, w]`."""
    layers: list[nn.Module] = []
    for before, after, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1, groups=groups), nn.BatchNorm2d(after), nn.SiLU()]
    return nn.Sequential(*layers[:-2])


class Cell(nn.Module):
    """What both kinds of cells have: attention on tokens with positions, convolutions beside it, an MLP.

    Args:
        dim, out: channels of what attention sees, and of the output.
        num_heads, window_size: of the attention.
        mlp_ratio: hidden channels of the MLP by channels.
        pcm: the convolutions beside attention, on what came in.
        cpe: whether positions are encoded, by a 7x7 convolution of each channel, before attention.
        dense: see `VariedSizeWindowAttention`.
        eps: of the layer norms.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        num_heads: int,
        pcm: nn.Module,
        mlp_ratio: float = 4.0,
        window_size: int = 7,
        cpe: bool = True,
        dense: bool = False,
        eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pcm = pcm
        self.pos = nn.Conv2d(dim, dim, 7, padding=3, groups=dim) if cpe else None
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(out, eps)
        self.attn = VariedSizeWindowAttention(dim, num_heads, out, window_size, dense=dense)
        self.mlp = Mlp(out, int(out * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def mix(self, x: Tensor) -> Tensor:
        """Attention: `[B, C, H, W]` -> `[B, C', H, W]`."""
        size = (x.shape[2], x.shape[3])
        x = x if self.pos is None else x + self.pos(x)
        return self.attn(self.norm1(x.flatten(2).mT), size).mT.unflatten(2, size)

    def perceive(self, x: Tensor) -> Tensor:
        """Adds what the MLP makes of normalised cells: `[B, C', H, W]` -> `[B, C', H, W]`."""
        return x + self.drop_path(self.mlp(self.norm2(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class NormalCell(Cell):
    """A cell that keeps its map's size (2202.10108, figure 2).

    Args:
        dim: channels.
        num_heads: of the attention.
        groups: of the convolutions.
        mlp_ratio: hidden channels of MLP and convolutions by channels.
        base: see `Cell`.
    """

    sets_itself = ("out", "pcm")

    def __init__(self, dim: int, num_heads: int, groups: int, mlp_ratio: float = 4.0, **base: Any) -> None:
        pcm = _convolutions((dim, int(dim * mlp_ratio), dim, dim), (1, 1, 1), groups)
        super().__init__(dim, dim, num_heads, pcm=pcm, mlp_ratio=mlp_ratio, **base)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.perceive(x + self.drop_path(self.mix(x)) + self.drop_path(self.pcm(x)))


class ReductionCell(Cell):
    """A cell that makes tokens of its map, by dilated convolutions side by side (2202.10108, figure 2).

    Args:
        in_chans: channels of the input.
        embed_dim: channels of each of the dilated convolutions.
        token_dim: channels of the output.
        num_heads: of the attention.
        ratio: 4 or 2, cells by cells that become a token; maps get zeros at the bottom and right until it divides them.
        dilations: of the convolutions.
        groups: of the convolutions beside attention.
        wide_pcm: these are twice as wide as the output.
        base: see `Cell`.
    """

    sets_itself = ("dim", "out", "pcm")

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        token_dim: int,
        num_heads: int,
        ratio: int,
        dilations: Sequence[int],
        groups: int = 1,
        wide_pcm: bool = False,
        **base: Any,
    ) -> None:
        hidden = 2 * token_dim if wide_pcm else embed_dim
        pcm = _convolutions((in_chans, hidden, hidden, token_dim), (2, 2 if ratio == 4 else 1, 1), groups)
        super().__init__(embed_dim * len(dilations), token_dim, num_heads, pcm=pcm, **{"mlp_ratio": 1.0, **base})
        self.ratio = ratio
        kernel = 7 if ratio == 4 else 3
        self.prm = nn.ModuleList(
            nn.Conv2d(in_chans, embed_dim, kernel, ratio, math.ceil(((kernel - 1) * d + 1 - ratio) / 2), dilation=d)
            for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', ceil(H / ratio), ceil(W / ratio)]`."""
        x = F.pad(x, (0, -x.shape[3] % self.ratio, 0, -x.shape[2] % self.ratio))
        tokens = torch.cat([F.gelu(conv(x)) for conv in self.prm], 1)
        return self.perceive(self.mix(tokens) + self.drop_path(self.pcm(x)))


class ViTAEv2VSA(StagedBackbone):
    """ViTAEv2 with VSA (arXiv 2204.08446, section 4).

    Args:
        in_chans: channels of the images.
        embed_dims: channels of each dilated convolution, for each stage.
        token_dims: channels of each stage.
        NC_depth: normal cells of each stage.
        NC_heads, RC_heads: heads of normal cells and of reduction cells, for each stage.
        NC_group, RC_group: groups of the convolutions beside attention, likewise.
        mlp_ratio: hidden channels of normal cells by channels.
        window_size: side of the windows of queries.
        wide_pcm: see `ReductionCell`.
        cpe, dense: see `Cell`.
        drop_path_rate: of the last cell; it grows evenly from 0 at the first normal one.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 64, 128, 256),
        token_dims: Sequence[int] = (64, 128, 256, 512),
        NC_depth: Sequence[int] = (2, 2, 8, 2),
        NC_heads: Sequence[int] = (2, 4, 8, 16),
        RC_heads: Sequence[int] = (2, 2, 4, 8),
        NC_group: Sequence[int] = (1, 32, 64, 128),
        RC_group: Sequence[int] = (1, 16, 32, 64),
        mlp_ratio: float = 4.0,
        window_size: int = 7,
        wide_pcm: bool = False,
        cpe: bool = True,
        dense: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        common: dict[str, Any] = {"window_size": window_size, "cpe": cpe, "dense": dense}
        reductions = [
            ReductionCell(
                token_dims[i - 1] if i else in_chans,
                embed_dims[i],
                token_dims[i],
                RC_heads[i],
                2 if i else 4,
                DILATIONS[i],
                RC_group[i],
                wide_pcm,
                **common,
            )
            for i in range(4)
        ]
        stages = []
        for i, rates in enumerate(drop_path_rates(NC_depth, drop_path_rate)):
            shape = (token_dims[i], NC_heads[i], NC_group[i], mlp_ratio)
            cells = [NormalCell(*shape, drop_path=rate, eps=1e-6, **common) for rate in rates]
            stages.append(Stage(reductions[i] if i else nn.Identity(), cells, channels_last=False))
        super().__init__(reductions[0], stages, nn.Identity(), channels=token_dims, strides=(4, 8, 16, 32), **base)
        initialise(self)


_WIDE: dict[str, Any] = {"wide_pcm": True}
PUBLISHED = {
    "vitaev2_vsa_small": Published(19.8, None, 82.7),
    "vitaev2_vsa_wide_small": Published(20.3),
    "vitaev2_vsa_48m": Published(51.1, None, 83.9),
}
_CODE = "https://github.com/ViTAE-Transformer/ViTAE-VSA"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2204.08446", _CODE, "none", first_conv="stem.prm.0") for name in PUBLISHED}
)


def _vitae(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(ViTAEv2VSA, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def vitaev2_vsa_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """ViTAEv2-S with VSA."""
    return _vitae("vitaev2_vsa_small", pretrained, {}, kwargs)


@register_model
def vitaev2_vsa_wide_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """ViTAEv2-S with VSA and wider convolutions."""
    return _vitae("vitaev2_vsa_wide_small", pretrained, {**_WIDE, "RC_heads": (2, 4, 8, 16)}, kwargs)


@register_model
def vitaev2_vsa_48m(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """ViTAEv2-48M with VSA."""
    heads = (3, 6, 12, 24)
    variant = {"embed_dims": (96, 96, 192, 384), "token_dims": (96, 192, 384, 768), "NC_depth": (2, 2, 11, 2)}
    return _vitae("vitaev2_vsa_48m", pretrained, {**variant, **_WIDE, "NC_heads": heads, "RC_heads": heads}, kwargs)
