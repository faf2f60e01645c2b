"""SpaRTAN: convolutions of two reaches over cells, and channels that are turned in pairs by the strongest of them.

SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition, arXiv 2507.10999. Authors' code:
henry-pay/SpaRTAN, Apache-2.0 (src/model/spartan.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.fusion import ConvBN

# Authors' names -> ours, but for places in their one list of blocks and downsamplings, which `_places` tells.
AUTHORS = KeyMap(
    name="SpaRTAN",
    marker=r"^layers\.0\.smixer\.",
    rules=(
        (r"^conv\.0\.", "stem.0."),
        (r"^conv\.1\.", "stem.2."),
        (r"^linear\.", "head."),
        (r"\.norm_([12])\.", r".norm\1."),
        (r"\b(h_conv|conv|l_conv\.1|stem\.\d|layers\.\d+)\.norm\.", r"\1.bn."),
        (r"\.l_conv\.0\.conv\.", ".l_conv.0."),
    ),
)
_convert = converter(AUTHORS)


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under our names; factors of channels are `[C]` here."""
    state = _convert(weights, model)
    if not any(key.startswith("layers.") for key in state):
        return state
    places = _places(state)
    return {
        places(key): v.flatten() if key.endswith((".gamma", ".scale_1", ".scale_2")) else v for key, v in state.items()
    }


def _places(state: dict[str, Tensor]) -> Callable[[str], str]:
    """Where `layers.7.` of theirs stands here: what has no mixers is the downsampling before a stage."""
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    names, stage, block = [], 0, 0
    for i in range(count):
        if any(key.startswith(f"layers.{i}.smixer.") for key in state):
            names.append(f"stages.{stage}.blocks.{block}")
            block += 1
        else:
            stage, block = stage + 1, 0
            names.append(f"stages.{stage}.downsample.0")
    return lambda key: re.sub(r"^layers\.(\d+)", lambda found: names[int(found[1])], key)


def _conv(dim: int, groups: int, dilation: int = 1) -> nn.Module:
    """A 3x3 convolution, batch norm and GELU: `[B, C, H, W]` -> `[B, C, H, W]`."""
    return ConvBN(dim, dim, 3, groups=groups, dilation=dilation, eps=1e-6)


class SELayer(nn.Module):
    """Squeeze and excitation.

    Args:
        dim: channels.
        hidden: channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x * self.expand(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class SMixer(nn.Module):
    """Mixes cells by a near and a far convolution, of a map whose differences from its mean are raised (section 3.2).

    Args:
        dim: channels, a multiple of 8.
        depthwise: whether the convolutions are of each channel.
    """

    def __init__(self, dim: int, depthwise: bool) -> None:
        super().__init__()
        half = dim // 2
        groups = half if depthwise else 1
        self.gamma = nn.Parameter(torch.full((half,), 1e-5))
        self.proj_in = nn.Conv2d(dim, half, 1)
        self.h_conv = _conv(half, groups)
        far = nn.Conv2d(half, half, 3, padding=2, dilation=2, groups=groups, bias=False)
        self.l_conv = nn.Sequential(far, _conv(half, groups, 2))
        self.h_attn, self.l_attn = SELayer(half, half // 4), SELayer(half, half // 4)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        x = self.proj_in(x)
        x = x + self.gamma[:, None, None] * (x - x.mean((2, 3), keepdim=True))
        near, far = self.h_attn(F.gelu(self.h_conv(x))), self.l_attn(F.gelu(self.l_conv(x)))
        return self.proj_out(torch.cat([near, far], 1))


class CMixer(nn.Module):
    """Mixes channels: a gated expansion, to which that of a cell's largest channel is added (section 3.3).

    Neighbouring channels are then turned and scaled as complex numbers, before a convolution.

    Args:
        dim: channels, a multiple of 4.
        expand_ratio: channels of the expansion by channels.
        pairs: whether the convolution is of `expand_ratio` channels at once, and not of each.
    """

    def __init__(self, dim: int, expand_ratio: int, pairs: bool) -> None:
        super().__init__()
        hidden = dim * expand_ratio
        self.theta, self.proj = nn.Conv2d(dim, hidden, 1), nn.Conv2d(dim, hidden, 1)
        self.complex = nn.Parameter(torch.randn(1, 1, 1, hidden // 2, 2))
        self.conv = _conv(hidden, dim if pairs else hidden)
        self.attn = SELayer(hidden, dim // 4)
        self.proj_out = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        largest = x.argmax(1, keepdim=True)  # counted in the input's channels, and taken from the expansion's
        theta, weight = F.gelu(self.theta(x)), self.proj(x)
        feature = weight * theta + weight.gather(1, largest) * theta.gather(1, largest)
        real, imaginary = feature.unflatten(1, (-1, 2)).unbind(2)
        a, b = self.complex.flatten(0, 3)[:, :, None, None].unbind(1)
        parts = (torch.addcmul(real * a, imaginary, -b), torch.addcmul(real * b, imaginary, a))
        del theta, weight, feature  # as large as what follows
        turned = torch.stack(parts, 2).flatten(1, 2)
        return self.proj_out(self.attn(F.gelu(self.conv(turned))))


class SpaRTANBlock(nn.Module):
    """Mixes cells, then channels, each on a normalised map, scaled and added to what came in.

    Args:
        dim: channels.
        expand_ratio: see `CMixer`.
        depthwise: convolutions of the first mixer are of each channel, those of the second in groups.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(self, dim: int, expand_ratio: int, depthwise: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, dim, 1e-6), nn.GroupNorm(1, dim, 1e-6)
        self.smixer, self.cmixer = SMixer(dim, depthwise), CMixer(dim, expand_ratio, depthwise)
        self.scale_1, self.scale_2 = (nn.Parameter(torch.full((dim,), 1e-5)) for _ in "12")
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        x = x + self.drop_path(self.scale_1[:, None, None] * self.smixer(self.norm1(x)))
        return x + self.drop_path(self.scale_2[:, None, None] * self.cmixer(self.norm2(x)))


class SpaRTAN(StagedBackbone):
    """SpaRTAN (arXiv 2507.10999, figure 2). Convolutions of the first half of the stages are dense.

    Args:
        in_chans: channels of the images.
        layer_depths: blocks of each stage.
        expand_ratios: see `CMixer`, for each stage.
        init_dim, dims: channels of the first stage, and of the others.
        drop_path_rate: grows evenly from 0 at the first block, and would be reached after the last, faithfully.
        base: see `StagedBackbone`.
    """

    smallest_side = 29  # what two convolutions with padding and three without leave a cell of

    def __init__(
        self,
        in_chans: int = 3,
        layer_depths: Sequence[int] = (3, 3, 12, 2),
        expand_ratios: Sequence[int] = (4, 4, 2, 2),
        init_dim: int = 32,
        dims: Sequence[int] = (64, 128, 256),
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        widths, total = [init_dim, *dims], sum(layer_depths)
        stages = []
        for i, rates in enumerate(drop_path_rates(layer_depths, drop_path_rate * (total - 1) / total)):
            shape = (widths[i], expand_ratios[i], i >= len(layer_depths) // 2)
            down = nn.Sequential(ConvBN(widths[i - 1], widths[i], 2, 2, padding=0, eps=1e-6), nn.SiLU())
            blocks = [SpaRTANBlock(*shape, drop_path=rate) for rate in rates]
            stages.append(Stage(down if i else nn.Identity(), blocks, channels_last=False))
        half = init_dim // 2
        stem = nn.Sequential(
            ConvBN(in_chans, half, 3, 2, eps=1e-6), nn.GELU(), ConvBN(half, init_dim, 3, 2, eps=1e-6), nn.GELU()
        )
        super().__init__(stem, stages, nn.Identity(), channels=widths, strides=(4, 8, 16, 32), **base)
        initialise(self, convolutions="fan_out")


# The one variant whose configuration the authors have published.
PUBLISHED = {"spartan_s": Published(3.8, 1.0, 77.7, size=256)}
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg(
            "2507.10999", "https://github.com/henry-pay/SpaRTAN", "apache-2.0", "stem.0.conv", size=row.size
        )
        for name, row in PUBLISHED.items()
    }
)


@register_model
def spartan_s(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """SpaRTAN-S."""
    return build_variant(SpaRTAN, "spartan_s", pretrained, checkpoint_filter_fn, kwargs)
