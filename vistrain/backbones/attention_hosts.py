"""Host networks: a plain transformer and a pyramid whose attention is any operator of `vistrain/attention/`.

The plain one is a Vision Transformer without a class token (arXiv 2010.11929; authors' code: google-research/
vision_transformer, Apache-2.0), the pyramid has the overlapping patches and widths of PVTv2 (arXiv 2106.13797; authors'
code: whai362/PVT, Apache-2.0) and conditional positions (arXiv 2102.10882; authors' code: Meituan-AutoML/Twins,
Apache-2.0). Neither claims a published number: hosts are for holding operators against each other on equal terms.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator, attend
from vistrain.attention.choice import Choice, ChosenOperator, choose
from vistrain.backbones.overlapping import overlapping_patches
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d

checkpoint_filter_fn = converter(KeyMap(name="attention host", marker=r"^(?!)", rules=()))


class HostBlock(nn.Module):
    """An attention operator and an MLP, each on normalised tokens and added to what came in.

    Args:
        dim: channels.
        attn: the operator.
        mlp_ratio: hidden channels of the MLP by channels.
        proj_drop: dropout after linear layers of the MLP.
        drop_path: probability that a branch is left out of a sample in training.
        eps: of the norms.
    """

    def __init__(
        self,
        dim: int,
        attn: AttentionOperator,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *S, C]` -> `[B, *S, C]`, S of as many axes as the operator takes; maps are padded, and kept in float32,
        where it needs that.

        Raises:
            DataError: the operator takes no such map, naming those that it takes.
        """
        size = tuple(x.shape[1:-1])
        x = x + self.drop_path(attend(self.attn, self.norm1(x).flatten(1, -2), size).unflatten(1, size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def host_stages(
    downsamples: Sequence[nn.Module],
    operators: Sequence[ChosenOperator],
    grids: Sequence[tuple[int, int]],
    dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    mlp_ratios: Sequence[float],
    rates: tuple[float, float],
) -> list[Stage]:
    """Stages of `HostBlock`s.

    Args:
        downsamples: before each stage.
        operators: of each stage.
        grids: (H, W) of each stage's map, at the size that the network is built for.
        dims, depths, num_heads, mlp_ratios: channels, blocks, heads and `HostBlock`'s ratio of each stage.
        rates: dropout of linear layers; drop path of the last block, which grows evenly from 0 at the first.
    """
    stages, layer = [], 0
    for i, drop_paths in enumerate(drop_path_rates(depths, rates[1])):
        blocks = []
        for drop_path in drop_paths:
            attn = operators[i].build(dims[i], num_heads[i], grids[i], layer, sum(depths))
            block = HostBlock(dims[i], attn, mlp_ratios[i], rates[0], drop_path)
            initialise(block.mlp)  # operators keep the start that they give themselves
            blocks.append(block)
            layer += 1
        stages.append(Stage(downsamples[i], blocks))
    return stages


class AttentionViT(StagedBackbone):
    """A plain transformer of one stride in four stages, so that each quarter may have an operator of its own.

    Args:
        in_chans: channels of the images.
        attention: the operator of all stages, or of each; see `attention.choice.choose`.
        attention_args: arguments of every operator.
        img_size: side or (H, W) of the images that it is built for; positions are interpolated for others.
        patch_size: side of a patch, the stride of all maps.
        embed_dim, num_heads: channels and heads of all blocks.
        depths: blocks of each stage.
        mlp_ratio: of all blocks, see `HostBlock`.
        proj_drop_rate: dropout of linear layers of the MLPs.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.

    Raises:
        ConfigError: no such operator or argument.
    """

    def __init__(
        self,
        in_chans: int = 3,
        attention: Choice | Sequence[Choice] = "softmax",
        attention_args: Mapping[str, Any] | None = None,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        num_heads: int = 3,
        depths: Sequence[int] = (3, 3, 3, 3),
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        count, (height, width) = len(depths), _sides(img_size)
        grid = (height // patch_size, width // patch_size)
        stages = host_stages(
            [nn.Identity() for _ in depths],
            choose(attention, attention_args, count),
            [grid] * count,
            [embed_dim] * count,
            depths,
            [num_heads] * count,
            [mlp_ratio] * count,
            (proj_drop_rate, drop_path_rate),
        )
        super().__init__(
            PatchStem(in_chans, embed_dim, patch_size, grid),
            stages,
            LayerNorm2d(embed_dim, eps=1e-6),
            channels=[embed_dim] * count,
            strides=[patch_size] * count,
            **base,
        )
        self.size_divisor = self.smallest_side = patch_size

    def no_weight_decay(self) -> set[str]:
        """Tables of positions."""
        return _tables(self)


class PatchStem(nn.Module):
    """Patches as tokens, with a learnt position each, which is interpolated for maps of other sizes.

    Args:
        in_chans: channels of the images.
        dim: channels of the tokens.
        patch_size: side of a patch.
        grid: (H, W) of the map that positions are learnt for.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *grid), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_chans, H, W]` -> `[B, dim, H // patch_size, W // patch_size]`."""
        x = self.proj(x)
        positions: Tensor = self.pos_embed
        if positions.shape[2:] != x.shape[2:]:
            positions = F.interpolate(positions, x.shape[2:], mode="bicubic")
        return x + positions.to(x.dtype)


class AttentionPyramid(StagedBackbone):
    """A pyramid of strides 4 to 32 whose stages may each have an operator of their own.

    Args:
        in_chans: channels of the images.
        attention, attention_args: see `AttentionViT`.
        img_size: side or (H, W) of the images that operators which know their grid are built for.
        embed_dims, depths, num_heads, mlp_ratios: of each stage.
        proj_drop_rate: dropout of linear layers of the MLPs.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.

    Raises:
        ConfigError: no such operator or argument.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        attention: Choice | Sequence[Choice] = "softmax",
        attention_args: Mapping[str, Any] | None = None,
        img_size: int | Sequence[int] = 224,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        strides = [4 * 2**i for i in range(len(depths))]
        steps = itertools.pairwise(embed_dims)
        entrances = [nn.Identity(), *(overlapping_patches(a, b, 2) for a, b in steps)]
        stages = host_stages(
            [
                nn.Sequential(OrderedDict(patches=entrance, positions=ConditionalPositions(dim)))
                for entrance, dim in zip(entrances, embed_dims, strict=True)
            ],
            choose(attention, attention_args, len(depths)),
            [(-(-height // stride), -(-width // stride)) for stride in strides for height, width in [_sides(img_size)]],
            embed_dims,
            depths,
            num_heads,
            mlp_ratios,
            (proj_drop_rate, drop_path_rate),
        )
        stem, norm = overlapping_patches(in_chans, embed_dims[0], 4), LayerNorm2d(embed_dims[-1], eps=1e-6)
        super().__init__(stem, stages, norm, channels=embed_dims, strides=strides, **base)

    def no_weight_decay(self) -> set[str]:
        """Tables of positions."""
        return _tables(self)


class ConditionalPositions(nn.Module):
    """Positions made of each cell's neighbours: a depthwise convolution, whose zeros beyond the map tell where it ends.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x + self.conv(x)


def _tables(model: nn.Module) -> set[str]:
    tables = ("pos_embed", "relative_position_bias_table", "rpb")
    return {name for name, _ in model.named_parameters() if name.endswith(tables)}


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# Nothing is published of these; what they are counted with is softmax attention
PUBLISHED = {
    "attention_vit_micro": Published(0.96, 0.056, size=64),
    "attention_vit_tiny": Published(5.7, 1.25),
    "attention_vit_small": Published(22.0, 4.57),
    "attention_pyramid_micro": Published(0.70, 0.018, size=64),
    "attention_pyramid_tiny": Published(12.1, 4.94),
    "attention_pyramid_small": Published(20.9, 8.50),
}
_ORIGINS = {
    "vit": ("2010.11929", "https://github.com/google-research/vision_transformer"),
    "pyramid": ("2106.13797", "https://github.com/whai362/PVT"),
}
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg(*_ORIGINS[name.split("_")[1]], "apache-2.0", first_conv="stem.proj", size=row.size)
        for name, row in PUBLISHED.items()
    }
)

_MICRO: dict[str, Any] = {"depths": (1, 1, 1, 1)}


def _build(cls: type[StagedBackbone], name: str, pretrained: bool, arguments: dict[str, Any]) -> StagedBackbone:
    return build_variant(cls, name, pretrained, checkpoint_filter_fn, arguments)


@register_model
def attention_vit_micro(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """A plain host for images of 64 pixels, small enough for a processor: 8x8 patches, 4 blocks."""
    size = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "num_heads": 4}
    return _build(AttentionViT, "attention_vit_micro", pretrained, {**_MICRO, **size, **kwargs})


@register_model
def attention_vit_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """A plain host of DeiT-Ti's size."""
    return _build(AttentionViT, "attention_vit_tiny", pretrained, kwargs)


@register_model
def attention_vit_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """A plain host of DeiT-S's size."""
    size = {"embed_dim": 384, "num_heads": 6}
    return _build(AttentionViT, "attention_vit_small", pretrained, {**size, **kwargs})


@register_model
def attention_pyramid_micro(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """A pyramid for images of 64 pixels, small enough for a processor."""
    size = {"img_size": 64, "embed_dims": (32, 64, 96, 128), "num_heads": (2, 4, 4, 4), "mlp_ratios": (4, 4, 4, 4)}
    return _build(AttentionPyramid, "attention_pyramid_micro", pretrained, {**_MICRO, **size, **kwargs})


@register_model
def attention_pyramid_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """A pyramid of PVTv2-B1's widths and depths."""
    return _build(AttentionPyramid, "attention_pyramid_tiny", pretrained, kwargs)


@register_model
def attention_pyramid_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """A pyramid of PVTv2-B2's widths and depths."""
    return _build(AttentionPyramid, "attention_pyramid_small", pretrained, {"depths": (3, 4, 6, 3), **kwargs})
