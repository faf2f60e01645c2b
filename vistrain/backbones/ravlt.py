"""RAVLT: rank-augmented linear attention on fine maps, softmax attention on coarse ones.

Breaking the Low-Rank Dilemma of Linear Attention, arXiv 2411.07635. Authors' code: qhfan/RALA, no licence
(classfication/RALA.py; their dense code has a norm for each map, which `Backbone(output_norm_eps=1e-6)` has here):
nothing of it is here, this is written from a description. The attention is in `attention/rank_augmented.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from vistrain.attention.rank_augmented import GatedRotaryAttention, RankAugmentedAttention
from vistrain.backbones.rmt import RULES, RMTBackbone, rmt_converter
from vistrain.backbones.staged import (
    Published,
    StagedBackbone,
    build_variant,
    default_cfg,
    dense_key_map,
    register_model,
)
from vistrain.checkpoints import KeyMap

# Authors' names -> ours.
AUTHORS = KeyMap(
    name="RAVLT",
    marker=r"^layers\.0\.",
    rules=(*RULES, (r"\.norm([12])\.norm\.", r".norm\1.")),
    drop=(r"\.RoPE\.angle$",),  # constants
)
checkpoint_filter_fn = rmt_converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [rf"extra_norms\.{i}" for i in range(4)])


class RAVLT(RMTBackbone):
    """RAVLT (arXiv 2411.07635, section 3.4).

    Args:
        embed_dims, num_heads: channels and heads of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        layerscales: whether branches have factors that are learnt, for each stage.
        layer_init_values: start of these.
        linear: whether attention is linear, for each stage.
        base: see `RMTBackbone`.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (3.5, 3.5, 3.5, 3.5),
        layerscales: Sequence[bool] = (True, True, True, True),
        layer_init_values: Sequence[float] = (1, 1, 1e-6, 1e-6),
        linear: Sequence[bool] = (True, True, False, False),
        **base: Any,
    ) -> None:
        def attention(stage: int) -> nn.Module:
            kind = RankAugmentedAttention if linear[stage] else GatedRotaryAttention
            return kind(embed_dims[stage], num_heads[stage])

        scales = [value if on else None for on, value in zip(layerscales, layer_init_values, strict=True)]
        base |= {"embed_dims": embed_dims, "mlp_ratios": mlp_ratios, "layer_scales": scales}
        super().__init__(attention, (2, 1, 1, 2), **base)


_PRODUCTS = "printed without the products of attention"
PUBLISHED = {
    "ravlt_t": Published(15, 2.4, why=_PRODUCTS),
    "ravlt_s": Published(26, 4.6, 84.4, why=_PRODUCTS),
    "ravlt_b": Published(48, 9.9, why=_PRODUCTS),
    "ravlt_l": Published(95, 16.0, why=_PRODUCTS),
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
