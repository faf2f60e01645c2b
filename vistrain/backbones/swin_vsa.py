"""Swin Transformer with varied-size window attention in place of windows that shift.

VSA: Learning Varied-Size Window Attention in Vision Transformers, arXiv 2204.08446, section 4.1. The authors
(ViTAE-Transformer/ViTAE-VSA, no licence) never released this model: what the paper leaves open is an interpretation
here (positions are encoded as in their ViTAEv2), and no weights or fixtures exist to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import Mlp
from timm.models import generate_default_cfgs
from torch import nn

from vistrain.attention.varied_size_window import VariedSizeWindowAttention
from vistrain.backbones.dinat_s import PatchEmbed, PatchMerging
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    TokenBlock,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d

checkpoint_filter_fn = converter(KeyMap(name="Swin-VSA", marker=r"^no authors' files\."))


class SwinVSA(StagedBackbone):
    """Swin with VSA (arXiv 2204.08446, section 4.1).

    Args:
        in_chans: channels of the images.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths, num_heads: blocks and heads of each stage.
        window_size, dense: see `VariedSizeWindowAttention`.
        mlp_ratio: hidden channels of the MLPs by channels.
        cpe: interpretation: whether a 7x7 convolution of each channel encodes positions first, in each block.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        cpe: bool = True,
        dense: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        dims = [embed_dim * 2**i for i in range(4)]
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            dim = dims[i]
            blocks = [
                TokenBlock(
                    dim,
                    VariedSizeWindowAttention(dim, num_heads[i], window_size=window_size, dense=dense),
                    Mlp(dim, int(dim * mlp_ratio)),
                    pos_kernel=7 if cpe else 0,
                    eps=1e-5,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(PatchMerging(dims[i - 1]) if i else nn.Identity(), blocks))
        stem = PatchEmbed(4, in_chans, embed_dim, True, 0.0)
        norm = LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem, stages, norm, channels=dims, strides=(4, 8, 16, 32), **base)
        initialise(self)


# The paper prints 82.24 and 83.6 top-1; as what stands here is an interpretation, none is claimed. Sizes are ours.
PUBLISHED = {"swin_vsa_tiny": Published(28.8), "swin_vsa_small": Published(50.5)}
_CODE = "https://github.com/ViTAE-Transformer/ViTAE-VSA"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2204.08446", _CODE, "none", "stem.proj") for name in PUBLISHED}
)


def _swin_vsa(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(SwinVSA, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def swin_vsa_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Swin-T with VSA, an interpretation."""
    return _swin_vsa("swin_vsa_tiny", pretrained, {}, kwargs)


@register_model
def swin_vsa_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Swin-S with VSA, an interpretation."""
    return _swin_vsa("swin_vsa_small", pretrained, {"depths": (2, 2, 18, 2)}, kwargs)
