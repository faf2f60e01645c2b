"""FFNet: a network of MLPs alone, those that mix cells convolutional (MetaMixer with its modules so).

MetaMixer Is All You Need, arXiv 2406.02021. Authors' code: ysj9909/FFNet, Apache-2.0 (models/ffnet.py; their dense code
has a norm for each map, which `Backbone(output_norm_eps=1e-6)` has here). Printed sizes are those after `fuse()`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, SqueezeExcite
from timm.models import generate_default_cfgs
from torch import Tensor, nn

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

# Authors' names -> ours. Downsampling is the first block of a stage there.
AUTHORS = KeyMap(
    name="FFNet",
    marker=r"^stages\.\d\.\d+\.token_mixer\.",
    rules=(
        (r"^patch_embed\.", "stem."),
        (r"^stages\.([123])\.0\.proj\.0\.", r"stages.\1.downsample.0."),
        (r"^stages\.([123])\.0\.proj\.1\.conv\.", r"stages.\1.downsample.1."),
        (r"^stages\.0\.(\d+)\.", r"stages.0.blocks.\1."),
        *((rf"^stages\.([123])\.{n}\.(token|channel)_", rf"stages.\1.blocks.{n - 1}.\2_") for n in range(1, 64)),
        (r"\.token_mixer\.1\.", ".se."),
        (r"\.token_mixer\.0\.", ".token_mixer."),
        (r"\.(conv[12]|conv|downsample\.0)\.conv\.(?=c\.|bn\.)", r".\1.branches.large."),
        (r"\.(conv[12]|conv|downsample\.0)\.conv1\.(?=c\.|bn\.)", r".\1.branches.small."),
        (r"\.c\.(?=weight$)", ".conv."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [f"norm{i}" for i in range(4)])


def _depthwise(dim: int, out: int, kernel_size: int, stride: int = 1) -> nn.Module:
    """A 7x7 convolution of each channel beside a 3x3 one."""
    small = kernel_size // 2
    branches = {"large": ConvBN(dim, out, kernel_size, stride, dim), "small": ConvBN(dim, out, small, stride, dim)}
    return ParallelConvs(branches)


class TokenMixer(nn.Module):
    """An MLP whose layers are convolutions of each channel: keys and values of all cells (section 3.2, figure 3).

    Args:
        dim: channels.
        kernel_sizes: of the two convolutions; those of 7 cells have batch norms, others a bias.
        gelu: between them GELU, otherwise ReLU.
    """

    def __init__(self, dim: int, kernel_sizes: tuple[int, int], gelu: bool = True) -> None:
        super().__init__()
        self.fc = ConvBN(dim, dim)
        self.conv1, self.conv2 = (
            _depthwise(dim, dim, k) if k == 7 else nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim)
            for k in kernel_sizes
        )
        self.act = nn.GELU() if gelu else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.conv2(self.act(self.conv1(self.fc(x))))


def _channel_mixer(dim: int, kernel_size: int, expansion_ratio: float, gelu: bool) -> nn.Module:
    """An MLP after a convolution of each channel: `[B, C, H, W]` -> `[B, C, H, W]`."""
    hidden = int(dim * expansion_ratio)
    conv = _depthwise(dim, dim, 7) if kernel_size == 7 else ConvBN(dim, dim, kernel_size, groups=dim)
    act = nn.GELU() if gelu else nn.ReLU()
    return nn.Sequential(OrderedDict(conv=conv, fc1=nn.Conv2d(dim, hidden, 1), act=act, fc2=nn.Conv2d(hidden, dim, 1)))


class Scaled(nn.Module):
    """A branch that is added to what came in.

    Args:
        main: `[B, C, H, W]` -> `[B, C, H, W]`.
        dim: channels.
        layer_scale: initial factor of the branch, learnt for each channel; None for no factors.
        drop_path: probability that the branch is left out of a sample in training.
    """

    def __init__(self, main: nn.Module, dim: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.main = main
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((dim, 1, 1), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        y = self.main(x)
        return x + self.drop_path(y if self.layer_scale is None else y * self.layer_scale)


class FFBlock(nn.Module):
    """An MLP over cells and one over channels (figure 3).

    Args:
        dim: channels.
        kernel_sizes: of the token mixer's two convolutions and of the channel mixer's.
        expansion_ratio: hidden channels of the channel mixer by channels.
        gelu: activations are GELU, otherwise ReLU.
        excite: squeeze and excitation between the two.
        layer_scale, drop_path: see `Scaled`.
    """

    def __init__(
        self,
        dim: int,
        kernel_sizes: tuple[int, int, int],
        expansion_ratio: float = 3.0,
        gelu: bool = True,
        excite: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        first, second, third = kernel_sizes
        self.token_mixer = Scaled(TokenMixer(dim, (first, second), gelu), dim, layer_scale, drop_path)
        self.se = SqueezeExcite(dim, 0.25) if excite else nn.Identity()
        self.channel_mixer = Scaled(_channel_mixer(dim, third, expansion_ratio, gelu), dim, layer_scale, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.channel_mixer(self.se(self.token_mixer(x)))


class SkippedConv(Fusible):
    """A batch norm and a 1x1 convolution without bias, added to what came in.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x + self.conv(self.bn(x))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """One 1x1 convolution with a bias."""
        scale, shift = affine_of(self.bn)
        kernel = self.conv.weight[:, :, 0, 0]
        made = nn.Conv2d(len(kernel), len(kernel), 1, device=kernel.device, dtype=kernel.dtype)
        weight = kernel * scale + torch.eye(len(kernel), device=kernel.device, dtype=kernel.dtype)
        made.weight.copy_(weight[:, :, None, None])
        assert made.bias is not None
        made.bias.copy_(kernel @ shift)
        return made.eval()


class FFNet(StagedBackbone):
    """FFNet (arXiv 2406.02021, section 3.3).

    Args:
        in_chans: channels of the images.
        embed_dim: channels of each stage.
        in_dim: channels within the stem.
        depth: blocks of each stage.
        kernel_sizes: of the channel mixers' convolutions, for each stage.
        kernel_sizes1, kernel_sizes2: of the token mixers' first and second.
        use_gelus: GELU, otherwise ReLU, in each stage.
        use_ses: squeeze and excitation in every second block, from the first on, of each stage.
        expansion_ratios: hidden channels of the channel mixers by channels, for each stage.
        use_layer_scale, layer_scale_init_value: whether branches have factors that are learnt, and their start.
        layer_norm_last: the last norm is a layer norm instead of a batch norm.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: Sequence[int] = (64, 128, 320, 512),
        in_dim: int = 64,
        depth: Sequence[int] = (1, 2, 14, 2),
        kernel_sizes: Sequence[int] = (7, 7, 7, 7),
        kernel_sizes1: Sequence[int] = (3, 3, 7, 7),
        kernel_sizes2: Sequence[int] = (3, 3, 7, 7),
        use_gelus: Sequence[bool] = (True, True, True, True),
        use_ses: Sequence[bool] = (False, False, False, False),
        expansion_ratios: Sequence[float] = (3, 3, 3, 3),
        use_layer_scale: bool = False,
        layer_scale_init_value: float = 1e-5,
        layer_norm_last: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        stem = nn.Sequential(ConvBN(in_chans, in_dim, 3, 2), nn.GELU(), ConvBN(in_dim, embed_dim[0], 3, 2))
        scale = layer_scale_init_value if use_layer_scale else None
        stages = []
        for i, rates in enumerate(drop_path_rates(depth, drop_path_rate)):
            dim, kernels = embed_dim[i], (kernel_sizes1[i], kernel_sizes2[i], kernel_sizes[i])
            blocks = [
                FFBlock(
                    dim,
                    kernels,
                    expansion_ratios[i],
                    use_gelus[i],
                    use_ses[i] and index % 2 == 0,
                    scale,
                    drop_path=rate,
                )
                for index, rate in enumerate(rates)
            ]
            down = nn.Sequential(_depthwise(embed_dim[i - 1], dim, 7, 2), SkippedConv(dim)) if i else nn.Identity()
            stages.append(Stage(down, blocks, channels_last=False))
        norm = LayerNorm2d(embed_dim[-1]) if layer_norm_last else nn.BatchNorm2d(embed_dim[-1])
        super().__init__(stem, stages, norm, channels=embed_dim, strides=(4, 8, 16, 32), **base)
        initialise(self, convolutions="truncated")


PUBLISHED = {
    "ffnet_1": Published(13.7, 2.9, 81.3, size=256, fused=True),
    "ffnet_2": Published(26.9, 6.0, 82.9, size=256, fused=True),
    "ffnet_3": Published(48.3, 10.1, 83.9, size=256, fused=True),
    "ffnet_4": Published(79.2, 43.1, 85.3, size=384, fused=True),
}
_CODE = "https://github.com/ysj9909/FFNet"
_CROP = {"ffnet_1": 0.9, "ffnet_2": 0.9, "ffnet_3": 0.95, "ffnet_4": 0.95}
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2406.02021", _CODE, "apache-2.0", "stem.0.conv", size=row.size, crop_pct=_CROP[name])
        for name, row in PUBLISHED.items()
    }
)
_SCALED: dict[str, Any] = {"use_layer_scale": True, "layer_scale_init_value": 1e-6}


def _ffnet(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(FFNet, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def ffnet_1(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FFNet-1."""
    variant = {"depth": (2, 2, 8, 2), "embed_dim": (80, 160, 320, 640), "kernel_sizes": (3, 3, 3, 3)}
    return _ffnet("ffnet_1", pretrained, variant, kwargs)


@register_model
def ffnet_2(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FFNet-2."""
    return _ffnet("ffnet_2", pretrained, {"depth": (3, 3, 15, 3), "embed_dim": (88, 176, 352, 704)}, kwargs)


@register_model
def ffnet_3(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FFNet-3."""
    variant = {"depth": (4, 4, 22, 5), "embed_dim": (96, 192, 384, 768), **_SCALED}
    return _ffnet("ffnet_3", pretrained, variant, kwargs)


@register_model
def ffnet_4(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """FFNet-4, for images of 384 pixels."""
    variant = {"depth": (4, 4, 27, 3), "embed_dim": (128, 256, 512, 1024), **_SCALED}
    return _ffnet("ffnet_4", pretrained, variant, kwargs)
