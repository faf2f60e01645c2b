"""NAT and DiNAT: transformers of neighbourhood attention, and of its dilated form.

Neighborhood Attention Transformer, arXiv 2204.07143; Dilated Neighborhood Attention Transformer, arXiv 2209.15001.
Authors' code: SHI-Labs/Neighborhood-Attention-Transformer, MIT (classification/nat.py, dinat.py; segmentation/nat.py
gives out maps through a norm for each, which `Backbone(output_norm_eps=1e-5)` has here). The operator is in
`attention/neighborhood.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import Mlp
from timm.models import generate_default_cfgs
from torch import nn

from vistrain.attention.neighborhood import NeighborhoodAttention
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    TokenBlock,
    build_variant,
    converter,
    default_cfg,
    dense_key_map,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d

# Authors' names -> ours. Downsampling stands before a stage here, and in their codes after the one before.
AUTHORS = KeyMap(
    name="NAT",
    marker=r"^patch_embed\.",
    rules=(
        (r"^patch_embed\.", "stem."),
        *((rf"^(levels|layers)\.{i}\.downsample\.", f"stages.{i + 1}.downsample.") for i in range(3)),
        (r"^(levels|layers)\.", "stages."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [f"norm{i}" for i in range(4)])


class NAT(StagedBackbone):
    """NAT, and with dilations DiNAT: overlapping convolutions make tokens and downsample (2204.07143, figure 5).

    Args:
        in_chans: channels of the images.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths: blocks of each stage.
        num_heads: of each stage.
        kernel_size: tokens in a neighbourhood along an axis. Maps may be smaller; see `NeighborhoodAttention`.
        dilations: of each block of each stage; None is 1 everywhere.
        mlp_ratio: hidden channels of the MLPs by channels.
        qkv_bias, qk_scale: see `NeighborhoodAttention`.
        layer_scale: see `TokenBlock`.
        strides, rpb: of generalised neighbourhood attention, see `NeighborhoodAttention`; the former for each stage.
        attention_core: auto, tiles or triton, which compute the same; auto is tiles (docs/gpu.md).
        proj_drop_rate, attn_drop_rate: dropout after linear layers and the stem, and of attention weights.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 18, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        layer_scale: float | None = None,
        strides: Sequence[int] = (1, 1, 1, 1),
        rpb: bool = True,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attention_core: str = "auto",
        **base: Any,
    ) -> None:
        dims = [embed_dim * 2**i for i in range(len(depths))]
        attention: dict[str, Any] = {"kernel_size": kernel_size, "qkv_bias": qkv_bias, "qk_scale": qk_scale, "rpb": rpb}
        attention |= {"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate, "core": attention_core}
        shape = (dims, depths, num_heads, dilations, drop_path_rate, attention, strides, mlp_ratio, layer_scale)
        proj = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim // 2, 3, 2, 1), nn.Conv2d(embed_dim // 2, embed_dim, 3, 2, 1)
        )
        norm = LayerNorm2d(embed_dim, eps=1e-5)
        super().__init__(
            nn.Sequential(OrderedDict(proj=proj, norm=norm, drop=nn.Dropout(proj_drop_rate))),
            nat_stages(_downsampling, *shape),
            LayerNorm2d(dims[-1], eps=1e-5),
            channels=dims,
            strides=[4 * 2**i for i in range(len(depths))],
            **base,
        )
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """Tables of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}


def nat_stages(
    downsampling: Callable[[int], nn.Module],
    dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    dilations: Sequence[Sequence[int]] | None,
    drop_path_rate: float,
    attention: dict[str, Any],
    strides: Sequence[int],
    mlp_ratio: float,
    layer_scale: float | None = None,
) -> list[Stage]:
    """Stages of neighbourhood attention and MLPs (2204.07143, figure 4).

    Args:
        downsampling: `[B, C, H, W]` -> `[B, 2C, H', W']` for a given C; before each stage but the first.
        dims, depths, num_heads: channels, blocks and heads of each stage.
        dilations: of each block of each stage; None is 1 everywhere.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        attention: arguments of `NeighborhoodAttention` that all have in common.
        strides: of the attention of each stage.
        mlp_ratio, layer_scale: see `NAT`.
    """
    stages = []
    for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
        dim, steps = dims[i], dilations[i] if dilations is not None else (1,) * depths[i]
        blocks = [
            TokenBlock(
                dim,
                NeighborhoodAttention(dim, num_heads[i], dilation=step, stride=strides[i], **attention),
                Mlp(dim, int(dim * mlp_ratio), drop=attention["proj_drop"]),
                layer_scale=layer_scale,
                eps=1e-5,
                drop_path=rate,
            )
            for step, rate in zip(steps, rates, strict=True)
        ]
        stages.append(Stage(downsampling(dims[i - 1]) if i else nn.Identity(), blocks))
    return stages


def _downsampling(dim: int) -> nn.Module:
    """`[B, C, H, W]` -> `[B, 2C, ceil(H / 2), ceil(W / 2)]`."""
    reduction = nn.Conv2d(dim, 2 * dim, 3, 2, 1, bias=False)
    return nn.Sequential(OrderedDict(reduction=reduction, norm=LayerNorm2d(2 * dim, eps=1e-5)))


def alternate(depths: Sequence[int], largest: Sequence[int]) -> list[list[int]]:
    """Dilations of every second block, up from the second: `[1, 8, 1]` for a stage of 3 and a largest of 8."""
    return [[step if i % 2 else 1 for i in range(depth)] for depth, step in zip(depths, largest, strict=True)]


_PICKED = "the products that pick biases of positions are counted here"
PUBLISHED = {
    "nat_mini": Published(20, 2.7, 81.8),
    "nat_tiny": Published(28, 4.3, 83.2),
    "nat_small": Published(51, 7.8, 83.7),
    "nat_base": Published(90, 13.7, 84.3),
    "dinat_mini": Published(20, 2.7, 81.8),
    "dinat_tiny": Published(28, 4.3, 82.7),
    "dinat_small": Published(51, 7.8, 83.8),
    "dinat_base": Published(90, 13.7, 84.4),
    "dinat_large": Published(200, 30.6, 86.6),  # trained on ImageNet-22k first, as the next
    "dinat_large_384": Published(200, 89.7, 87.4, size=384),
    "dinat_large_384_11x11": Published(
        201, 92.4, 87.5, size=384, why=_PICKED
    ),  # they print 200, without the larger tables
}
_CODE = "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer"
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg(
            "2209.15001" if name.startswith("di") else "2204.07143",
            _CODE,
            "mit",
            first_conv="stem.proj.0",
            size=row.size,
            crop_pct=1.0 if row.size == 384 else 0.875,
        )
        for name, row in PUBLISHED.items()
    }
)

_MINI: dict[str, Any] = {"embed_dim": 64, "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0, "depths": (3, 4, 6, 5)}
_TINY: dict[str, Any] = {**_MINI, "depths": (3, 4, 18, 5)}
_SMALL: dict[str, Any] = {**_TINY, "embed_dim": 96, "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0}
_BASE: dict[str, Any] = {**_SMALL, "embed_dim": 128, "num_heads": (4, 8, 16, 32)}
_LARGE: dict[str, Any] = {**_SMALL, "embed_dim": 192, "num_heads": (6, 12, 24, 48)}
_SCALED = {"layer_scale": 1e-5}
# Dilations at which a neighbourhood of 7 spans the whole map, for images of 224 and of 384 pixels.
AT_224, AT_384 = (8, 4, 2, 1), (13, 6, 3, 1)


def _nat(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(NAT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


def _dinat(
    name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any], largest: Sequence[int] = AT_224
) -> StagedBackbone:
    dilations = alternate(kwargs.get("depths", variant["depths"]), largest)
    return _nat(name, pretrained, {"dilations": dilations, **variant}, kwargs)


@register_model
def nat_mini(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """NAT-Mini."""
    return _nat("nat_mini", pretrained, _MINI, kwargs)


@register_model
def nat_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """NAT-Tiny."""
    return _nat("nat_tiny", pretrained, _TINY, kwargs)


@register_model
def nat_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """NAT-Small."""
    return _nat("nat_small", pretrained, _SMALL | _SCALED, kwargs)


@register_model
def nat_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """NAT-Base."""
    return _nat("nat_base", pretrained, _BASE | _SCALED, kwargs)


@register_model
def dinat_mini(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT-Mini."""
    return _dinat("dinat_mini", pretrained, _MINI, kwargs)


@register_model
def dinat_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT-Tiny."""
    return _dinat("dinat_tiny", pretrained, _TINY, kwargs)


@register_model
def dinat_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT-Small, which unlike NAT-Small has no layer scale."""
    return _dinat("dinat_small", pretrained, _SMALL, kwargs)


@register_model
def dinat_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT-Base."""
    return _dinat("dinat_base", pretrained, _BASE | _SCALED, kwargs)


@register_model
def dinat_large(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT-Large."""
    return _dinat("dinat_large", pretrained, _LARGE, kwargs)


@register_model
def dinat_large_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT-Large for images of 384 pixels: larger dilations."""
    return _dinat("dinat_large_384", pretrained, _LARGE, kwargs, AT_384)


@register_model
def dinat_large_384_11x11(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT-Large for images of 384 pixels: larger neighbourhoods."""
    return _dinat("dinat_large_384_11x11", pretrained, {**_LARGE, "kernel_size": 11}, kwargs)
