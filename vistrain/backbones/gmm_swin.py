"""GMM-Swin: Swin for small images, whose attention within windows is local by a mixture of Gaussians.

RetNet viewed through convolution, arXiv 2309.05375. Authors' code:
CatworldLee/Gaussian-Mixture-Mask-Attention, no licence (models/swin.py): nothing of it is here, it is written from a
description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs
from torch import nn

from vistrain.attention.gaussian_mixture import GaussianMixtureWindowAttention
from vistrain.backbones.attention_hosts import HostBlock
from vistrain.backbones.dinat_s import PatchEmbed, PatchMerging
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
from vistrain.backbones.swin_keys import TABLES
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d

# Authors' names -> ours: theirs end a stage with the merging of patches.
AUTHORS = KeyMap(
    name="GMM-Swin",
    marker=r"^layers\.0\.blocks\.0\.attn\.mask\.sigma$",
    rules=(
        (r"^patch_embed\.", "stem."),
        *((rf"^layers\.{i}\.downsample\.", f"stages.{i + 1}.downsample.") for i in range(3)),
        (r"^layers\.", "stages."),
    ),
    drop=(*TABLES, r"^mask$", r"\.mask\.mask$"),  # the Gaussian of distances, too, follows from the window's size
)
checkpoint_filter_fn = converter(AUTHORS)


class GaussianMixtureSwin(StagedBackbone):
    """Swin with `GaussianMixtureWindowAttention` (arXiv 2309.05375).

    Args:
        in_chans: channels of the images.
        img_size: side of the images, in pixels, that windows are made for: none is larger than a map of it.
        patch_size: side of the patches that become tokens, in pixels.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths, num_heads: blocks and heads of each stage.
        window_size: side of the windows.
        mlp_ratio: hidden channels of the MLPs by channels.
        qkv_bias: whether projections to queries, keys and values have a bias.
        num_kernels: Gaussians of each head.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        img_size: int = 32,
        patch_size: int = 2,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 6, 4),
        num_heads: Sequence[int] = (3, 6, 12),
        window_size: int = 4,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        num_kernels: int = 5,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        dims = [embed_dim * 2**i for i in range(len(depths))]
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            side = math.ceil(img_size / patch_size / 2**i)
            window = min(window_size, side)
            blocks = []
            for j, rate in enumerate(rates):
                shift = window // 2 if j % 2 and window < side else 0
                shape: dict[str, Any] = {"window_size": window, "qkv_bias": qkv_bias, "shift": shift}
                attn = GaussianMixtureWindowAttention(dims[i], num_heads[i], num_kernels, **shape)
                blocks.append(HostBlock(dims[i], attn, mlp_ratio, 0.0, rate, 1e-5))
            stages.append(Stage(PatchMerging(dims[i - 1]) if i else nn.Identity(), blocks))
        strides = [patch_size * 2**i for i in range(len(depths))]
        stem, norm = PatchEmbed(patch_size, in_chans, embed_dim, True, 0.0), LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem, stages, norm, channels=dims, strides=strides, **base)
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """Biases of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}


# Numbers of the paper's table could not be read; the size is ours, on CIFAR-100
PUBLISHED = {"gmm_swin_small_images": Published(7.1, size=32, counted={"num_classes": 100})}
_CODE = "https://github.com/CatworldLee/Gaussian-Mixture-Mask-Attention"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2309.05375", _CODE, "none", "stem.proj", size=row.size) for name, row in PUBLISHED.items()}
)


@register_model
def gmm_swin_small_images(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """GMM-Swin for images of 32 pixels."""
    name = "gmm_swin_small_images"
    return build_variant(GaussianMixtureSwin, name, pretrained, checkpoint_filter_fn, kwargs, stages=3)
