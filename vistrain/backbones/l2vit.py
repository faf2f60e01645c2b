"""L2ViT: window attention and linear attention by turns, the latter with convolutions that make up for its blur.

The Linear Attention Resurrection in Vision Transformer, arXiv 2501.16182. Authors' code: ChuanyangZheng/L2ViT, MIT
(classification/models/l2vit.py; object_detection/mmdet/models/backbones/l2vit.py has a norm for each map, which
`Backbone(output_norm_eps=1e-5)` has here).
"""

from __future__ import annotations

from collections import OrderedDict
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
from vistrain.layers.windows import window_merge, window_partition

# Authors' names -> ours. Theirs keep downsampling apart from the stages, the stem first.
AUTHORS = KeyMap(
    name="L2ViT",
    marker=r"^downsample_layers\.0\.proj\.proj\.",
    rules=(
        (r"^downsample_layers\.0\.proj\.proj\.", "stem.proj."),
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.cpe\.([01])\.proj\.", r".cpe\1."),
        (r"\.local_mp\.", ".local."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [f"norm{i}" for i in range(4)])


class WindowAttention(nn.Module):
    """Attention within windows, without biases of positions; maps get zeros until windows tile them.

    Args:
        dim: channels.
        num_heads: of the attention.
        window_size: cells of a window along an axis.
        qkv_bias: whether the projection to queries, keys and values has a bias.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 7, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, (window_size, window_size)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window[1], 0, -height % self.window[0]))
        size = (x.shape[1], x.shape[2])
        q, k, v = (
            self.qkv(window_partition(x, self.window)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(window_merge(x, self.window, size)[:, :height, :width])


class LinearAttention(nn.Module):
    """Attention with ReLU for a softmax, so that keys and values are summed up once (section 3.2).

    Args:
        dim: channels.
        num_heads: of the attention.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        least: weights are divided by their sum, or by this number if it is larger: faithfully 100, not a small one.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, least: float = 100.0) -> None:
        super().__init__()
        self.num_heads, self.least = num_heads, least
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), (dim // num_heads) ** -0.5))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        size = (x.shape[1], x.shape[2])
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = q.relu(), k.relu()
        total = (q @ k.sum(2, keepdim=True).mT).clamp(min=self.least)
        x = q @ (k.mT @ v * self.temperature) / total
        return self.proj(x.transpose(1, 2).flatten(2).unflatten(1, size))


def _depthwise(dim: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


class L2ViTBlock(nn.Module):
    """Position by convolution, attention, what goes with its kind, and an MLP (figure 2).

    Args:
        dim: channels.
        attn: `[B, H, W, C]` -> `[B, H, W, C]`. After window attention positions are added again, after linear attention
            two convolutions concentrate what it spreads (section 3.3).
        mlp_ratio: hidden channels of the MLP by channels.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.cpe0 = _depthwise(dim, 3)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.windows = isinstance(attn, WindowAttention)
        if self.windows:
            self.cpe1 = _depthwise(dim, 3)
        else:
            self.norm3 = LayerNorm2d(dim, eps=1e-5)
            self.local = nn.Sequential(
                OrderedDict(conv1=_depthwise(dim, 7), act=nn.GELU(), bn=nn.BatchNorm2d(dim), conv2=_depthwise(dim, 7))
            )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        x = x + self.cpe0(x)
        x = x + self.drop_path(self.attn(self.norm1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        x = x + (self.cpe1(x) if self.windows else self.drop_path(self.local(self.norm3(x))))
        return x + self.drop_path(self.mlp(self.norm2(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Layer norm, zeros until sides are even, and a 2x2 convolution of stride 2.

    Args:
        dim, out: channels of input and output.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.proj = nn.Conv2d(dim, out, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', ceil(H / 2), ceil(W / 2)]`."""
        return self.proj(F.pad(self.norm(x), (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class L2ViT(StagedBackbone):
    """L2ViT (arXiv 2501.16182, figure 2).

    Args:
        in_chans: channels of the images.
        depths, dims, num_heads: blocks, channels and heads of each stage. The first block has windows, the second
            linear attention, and so on.
        mlp_ratio: hidden channels of the MLPs by channels, for each stage.
        window_size: cells of a window along an axis.
        qkv_bias: whether projections to queries, keys and values have a bias.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: Sequence[float] = (4, 4, 4, 4),
        window_size: int = 7,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        def block(stage: int, index: int, rate: float) -> L2ViTBlock:
            dim, heads = dims[stage], num_heads[stage]
            linear = LinearAttention(dim, heads, qkv_bias) if index % 2 else None
            return L2ViTBlock(dim, linear or WindowAttention(dim, heads, window_size, qkv_bias), mlp_ratio[stage], rate)

        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            down = Downsample(dims[i - 1], dims[i]) if i else nn.Identity()
            stages.append(Stage(down, [block(i, j, rate) for j, rate in enumerate(rates)], channels_last=False))
        half, dim = dims[0] // 2, dims[0]
        proj = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, 2, 1), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, dim, 3, 2, 1), nn.BatchNorm2d(dim),
        )  # fmt: skip
        stem = nn.Sequential(OrderedDict(proj=proj, norm=LayerNorm2d(dim, eps=1e-5)))
        norm = LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem, stages, norm, channels=dims, strides=(4, 8, 16, 32), **base)
        initialise(self)


PUBLISHED = {
    "l2vit_tiny": Published(29, 4.7, 83.1),
    "l2vit_small": Published(50, 9.0, 84.1),
    "l2vit_base": Published(89, 15.9, 84.4),
    "l2vit_base_384": Published(89, 47.5, 87.0, size=384),  # trained on ImageNet-22k first
}
_CODE = "https://github.com/ChuanyangZheng/L2ViT"
_CROP: dict[int, dict[str, Any]] = {224: {"crop_pct": 0.875}, 384: {"crop_pct": 1.0, "crop_mode": "squash"}}
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2501.16182", _CODE, "mit", "stem.proj.0", size=row.size, **_CROP[row.size])
        for name, row in PUBLISHED.items()
    }
)
_BASE: dict[str, Any] = {"depths": (2, 2, 18, 2), "dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)}


def _l2vit(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(L2ViT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def l2vit_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """L2ViT-T."""
    return _l2vit("l2vit_tiny", pretrained, {}, kwargs)


@register_model
def l2vit_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """L2ViT-S."""
    return _l2vit("l2vit_small", pretrained, {"depths": (2, 2, 18, 2)}, kwargs)


@register_model
def l2vit_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """L2ViT-B."""
    return _l2vit("l2vit_base", pretrained, _BASE, kwargs)


@register_model
def l2vit_base_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """L2ViT-B for images of 384 pixels, with windows of 12 cells."""
    return _l2vit("l2vit_base_384", pretrained, {**_BASE, "window_size": 12}, kwargs)
