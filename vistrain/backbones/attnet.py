"""AttNet: convolutions whose kernels are made of the image (ATConv), in place of attention.

Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional Efficiency, arXiv 2510.20092.
Authors' code: price112/Attentive-Convolution, MIT (models/AttNet.py). Theirs projects the whole map and pools it;
pooling comes first here, which is the same and spares a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, RmsNorm2d
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
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.fusion import ConvBN
from vistrain.layers.norms import LayerNorm2d

# Authors' names -> ours. Theirs keep downsampling apart from the stages, the stem first.
AUTHORS = KeyMap(
    name="AttNet",
    marker=r"^downsample_layers\.0\.0\.0\.",
    rules=(
        (r"^downsample_layers\.0\.(\d)\.0\.", r"stem.\1.conv."),
        (r"^downsample_layers\.0\.(\d)\.1\.", r"stem.\1.bn."),
        (r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.conv."),
        (r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.bn."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.layer_scale_([12])\.gamma$", r".gamma\1"),
        (r"\.norm_([12])\.", r".norm\1."),
        (r"\.norm_layer\.", ".norm."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)


class ATConv(nn.Module):
    """A depthwise convolution with a kernel for each image and channel, generated from the map (section 3.2).

    The map is pooled along its rows, one after the other, into as many averages as the kernel has cells: faithfully so,
    though which cells an average is of depends on the map's size. A share of the kernel's mean, learnt for each
    channel, is taken off it.

    Args:
        dim: channels.
        kernel_size: side of the kernels, odd.
        bias: whether projections have one.
    """

    def __init__(self, dim: int, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.kernel_proj = nn.Conv2d(dim, dim, 1, bias=bias)
        self.kernel_gen = nn.Linear(kernel_size**2, kernel_size**2, bias=bias)
        self.x_proj = nn.Conv2d(dim, dim, 1, bias=bias)
        self.proj = nn.Conv2d(dim, dim, 1, bias=bias)
        self.difference_control = nn.Parameter(torch.zeros(dim))

    def kernels(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, k * k]`."""
        pooled = F.adaptive_avg_pool1d(x.flatten(2), self.kernel_size**2)
        kernels = self.kernel_gen(F.gelu(self.kernel_proj(pooled[:, :, None])[:, :, 0]))
        return kernels - self.difference_control.sigmoid()[:, None] * kernels.mean(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        kernels, x = self.kernels(x), self.x_proj(x)
        batch, dim, height, width = x.shape
        kernels = kernels.reshape(-1, 1, self.kernel_size, self.kernel_size).to(x.dtype)
        x = x.reshape(1, -1, height, width)
        x = F.conv2d(x, kernels, padding=self.kernel_size // 2, groups=x.shape[1])
        return self.proj(x.view(batch, dim, height, width))


class ConvGLU2d(nn.Module):
    """A gated MLP: `fc2(norm(GELU(conv(a)) * b))`, (a, b) the halves of fc1.

    Args:
        dim: channels of input and output.
        hidden: channels of each half.
        dconv: whether the gate sees its neighbours, by a 3x3 convolution of each channel.
        norm: whether the product is divided by its root mean square over the channels.
    """

    def __init__(self, dim: int, hidden: int, dconv: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 2 * hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if dconv else nn.Identity()
        self.norm = RmsNorm2d(hidden, eps=1e-6) if norm else nn.Identity()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        gate, value = self.fc1(x).chunk(2, 1)
        return self.fc2(self.norm(F.gelu(self.dwconv(gate)) * value))


class AttNetBlock(nn.Module):
    """ATConv and a gated MLP, each on normalised cells, scaled and added to what came in.

    Args:
        dim: channels.
        kernel_size, conv_bias: see `ATConv`.
        exp_rate: hidden channels of the MLP by channels, before the gate's share.
        glu_dconv, glu_norm: see `ConvGLU2d`.
        layer_scale: initial factor of both branches, learnt for each channel; None for no factors.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        conv_bias: bool = True,
        exp_rate: float = 4.0,
        glu_dconv: bool = True,
        glu_norm: bool = True,
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.token_mixer = ATConv(dim, kernel_size, conv_bias)
        self.channel_mixer = ConvGLU2d(dim, int(2 * int(dim * exp_rate) / 3), glu_dconv, glu_norm)
        value = layer_scale
        self.gamma1, self.gamma2 = (None if value is None else nn.Parameter(torch.full((dim,), value)) for _ in "12")
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        mixed = self.token_mixer(self.norm1(x))
        x = x + self.drop_path(mixed if self.gamma1 is None else self.gamma1[:, None, None] * mixed)
        changed = self.channel_mixer(self.norm2(x))
        return x + self.drop_path(changed if self.gamma2 is None else self.gamma2[:, None, None] * changed)


class AttNet(StagedBackbone):
    """AttNet (arXiv 2510.20092, section 3.3).

    Args:
        in_chans: channels of the images.
        depths, dims: blocks and channels of each stage.
        exp_rates: hidden channels of the MLPs by channels, before the gate's share, for each stage.
        kernel_sizes: of the ATConvs of each stage.
        conv_bias: whether projections of ATConv have a bias.
        use_layer_scale: whether branches have factors that are learnt, 1e-6 at first.
        glu_dconv, glu_norm: see `ConvGLU2d`, for each stage.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    pool_first = True

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (3, 3, 16, 3),
        dims: Sequence[int] = (64, 128, 288, 512),
        exp_rates: Sequence[float] = (8, 8, 4, 4),
        kernel_sizes: Sequence[int] = (3, 3, 3, 3),
        conv_bias: bool = True,
        use_layer_scale: bool = True,
        glu_dconv: Sequence[bool] = (True, True, True, True),
        glu_norm: Sequence[bool] = (True, True, True, True),
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        scale = 1e-6 if use_layer_scale else None
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            shape = (dims[i], kernel_sizes[i], conv_bias, exp_rates[i], glu_dconv[i], glu_norm[i], scale)
            down = ConvBN(dims[i - 1], dims[i], 3, 2) if i else nn.Identity()
            stages.append(Stage(down, [AttNetBlock(*shape, drop_path=rate) for rate in rates], channels_last=False))
        stem = nn.Sequential(ConvBN(in_chans, dims[0] // 2, 3, 2), nn.GELU(), ConvBN(dims[0] // 2, dims[0], 3, 2))
        norm = LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem, stages, norm, channels=dims, strides=(4, 8, 16, 32), **base)
        initialise(self, convolutions="truncated")

    def no_weight_decay(self) -> set[str]:
        """What says how much of the kernels' means is taken off."""
        return {name for name, _ in self.named_parameters() if name.endswith(".difference_control")}


PUBLISHED = {
    "attnet_xxs": Published(2.86),
    "attnet_xs": Published(5.56),
    "attnet_s": Published(7.69),
    "attnet_t1": Published(13.71),
    "attnet_t2": Published(27.01, None, 84.4),
    "attnet_t3": Published(49.18),
    "attnet_t4": Published(87.32),
}
_CODE = "https://github.com/price112/Attentive-Convolution"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2510.20092", _CODE, "mit", "stem.0.conv", crop_pct=0.875) for name in PUBLISHED}
)
_PLAIN: dict[str, Any] = {"glu_norm": (False, False, False, False)}


def _attnet(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(AttNet, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def attnet_xxs(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AttNet-XXS, without layer scale and norms in its MLPs."""
    variant = {"depths": (2, 2, 4, 2), "dims": (32, 64, 128, 240), "use_layer_scale": False, **_PLAIN}
    return _attnet("attnet_xxs", pretrained, variant, kwargs)


@register_model
def attnet_xs(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AttNet-XS, without norms in its MLPs; faithfully with layer scale."""
    variant = {"depths": (2, 2, 7, 2), "dims": (40, 80, 160, 320), **_PLAIN}
    return _attnet("attnet_xs", pretrained, variant, kwargs)


@register_model
def attnet_s(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AttNet-S, without layer scale and norms in its MLPs."""
    variant = {"depths": (2, 3, 10, 3), "dims": (40, 80, 160, 320), "use_layer_scale": False, **_PLAIN}
    return _attnet("attnet_s", pretrained, variant, kwargs)


@register_model
def attnet_t1(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AttNet-T1."""
    return _attnet("attnet_t1", pretrained, {"depths": (2, 3, 12, 3), "dims": (48, 96, 224, 384)}, kwargs)


@register_model
def attnet_t2(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AttNet-T2."""
    return _attnet("attnet_t2", pretrained, {}, kwargs)


@register_model
def attnet_t3(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AttNet-T3."""
    return _attnet("attnet_t3", pretrained, {"depths": (4, 4, 26, 4), "dims": (72, 144, 320, 576)}, kwargs)


@register_model
def attnet_t4(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AttNet-T4."""
    return _attnet("attnet_t4", pretrained, {"depths": (5, 5, 28, 5), "dims": (96, 192, 384, 768)}, kwargs)
