"""RAVLT: rank-augmented linear attention on fine maps, softmax attention on coarse ones.

Breaking the Low-Rank Dilemma of Linear Attention, arXiv 2411.07635. Authors' code: qhfan/RALA, no licence
(classfication/RALA.py; their dense code has a norm for each map, which `Backbone(output_norm_eps=1e-6)` has here):
nothing of it is here, this is written from a description. The attention is in `attention/rank_augmented.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from vistrain.attention.rank_augmented import GatedRotaryAttention, RankAugmentedAttention
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
from vistrain.layers.mlp import ResidualConvMlp

# Authors' names -> ours. Downsampling stands before a stage here, and in their code after the one before.
AUTHORS = KeyMap(
    name="RAVLT",
    marker=r"^layers\.0\.",
    rules=(
        (r"^patch_embed\.proj\.", "stem."),
        *((rf"^layers\.{i}\.downsample\.", f"stages.{i + 1}.downsample.") for i in range(3)),
        (r"^layers\.", "stages."),
        (r"\.gamma_([12])$", r".gamma\1"),
        (r"\.norm([12])\.norm\.", r".norm\1."),
        (r"^proj\.", "norm.proj."),
        (r"^norm\.(?!proj\.)", "norm.norm."),
    ),
    drop=(r"\.RoPE\.angle$",),  # constants
)
_convert = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [rf"extra_norms\.{i}" for i in range(4)])


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under our names; factors of branches are `[C]` here and `[1, C, 1, 1]` there."""
    return {k: v.flatten() if ".gamma" in k else v for k, v in _convert(weights, model).items()}


class RAVLTBlock(nn.Module):
    """Position by convolution, attention and an MLP, each added to what came in.

    Args:
        dim: channels.
        attn: `[B, H * W, C]` and (H, W) -> `[B, H * W, C]`.
        mlp_ratio: hidden channels of the MLP by channels.
        layer_scale: initial factor of attention and MLP, learnt for each channel; None for no factors.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp_ratio: float, layer_scale: float | None = None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.pos = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.ffn = ResidualConvMlp(dim, int(dim * mlp_ratio))
        scales = (None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale))) for _ in "12")
        self.gamma1, self.gamma2 = scales
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        size = (x.shape[1], x.shape[2])
        x = x + self.pos(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        attended = self.attn(self.norm1(x).flatten(1, 2), size).unflatten(1, size)
        x = x + self.drop_path(attended if self.gamma1 is None else self.gamma1 * attended)
        changed = self.ffn(self.norm2(x))
        return x + self.drop_path(changed if self.gamma2 is None else self.gamma2 * changed)


class RAVLT(StagedBackbone):
    """RAVLT (arXiv 2411.07635, section 3.4).

    Args:
        in_chans: channels of the images.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        projection: channels of what the classifier sees.
        layerscales: whether branches have factors that are learnt, for each stage.
        layer_init_values: start of these.
        linear: whether attention is linear, for each stage.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (3.5, 3.5, 3.5, 3.5),
        projection: int = 1024,
        layerscales: Sequence[bool] = (True, True, True, True),
        layer_init_values: Sequence[float] = (1, 1, 1e-6, 1e-6),
        linear: Sequence[bool] = (True, True, False, False),
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            dim, kind = embed_dims[i], RankAugmentedAttention if linear[i] else GatedRotaryAttention
            scale = layer_init_values[i] if layerscales[i] else None
            blocks = [RAVLTBlock(dim, kind(dim, num_heads[i]), mlp_ratios[i], scale, rate) for rate in rates]
            reduction = nn.Conv2d(embed_dims[i - 1], dim, 3, 2, 1)
            down = nn.Sequential(OrderedDict(reduction=reduction, norm=nn.BatchNorm2d(dim)))
            stages.append(Stage(down if i else nn.Identity(), blocks))
        half, dim = embed_dims[0] // 2, embed_dims[0]
        widths = ((in_chans, half, 2), (half, half, 1), (half, half, 1), (half, dim, 2))
        layers = [x for a, b, s in widths for x in (nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.GELU())]
        last = OrderedDict(
            proj=nn.Conv2d(embed_dims[-1], projection, 1), norm=nn.BatchNorm2d(projection), act=nn.SiLU()
        )
        super().__init__(
            nn.Sequential(*layers[:-1]),
            stages,
            nn.Sequential(last),
            channels=embed_dims,
            strides=(4, 8, 16, 32),
            **{"num_features": projection, **base},
        )
        initialise(self)


PUBLISHED = {
    "ravlt_t": Published(15, 2.4),
    "ravlt_s": Published(26, 4.6, 84.4),
    "ravlt_b": Published(48, 9.9),
    "ravlt_l": Published(95, 16.0),
}
_CODE = "https://github.com/qhfan/RALA"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2411.07635", _CODE, "none", crop_pct=0.875) for name in PUBLISHED}
)


def _ravlt(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(RAVLT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def ravlt_t(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """RAVLT-T."""
    return _ravlt("ravlt_t", pretrained, {}, kwargs)


@register_model
def ravlt_s(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """RAVLT-S."""
    variant = {"embed_dims": (64, 128, 320, 512), "depths": (3, 5, 9, 3), "num_heads": (1, 2, 5, 8)}
    return _ravlt("ravlt_s", pretrained, variant, kwargs)


@register_model
def ravlt_b(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """RAVLT-B."""
    variant = {"embed_dims": (96, 192, 384, 512), "depths": (4, 6, 12, 6), "num_heads": (1, 2, 6, 8)}
    return _ravlt("ravlt_b", pretrained, variant, kwargs)


@register_model
def ravlt_l(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """RAVLT-L."""
    variant = {"embed_dims": (96, 192, 448, 640), "depths": (4, 7, 19, 8), "num_heads": (1, 2, 7, 10)}
    return _ravlt("ravlt_l", pretrained, variant, kwargs)
