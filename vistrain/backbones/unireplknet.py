"""UniRepLKNet: convolutions of 13x13 cells with dilated ones beside them, which merge into one after training.

UniRepLKNet: A Universal Perception Large-Kernel ConvNet, arXiv 2311.15599; Scaling Up Your Kernels, arXiv 2410.08049.
Authors' code: AILab-CVC/UniRepLKNet, Apache-2.0 (unireplknet.py; their dense code has a norm for each map, which
`Backbone(output_norm_eps=1e-6)` has here). Printed sizes are those after `fuse()`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
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
from vistrain.layers.fusion import ConvBN, Fusible, ParallelConvs, affine_of
from vistrain.layers.norms import LayerNorm2d

# Authors' names -> ours. Theirs keep downsampling apart from the stages, the stem first.
AUTHORS = KeyMap(
    name="UniRepLKNet",
    marker=r"^downsample_layers\.0\.0\.",
    rules=(
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.lk_origin\.", ".dwconv.branches.large.conv."),
        (r"\.dwconv\.origin_bn\.", ".dwconv.branches.large.bn."),
        (r"\.dwconv\.dil_conv_(k\d+_\d+)\.", r".dwconv.branches.\1.conv."),
        (r"\.dwconv\.dil_bn_(k\d+_\d+)\.", r".dwconv.branches.\1.bn."),
        (r"\.pwconv1\.1\.", ".pwconv1."),
        (r"\.pwconv2\.2\.", ".norm2."),
        (r"\.pwconv2\.0\.", ".pwconv2."),
        (r"\.act\.1\.", ".grn."),
    ),
)
DENSE = dense_key_map(AUTHORS, [f"norm{i}" for i in range(4)])
_convert = converter(AUTHORS)

# Kernels and dilations beside one large kernel (2311.15599, table 2, and their code)
DILATED: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under our names, of merged models too (theirs with `deploy`); those of GRN are `[1, 1, 1, C]` there."""
    state = {k: v.flatten() if ".grn." in k else v for k, v in _convert(weights, model).items()}
    if not any(".branches." in key for key in model.state_dict()):
        state = {key.replace(".branches.large.conv.", "."): value for key, value in state.items()}
    return state


class GRN(nn.Module):
    """Global response normalisation (ConvNeXt V2, arXiv 2301.00808, section 3): channels compete by their length.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.beta: nn.Parameter | None = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        length = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        scale = 1 + self.gamma * (length / (length.mean(-1, keepdim=True) + 1e-6))
        return (
            x * scale.to(x.dtype) if self.beta is None else torch.addcmul(self.beta.to(x.dtype), x, scale.to(x.dtype))
        )


class SEBlock(nn.Module):
    """Squeeze and excitation.

    Args:
        dim: channels.
        hidden: channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def _depthwise(dim: int, kernel_size: int) -> nn.Module:
    if kernel_size < 7:
        return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
    beside = {f"k{k}_{r}": ConvBN(dim, dim, k, groups=dim, dilation=r) for k, r in DILATED[kernel_size]}
    return ParallelConvs({"large": ConvBN(dim, dim, kernel_size, groups=dim), **beside})


class UniRepLKNetBlock(Fusible):
    """A depthwise convolution, squeeze and excitation, and an MLP, added to what came in (2311.15599, figure 3).

    Args:
        dim: channels.
        kernel_size: of the convolution; from 7 on with dilated ones beside it.
        layer_scale_init_value: initial factor of the branch, learnt for each channel.
        drop_path: probability that the block is left out of a sample in training.
    """

    def __init__(
        self, dim: int, kernel_size: int, layer_scale_init_value: float = 1e-6, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.dwconv = _depthwise(dim, kernel_size)
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.se = SEBlock(dim, dim // 4)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GRN(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(dim)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.full((dim,), layer_scale_init_value))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        y = self.se(self.norm(self.dwconv(x)))
        y = self.grn(F.gelu(self.pwconv1(y.permute(0, 2, 3, 1))))
        y = self.norm2(self.pwconv2(y).permute(0, 3, 1, 2))
        return x + self.drop_path(y if self.gamma is None else self.gamma[:, None, None] * y)

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """The block with one convolution of each kind: norms, layer scale and GRN's summand are in their biases."""
        made = copy.deepcopy(self).eval()
        conv = made.dwconv.fused() if isinstance(made.dwconv, ParallelConvs) else made.dwconv
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(made.norm, nn.BatchNorm2d)
        assert isinstance(made.norm2, nn.BatchNorm2d)
        assert made.gamma is not None
        assert made.grn.beta is not None
        scale, shift = affine_of(made.norm)
        bias = shift if conv.bias is None else shift + scale * conv.bias
        conv.weight.mul_(scale[:, None, None, None])
        conv.bias = nn.Parameter(bias)
        scale, shift = affine_of(made.norm2)
        wide, dim = made.pwconv2.in_features, made.pwconv2.out_features
        linear = nn.Linear(wide, dim, device=bias.device, dtype=bias.dtype)
        linear.weight.copy_((made.gamma * scale)[:, None] * made.pwconv2.weight)
        linear.bias.copy_(made.gamma * (shift + scale * (made.pwconv2.weight @ made.grn.beta)))
        made.dwconv, made.norm, made.norm2, made.pwconv2 = conv, nn.Identity(), nn.Identity(), linear
        made.gamma = made.grn.beta = None
        return made


class UniRepLKNet(StagedBackbone):
    """UniRepLKNet (arXiv 2311.15599, section 3.2).

    Args:
        in_chans: channels of the images.
        depths, dims: blocks and channels of each stage.
        kernel_sizes: of each block of each stage; None is 3 in the first stage and 13 in the others, where in the third
            every second (depths of 18) or third (27) has 13 and the rest 3.
        layer_scale_init_value: see `UniRepLKNetBlock`.
        deploy: make the merged form at once, for weights that are merged.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    pool_first = True

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        layer_scale_init_value: float = 1e-6,
        deploy: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        kernels = kernel_sizes or default_kernels(depths)
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            pairs = zip(kernels[i], rates, strict=True)
            blocks = [UniRepLKNetBlock(dims[i], k, layer_scale_init_value, rate) for k, rate in pairs]
            down = nn.Sequential(nn.Conv2d(dims[i - 1], dims[i], 3, 2, 1), LayerNorm2d(dims[i]))
            stages.append(Stage(down if i else nn.Identity(), blocks, channels_last=False))
        half, dim = dims[0] // 2, dims[0]
        stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, 2, 1), LayerNorm2d(half), nn.GELU(),
            nn.Conv2d(half, dim, 3, 2, 1), LayerNorm2d(dim),
        )  # fmt: skip
        super().__init__(stem, stages, LayerNorm2d(dims[-1]), channels=dims, strides=(4, 8, 16, 32), **base)
        initialise(self, convolutions="truncated")
        if deploy:
            self.fuse()


def default_kernels(depths: Sequence[int]) -> list[list[int]]:
    """Kernel of each block of each stage, as the authors' variants of these depths have them."""
    period = {18: 2, 27: 3}.get(depths[2], 1)
    third = [3 if i % period else 13 for i in range(depths[2])]
    return [[3] * depths[0], [13] * depths[1], third, [13] * depths[3]]


PUBLISHED = {
    "unireplknet_a": Published(4.4, 0.6, 77.0, fused=True),
    "unireplknet_f": Published(6.2, 0.9, 78.6, fused=True),
    "unireplknet_p": Published(10.7, 1.6, 80.2, fused=True),
    "unireplknet_n": Published(18.3, 2.8, 81.6, fused=True),
    "unireplknet_t": Published(31, 4.9, 83.2, fused=True),
    "unireplknet_s": Published(56, 9.1, 83.9, fused=True),
    # The others, and S again, were trained on ImageNet-22k first, and are for images of 384 pixels.
    "unireplknet_s_384": Published(56, None, 86.4, size=384, fused=True),
    "unireplknet_b_384": Published(98, None, 87.4, size=384, fused=True),
    "unireplknet_l_384": Published(218, None, 87.9, size=384, fused=True),
    "unireplknet_xl_384": Published(386, None, 88.0, size=384, fused=True),
}
_CODE = "https://github.com/AILab-CVC/UniRepLKNet"
_CROP: dict[int, dict[str, Any]] = {224: {"crop_pct": 0.875}, 384: {"crop_pct": 1.0, "crop_mode": "squash"}}
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2311.15599", _CODE, "apache-2.0", size=row.size, **_CROP[row.size])
        for name, row in PUBLISHED.items()
    }
)


def _unireplknet(
    name: str, pretrained: bool, dim: int, depths: tuple[int, ...], kwargs: dict[str, Any]
) -> StagedBackbone:
    variant = {"dims": tuple(dim * 2**i for i in range(4)), "depths": depths}
    return build_variant(UniRepLKNet, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def unireplknet_a(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-A."""
    return _unireplknet("unireplknet_a", pretrained, 40, (2, 2, 6, 2), kwargs)


@register_model
def unireplknet_f(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-F."""
    return _unireplknet("unireplknet_f", pretrained, 48, (2, 2, 6, 2), kwargs)


@register_model
def unireplknet_p(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-P."""
    return _unireplknet("unireplknet_p", pretrained, 64, (2, 2, 6, 2), kwargs)


@register_model
def unireplknet_n(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-N."""
    return _unireplknet("unireplknet_n", pretrained, 80, (2, 2, 8, 2), kwargs)


@register_model
def unireplknet_t(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-T."""
    return _unireplknet("unireplknet_t", pretrained, 80, (3, 3, 18, 3), kwargs)


@register_model
def unireplknet_s(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-S."""
    return _unireplknet("unireplknet_s", pretrained, 96, (3, 3, 27, 3), kwargs)


@register_model
def unireplknet_s_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-S for images of 384 pixels."""
    return _unireplknet("unireplknet_s_384", pretrained, 96, (3, 3, 27, 3), kwargs)


@register_model
def unireplknet_b_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-B for images of 384 pixels."""
    return _unireplknet("unireplknet_b_384", pretrained, 128, (3, 3, 27, 3), kwargs)


@register_model
def unireplknet_l_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-L for images of 384 pixels."""
    return _unireplknet("unireplknet_l_384", pretrained, 192, (3, 3, 27, 3), kwargs)


@register_model
def unireplknet_xl_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """UniRepLKNet-XL for images of 384 pixels."""
    return _unireplknet("unireplknet_xl_384", pretrained, 256, (3, 3, 27, 3), kwargs)
