"""TransNeXt: aggregated attention and gated MLPs, after the eye's sharp centre and coarse surround.

TransNeXt: Robust Foveal Visual Perception for Vision Transformers, arXiv 2311.17132. Authors' code:
DaiShiResearch/TransNeXt, Apache-2.0 (classification/transnext.py; segmentation/upernet/transnext_native.py for maps of
any size). The attention is in `attention/aggregated.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.aggregated import AggregatedAttention, CosineAttention
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

# Authors' names -> ours. Theirs count stages from 1, and have norms of maps in classification too.
AUTHORS = KeyMap(
    name="TransNeXt",
    marker=r"^patch_embed1\.",
    rules=(
        (r"^patch_embed1\.", "stem."),
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(4)),
        (r"\.cpb_fc", ".cpb.fc"),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, ())


class ConvGLU(nn.Module):
    """Gated MLP whose gate sees its neighbours: `fc2(GELU(dwconv(a)) * b)`, (a, b) the halves of fc1 (section 3.4).

    Args:
        dim: channels of input and output.
        hidden: of an MLP without a gate; a gated one has two thirds of it, rounded down, and so as many parameters.
        drop: dropout.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        width = int(2 * hidden / 3)
        self.fc1 = nn.Linear(dim, 2 * width)
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.fc2 = nn.Linear(width, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        gate, value = self.fc1(x).chunk(2, -1)
        gate = self.dwconv(gate.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(F.gelu(gate) * value)))


class TransNeXt(StagedBackbone):
    """TransNeXt (arXiv 2311.17132, section 3.5). Maps that it gives out are normalised.

    Args:
        img_size: side of the images trained on, in pixels. Images of any size are taken; biases of positions are
            learnt at this one.
        pretrain_size: side of the images pretrained on, in whose maps distances are measured; None is `img_size`.
        is_extrapolation: on images of other sizes compute biases for their distances; otherwise resize those of
            `img_size`. Either is published, interpolation first.
        window_size: side of the neighbourhood of each stage; not used where `sr_ratios` is 1.
        patch_size: stride of the stem.
        in_chans: channels of the images.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, before the gate's share.
        qkv_bias: whether projections to queries, keys and values have a bias.
        sr_ratios: cells by cells of the pooled map, of each stage; 1 attends over the whole map, unpooled.
        fixed_pool_size: side of the pooled maps; None leaves it to `sr_ratios`.
        proj_drop_rate, attn_drop_rate: dropout after linear layers, and of attention weights.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        img_size: int = 224,
        pretrain_size: int | None = None,
        is_extrapolation: bool = False,
        window_size: Sequence[int | None] = (3, 3, 3, None),
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (72, 144, 288, 576),
        depths: Sequence[int] = (2, 2, 15, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        fixed_pool_size: int | None = None,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        common: dict[str, Any] = {"is_extrapolation": is_extrapolation, "qkv_bias": qkv_bias}
        common |= {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}

        def block(stage: int, rate: float) -> TokenBlock:
            dim, cell = embed_dims[stage], 4 * 2**stage  # pixels; theirs too takes 4 whatever the patch size
            shape = (dim, num_heads[stage], img_size // cell, (pretrain_size or img_size) // cell)
            kind: type[nn.Module] = CosineAttention
            arguments = dict(common)
            if sr_ratios[stage] != 1:
                kind = AggregatedAttention
                arguments |= {"window_size": window_size[stage], "sr_ratio": sr_ratios[stage]}
                arguments |= {"fixed_pool_size": fixed_pool_size}
            attention = kind(*shape, **arguments)
            mlp = ConvGLU(dim, int(dim * mlp_ratios[stage]), proj_drop_rate)
            return TokenBlock(dim, attention, mlp, drop_path=rate)

        stem, stages = overlapping_pyramid(in_chans, embed_dims, depths, drop_path_rate, block, patch_size)
        super().__init__(
            stem,
            stages,
            nn.Identity(),
            channels=embed_dims,
            strides=[patch_size * 2**i for i in range(len(depths))],
            **base,
        )
        initialise(self, convolutions="fan_out")

    def no_weight_decay(self) -> set[str]:
        """Learnt queries and temperatures, and what makes biases of positions."""
        exempt = (".query_embedding", ".temperature", ".relative_pos_bias_local")
        return {name for name, _ in self.named_parameters() if name.endswith(exempt) or ".cpb." in name}


PUBLISHED = {
    "transnext_micro": Published(12.8, 2.7, 82.5),
    "transnext_tiny": Published(28.2, 5.7, 84.0),
    "transnext_small": Published(49.7, 10.3, 84.7),
    "transnext_base": Published(89.7, 18.4, 84.8),
    "transnext_small_384": Published(49.7, None, 86.0, size=384),
    "transnext_base_384": Published(89.7, None, 86.2, size=384),
    "transnext_micro_aaaa": Published(13.1, 3.3, 82.6, size=256),
}
_CODE = "https://github.com/DaiShiResearch/TransNeXt"


def _crop(size: int) -> dict[str, Any]:
    """How images are cut for evaluation; those of 384 pixels are whole, their proportions given up."""
    return {"crop_pct": 1.0, "crop_mode": "squash"} if size == 384 else {"crop_pct": 0.875}


default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2311.17132", _CODE, "apache-2.0", first_conv="stem.proj", size=row.size, **_crop(row.size))
        for name, row in PUBLISHED.items()
    }
)

_MICRO: dict[str, Any] = {"embed_dims": (48, 96, 192, 384), "num_heads": (2, 4, 8, 16)}
_SMALL: dict[str, Any] = {"depths": (5, 5, 22, 5)}
_BASE: dict[str, Any] = {"embed_dims": (96, 192, 384, 768), "num_heads": (4, 8, 16, 32), "depths": (5, 5, 23, 5)}
_AT_384: dict[str, Any] = {"img_size": 384, "pretrain_size": 224}
_AAAA: dict[str, Any] = {"img_size": 256, "window_size": (3, 3, 3, 3), "sr_ratios": (16, 8, 4, 2)}


def _transnext(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(TransNeXt, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def transnext_micro(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """TransNeXt-Micro."""
    return _transnext("transnext_micro", pretrained, _MICRO, kwargs)


@register_model
def transnext_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """TransNeXt-Tiny."""
    return _transnext("transnext_tiny", pretrained, {}, kwargs)


@register_model
def transnext_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """TransNeXt-Small."""
    return _transnext("transnext_small", pretrained, _SMALL, kwargs)


@register_model
def transnext_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """TransNeXt-Base."""
    return _transnext("transnext_base", pretrained, _BASE, kwargs)


@register_model
def transnext_small_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """TransNeXt-Small, tuned on images of 384 pixels."""
    return _transnext("transnext_small_384", pretrained, _SMALL | _AT_384, kwargs)


@register_model
def transnext_base_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """TransNeXt-Base, tuned on images of 384 pixels."""
    return _transnext("transnext_base_384", pretrained, _BASE | _AT_384, kwargs)


@register_model
def transnext_micro_aaaa(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """TransNeXt-Micro with aggregated attention in all stages, for images of 256 pixels."""
    return _transnext("transnext_micro_aaaa", pretrained, _MICRO | _AAAA, kwargs)
