"""MiT, SegFormer's backbone: overlapping patches, attention to a reduced map, and MLPs that see their neighbours.

SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, arXiv 2105.15203, section 3.1.
Authors' code: NVlabs/SegFormer, commit 65fa8cf, NVIDIA's non-commercial licence (mmseg/models/backbones/
mix_transformer.py): nothing of it is here, it is written from the paper, with the names of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones.overlapping import overlapping_pyramid
from vistrain.backbones.staged import (
    Published,
    StagedBackbone,
    TokenBlock,
    build_variant,
    converter,
    default_cfg,
    dense_key_map,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.mlp import ConvMlp

# Authors' names -> ours. Theirs count stages from 1.
AUTHORS = KeyMap(
    name="SegFormer",
    marker=r"(^|\.)block1\.0\.mlp\.dwconv\.dwconv\.",
    rules=(
        (r"^patch_embed1\.", "stem."),
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(4)),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
    ),
)
# Hugging Face's names, which hold keys and values apart.
TRANSFORMERS = KeyMap(
    name="transformers",
    marker=r"segformer\.encoder\.|^encoder\.block\.0\.0\.attention\.self\.",
    rules=(
        (r"^(segformer\.)?encoder\.", ""),
        (r"^patch_embeddings\.0\.", "stem."),
        *((rf"^patch_embeddings\.{i}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        (r"^(stem|stages\.\d\.downsample)\.layer_norm\.", r"\1.norm."),
        (r"^block\.(\d)\.", r"stages.\1.blocks."),
        (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
        (r"\.layer_norm_([12])\.", r".norm\1."),
        (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
        (r"\.attention\.self\.query\.", ".attn.q."),
        (r"\.attention\.self\.", ".attn."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
        (r"^classifier\.", "head."),
    ),
    stacked=((r"\.attn\.key\.", r"\.attn\.value\."), ".attn.kv."),
)
checkpoint_filter_fn = converter(AUTHORS, TRANSFORMERS)
DENSE = dense_key_map(AUTHORS, ())
DENSE_TRANSFORMERS = dense_key_map(TRANSFORMERS, ())


class ReducedAttention(nn.Module):
    """Attention of every cell to a map that a strided convolution has made smaller (section 3.1, equation 2).

    Args:
        dim: channels.
        num_heads: they share the channels.
        sr_ratio: cells by cells that become one key; 1 leaves the map as it is.
        qkv_bias: whether projections to queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(dim) if sr_ratio > 1 else None
        self.sr_ratio = sr_ratio

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, H * W, C]` -> the same shape. Maps smaller than `sr_ratio` are continued by zeros to one key."""
        keys = x
        if self.sr is not None and self.norm is not None:
            grid = x.mT.unflatten(2, size)
            short = [max(self.sr_ratio - side, 0) for side in grid.shape[:1:-1]]
            grid = F.pad(grid, (0, short[0], 0, short[1])) if any(short) else grid
            keys = self.norm(self.sr(grid).flatten(2).mT)
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(keys).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class MiT(StagedBackbone):
    """Mix Transformer (arXiv 2105.15203, table 6). Maps that it gives out are normalised.

    Args:
        in_chans: channels of the images.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        qkv_bias, sr_ratios: see `ReducedAttention`, the latter for each stage.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        qkv_bias: bool = True,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        def block(stage: int, rate: float) -> TokenBlock:
            dim = embed_dims[stage]
            attention = ReducedAttention(dim, num_heads[stage], sr_ratios[stage], qkv_bias)
            return TokenBlock(dim, attention, ConvMlp(dim, int(dim * mlp_ratios[stage])), drop_path=rate)

        stem, stages = overlapping_pyramid(in_chans, embed_dims, depths, drop_path_rate, block)
        super().__init__(stem, stages, nn.Identity(), channels=embed_dims, strides=(4, 8, 16, 32), **base)
        initialise(self, convolutions="fan_out")


# Parameters of the encoder alone, as table 1 prints them; top-1 is that of the weights that the authors give out.
PUBLISHED = {
    "mit_b0": Published(3.4, None, 70.5, counted={"num_classes": 0}),
    "mit_b1": Published(13.1, None, 78.7, counted={"num_classes": 0}),
    "mit_b2": Published(24.2, None, 81.6, counted={"num_classes": 0}),
    "mit_b3": Published(44.0, None, 83.1, counted={"num_classes": 0}),
    "mit_b4": Published(60.8, None, 83.6, counted={"num_classes": 0}),
    "mit_b5": Published(81.4, None, 83.8, counted={"num_classes": 0}),
}
_DEPTHS = {"mit_b2": (3, 4, 6, 3), "mit_b3": (3, 4, 18, 3), "mit_b4": (3, 8, 27, 3), "mit_b5": (3, 6, 40, 3)}
_CODE = "https://github.com/NVlabs/SegFormer"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2105.15203", _CODE, "other", "stem.proj", crop_pct=0.875) for name in PUBLISHED}
)


def _mit(name: str, pretrained: bool, kwargs: dict[str, Any]) -> StagedBackbone:
    variant: dict[str, Any] = {"depths": _DEPTHS[name]} if name in _DEPTHS else {}
    return build_variant(MiT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def mit_b0(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MiT-B0."""
    return _mit("mit_b0", pretrained, {"embed_dims": (32, 64, 160, 256), **kwargs})


@register_model
def mit_b1(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MiT-B1."""
    return _mit("mit_b1", pretrained, kwargs)


@register_model
def mit_b2(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MiT-B2."""
    return _mit("mit_b2", pretrained, kwargs)


@register_model
def mit_b3(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MiT-B3."""
    return _mit("mit_b3", pretrained, kwargs)


@register_model
def mit_b4(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MiT-B4."""
    return _mit("mit_b4", pretrained, kwargs)


@register_model
def mit_b5(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MiT-B5."""
    return _mit("mit_b5", pretrained, kwargs)
