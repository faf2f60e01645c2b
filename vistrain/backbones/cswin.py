"""CSWin Transformer: attention in stripes, half of the channels along columns and half along rows.

CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, arXiv 2107.00652.
Authors' code: microsoft/CSWin-Transformer, MIT (models/cswin.py; segmentation/backbone/cswin_transformer.py for maps of
any size). Theirs gathers stripes of q, k and v one by one; here one view of all three does, and rows need no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

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
from vistrain.layers.norms import LayerNorm2d
from vistrain.layers.windows import window_merge

# Authors' names -> ours. Theirs call the embedding of patches `stage1_conv_embed`, and merging stands between stages.
AUTHORS = KeyMap(
    name="CSWin",
    marker=r"^stage1_conv_embed\.",
    rules=(
        (r"^stage1_conv_embed\.0\.", "stem.0."),
        (r"^stage1_conv_embed\.2\.", "stem.1."),
        *((rf"^stage{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^merge{i}\.conv\.", f"stages.{i}.downsample.0.") for i in (1, 2, 3)),
        *((rf"^merge{i}\.norm\.", f"stages.{i}.downsample.1.") for i in (1, 2, 3)),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [f"norm{i}" for i in (1, 2, 3, 4)])


class StripeAttention(nn.Module):
    """Attention within stripes, with locally enhanced positions: a 3x3 convolution of the values (sections 3.2, 3.3).

    The convolution stays within its stripe too: beyond the edge there are zeros.

    Args:
        dim: channels.
        num_heads: of the attention.
        stripe: (height, width) of a stripe in cells; None is the whole map's.
        scale: of the logits; None is `(dim / num_heads) ** -0.5`.
    """

    def __init__(
        self, dim: int, num_heads: int, stripe: tuple[int | None, int | None], scale: float | None = None
    ) -> None:
        super().__init__()
        self.num_heads, self.stripe, self.scale = num_heads, stripe, scale
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv: Tensor) -> Tensor:
        """`[B, H, W, 3, C]` -> `[B, H, W, C]`; maps that stripes do not divide get zeros on both sides, as theirs."""
        batch, height, width, _, channels = qkv.shape
        h, w = self.stripe[0] or height, self.stripe[1] or width
        bottom, right = -height % h, -width % w
        top, left = bottom // 2, right // 2
        if bottom or right:  # after the projection, so that padded keys and values are zeros; nothing masks them
            qkv = F.pad(qkv, (0, 0, 0, 0, left, right - left, top, bottom - top))
        rows, columns = qkv.shape[1] // h, qkv.shape[2] // w
        stripes = qkv.view(batch, rows, h, columns, w, 3, channels).transpose(2, 3).reshape(-1, h, w, 3, channels)
        values = stripes[..., 2, :]
        position = self.get_v(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        q, k, v = stripes.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = x.transpose(1, 2).reshape(position.shape) + position
        return window_merge(x.flatten(1, 2), (h, w), (rows * h, columns * w))[
            :, top : top + height, left : left + width
        ]


class CSWinBlock(nn.Module):
    """Attention along columns and along rows, each on half of the channels; or on the whole map.

    Args:
        dim: channels.
        num_heads: of both halves together.
        split_size: width of a stripe in cells; None attends over the whole map.
        mlp_ratio: hidden channels of the MLP by channels.
        qkv_bias: whether the projections have a bias.
        qk_scale: of the logits; None is one over the root of a head's channels.
        drop_path: probability that the block is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        split_size: int | None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        stripes = [(None, None)] if split_size is None else [(None, split_size), (split_size, None)]
        parts = len(stripes)
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attns = nn.ModuleList(StripeAttention(dim // parts, num_heads // parts, s, qk_scale) for s in stripes)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, len(self.attns), -1))
        attended = torch.cat([attn(qkv[..., i, :]) for i, attn in enumerate(self.attns)], -1)
        x = x + self.drop_path(self.proj(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CSWin(StagedBackbone):
    """CSWin Transformer (arXiv 2107.00652, figure 2).

    Args:
        img_size: side of the images trained on, in pixels. Images of any size are taken; it decides one thing: a stage
            whose map is one stripe wide at this size attends over the whole map.
        in_chans: channels of the images.
        embed_dim: channels of the first stage; they double from stage to stage.
        depth: blocks of each stage.
        split_size: width of the stripes of each stage in cells; the last stage attends over the whole map.
        num_heads: of each stage.
        mlp_ratio: hidden channels of the MLPs by channels.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        qk_scale: of the logits; None is one over the root of a head's channels.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1
    smallest_side = 3

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        embed_dim: int = 96,
        depth: Sequence[int] = (2, 4, 32, 2),
        split_size: Sequence[int] = (1, 2, 7, 7),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        dims = [embed_dim * 2**i for i in range(4)]
        stem = nn.Sequential(nn.Conv2d(in_chans, embed_dim, 7, 4, 2), LayerNorm2d(embed_dim, eps=1e-5))
        stages = []
        for i, rates in enumerate(drop_path_rates(depth, drop_path_rate)):
            whole = i == 3 or img_size // (4 * 2**i) == split_size[i]
            split = None if whole else split_size[i]
            blocks = [CSWinBlock(dims[i], num_heads[i], split, mlp_ratio, qkv_bias, qk_scale, rate) for rate in rates]
            merge = nn.Sequential(nn.Conv2d(dims[i - 1], dims[i], 3, 2, 1), LayerNorm2d(dims[i], eps=1e-5))
            stages.append(Stage(merge if i else nn.Identity(), blocks))
        super().__init__(
            stem,
            stages,
            LayerNorm2d(dims[-1], eps=1e-5),
            channels=dims,
            strides=(4, 8, 16, 32),
            **base,
        )
        initialise(self)


_PRINTED = "what is printed is less than 2.25 times the linear layers of the base model"
PUBLISHED = {
    "cswin_tiny": Published(23, 4.3, 82.8),
    "cswin_small": Published(35, 6.9, 83.6),
    "cswin_base": Published(78, 15.0, 84.2),
    "cswin_base_384": Published(78, 47.0, 85.5, size=384),
    "cswin_large": Published(173, 31.5, 86.5, why=_PRINTED),  # trained on ImageNet-22k first, as the next
    "cswin_large_384": Published(173, 96.8, 87.5, size=384, why=_PRINTED),
}
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2107.00652", "https://github.com/microsoft/CSWin-Transformer", "mit", size=row.size)
        for name, row in PUBLISHED.items()
    }
)


def _cswin(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(CSWin, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def cswin_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CSWin-T."""
    variant = {"embed_dim": 64, "depth": (1, 2, 21, 1), "num_heads": (2, 4, 8, 16)}
    return _cswin("cswin_tiny", pretrained, variant, kwargs)


@register_model
def cswin_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CSWin-S."""
    variant = {"embed_dim": 64, "num_heads": (2, 4, 8, 16)}
    return _cswin("cswin_small", pretrained, variant, kwargs)


@register_model
def cswin_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CSWin-B."""
    return _cswin("cswin_base", pretrained, {}, kwargs)


@register_model
def cswin_base_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CSWin-B for images of 384 pixels."""
    variant = {"img_size": 384, "split_size": (1, 2, 12, 12)}
    return _cswin("cswin_base_384", pretrained, variant, kwargs)


@register_model
def cswin_large(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CSWin-L."""
    variant = {"embed_dim": 144, "num_heads": (6, 12, 24, 24)}
    return _cswin("cswin_large", pretrained, variant, kwargs)


@register_model
def cswin_large_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CSWin-L for images of 384 pixels."""
    variant = {"embed_dim": 144, "num_heads": (6, 12, 24, 24), "img_size": 384, "split_size": (1, 2, 12, 12)}
    return _cswin("cswin_large_384", pretrained, variant, kwargs)
