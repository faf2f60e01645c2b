"""AFFNet: tokens mixed in the frequency domain, by masks that are made of the spectrum itself.

Adaptive Frequency Filters As Efficient Global Token Mixers, arXiv 2307.14008. Authors' code: microsoft/TokenMixers, MIT
(Adaptive Frequency Filters/affnet/models/classification/affnet.py and its modules). Which norm stands in its blocks is
in unpublished configurations of theirs; batch norm is an interpretation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers import DropPath, make_divisible
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

# Authors' names -> ours. Their first two layers are the stem here.
AUTHORS = KeyMap(
    name="AFFNet",
    marker=r"^conv_1\.block\.",
    rules=(
        (r"\.block\.norm\.", ".bn."),
        (r"\.block\.conv\.", ".conv."),
        (r"\.block\.(exp_1x1|conv_3x3|red_1x1)\.", r".\1."),
        (r"^conv_1\.", "stem.0."),
        (r"^layer_1\.(\d+)\.", r"stem.2.\1."),
        (r"^layer_2\.0\.", "stages.0.downsample."),
        *((rf"^layer_2\.{n}\.", f"stages.0.blocks.{n - 1}.") for n in range(1, 16)),
        *((rf"^layer_{n}\.0\.", f"stages.{n - 2}.downsample.") for n in (3, 4, 5)),
        *((rf"^layer_{n}\.1\.", f"stages.{n - 2}.blocks.0.") for n in (3, 4, 5)),
        (r"^conv_1x1_exp\.", "norm.exp."),
        (r"^classifier\.fc\.", "head."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
Norm = Literal["batch_norm_2d", "layer_norm_2d"]


class InvertedResidual(nn.Module):
    """Wide, a convolution of each channel, narrow again (MobileNetV2, arXiv 1801.04381).

    Args:
        dim, out: channels of input and output. What came in is added if they are the same, and the stride is 1.
        stride: 1 or 2.
        expand_ratio: channels between by `dim`; with 1 the first convolution is left out.
    """

    def __init__(self, dim: int, out: int, stride: int = 1, expand_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = make_divisible(round(dim * expand_ratio), 8)
        self.exp_1x1 = ConvBN(dim, hidden) if expand_ratio != 1 else None
        self.conv_3x3 = ConvBN(hidden, hidden, 3, stride, hidden)
        self.red_1x1 = ConvBN(hidden, out)
        self.adds = stride == 1 and dim == out

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', ceil(H / stride), ceil(W / stride)]`."""
        y = x if self.exp_1x1 is None else F.silu(self.exp_1x1(x))
        y = self.red_1x1(F.silu(self.conv_3x3(y)))
        return x + y if self.adds else y


class AdaptiveFrequencyFilter(nn.Module):
    """Multiplies a spectrum by a mask that two complex linear layers make of each frequency (section 3.3).

    Args:
        dim: channels.
        num_blocks: linear layers are of this many blocks of channels.
        threshold: the mask is shrunk softly by it.
    """

    def __init__(self, dim: int, num_blocks: int = 8, threshold: float = 0.01) -> None:
        super().__init__()
        self.threshold = threshold
        size = dim // num_blocks
        self.w1, self.w2 = (nn.Parameter(0.02 * torch.randn(2, num_blocks, size, size)) for _ in "12")
        self.b1, self.b2 = (nn.Parameter(0.02 * torch.randn(2, num_blocks, size)) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`, what came in included."""
        spectrum = torch.fft.rfft2(x.float(), norm="ortho")  # transforms know no half precision
        blocks = self.w1.shape[1]
        parts = [part.unflatten(1, (blocks, -1)).permute(1, 2, 0, 3, 4) for part in (spectrum.real, spectrum.imag)]
        mask = torch.cat(parts, 1)  # [blocks, 2 D, B, h, w]: weights of a block are multiplied once for all images
        shape = mask.shape[2:]
        mask = self._linear(F.silu(self._linear(mask.flatten(2), self.w1, self.b1)), self.w2, self.b2)
        mask = F.softshrink(mask, self.threshold).float().unflatten(2, shape)
        mask = torch.complex(*mask.chunk(2, 1)).permute(2, 0, 1, 3, 4).flatten(1, 2)
        filtered = torch.fft.irfft2(spectrum * mask, (x.shape[2], x.shape[3]), norm="ortho")
        return filtered.to(x.dtype) + x

    @staticmethod
    def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A complex linear layer of blocks as one product: `[blocks, 2 D, N]`, real parts first -> the same."""
        real, imaginary = weight.mT
        whole = torch.cat((torch.cat((real, -imaginary), 2), torch.cat((imaginary, real), 2)), 1)
        return whole @ x + torch.cat(tuple(bias), 1)[..., None]


def _norm(kind: Norm, dim: int) -> nn.Module:
    return nn.BatchNorm2d(dim) if kind == "batch_norm_2d" else nn.GroupNorm(1, dim)


class AFFLayer(nn.Module):
    """Channels mixed by an inverted bottleneck, tokens by a frequency filter; added to what came in (figure 2).

    Args:
        dim: channels.
        ffn_dim: channels within the bottleneck.
        attn_norm_layer: see `AFFNet`.
        drop_path: probability that the layer is left out of a sample in training.
    """

    def __init__(self, dim: int, ffn_dim: int, attn_norm_layer: Norm = "batch_norm_2d", drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = (_norm(attn_norm_layer, dim) for _ in "12")
        self.mlp = InvertedResidual(dim, dim, expand_ratio=ffn_dim / dim)
        self.filter = AdaptiveFrequencyFilter(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x + self.drop_path(self.filter(self.norm2(self.mlp(self.norm1(x)))))


class AFFBlock(nn.Module):
    """Layers, a norm and a 1x1 convolution, fused with what came in.

    Args:
        dim: channels.
        layers: each `[B, C, H, W]` -> `[B, C, H, W]`.
        attn_norm_layer: see `AFFNet`.
    """

    def __init__(self, dim: int, layers: Sequence[nn.Module], attn_norm_layer: Norm = "batch_norm_2d") -> None:
        super().__init__()
        self.global_rep = nn.Sequential(*layers, _norm(attn_norm_layer, dim))
        self.conv_proj = ConvBN(dim, dim)
        self.fusion = ConvBN(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        y = self.conv_proj(self.global_rep(x))
        return F.silu(self.fusion(torch.cat([x, y], 1)))


class AFFNet(StagedBackbone):
    """AFFNet (arXiv 2307.14008, table 1), in the layout of MobileViT.

    Args:
        in_chans: channels of the images.
        channels: of the five layers, the first of stride 2.
        ffn_dims: channels within the bottlenecks of the last three.
        depths: inverted bottlenecks of the second, and filter layers of the last three.
        expand_ratio: of the inverted bottlenecks between them.
        first_channels: of the first convolution.
        attn_norm_layer: interpretation: the norm within filter blocks, which their code leaves to configs that are not
            published. `layer_norm_2d` is over channels and cells at once, as in CVNets.
        last_layer_exp_factor: channels of what the classifier sees, by those of the last map, at most 960.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        channels: Sequence[int] = (32, 64, 128, 256, 320),
        ffn_dims: Sequence[int] = (256, 512, 640),
        depths: Sequence[int] = (3, 2, 4, 3),
        expand_ratio: float = 4.0,
        first_channels: int = 16,
        attn_norm_layer: Norm = "batch_norm_2d",
        last_layer_exp_factor: int = 4,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        def block(stage: int, rates: list[float]) -> list[nn.Module]:
            dim = channels[stage + 1]
            if stage == 0:
                return [InvertedResidual(dim, dim, 1, expand_ratio) for _ in rates[1:]]
            layers = [AFFLayer(dim, ffn_dims[stage - 1], attn_norm_layer, rate) for rate in rates]
            return [AFFBlock(dim, layers, attn_norm_layer)]

        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            down = InvertedResidual(channels[i], channels[i + 1], 2, expand_ratio)
            stages.append(Stage(down, block(i, rates), channels_last=False))
        first = nn.Sequential(InvertedResidual(first_channels, channels[0], 1, expand_ratio))
        features = min(last_layer_exp_factor * channels[-1], 960)
        last = OrderedDict(exp=ConvBN(channels[-1], features), act=nn.SiLU())
        super().__init__(
            nn.Sequential(ConvBN(in_chans, first_channels, 3, 2), nn.SiLU(), first),
            stages,
            nn.Sequential(last),
            channels=channels[1:],
            strides=(4, 8, 16, 32),
            **{"num_features": features, **base},
        )
        initialise(self)


PUBLISHED = {
    "affnet_et": Published(1.4, 0.4, 73.0, size=256),
    "affnet_t": Published(2.6, 0.8, 77.0, size=256),
    "affnet": Published(5.5, 1.5, 79.8, size=256),
}
_CODE = "https://github.com/microsoft/TokenMixers"
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2307.14008", _CODE, "mit", "stem.0.conv", size=row.size, mean=(0.0,) * 3, std=(1.0,) * 3)
        for name, row in PUBLISHED.items()
    }
)


def _affnet(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(AFFNet, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def affnet_et(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AFFNet-ET."""
    variant = {"channels": (32, 48, 64, 104, 144), "ffn_dims": (128, 208, 288), "expand_ratio": 2.0}
    return _affnet("affnet_et", pretrained, variant, kwargs)


@register_model
def affnet_t(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AFFNet-T."""
    variant = {"channels": (32, 48, 96, 160, 192), "ffn_dims": (192, 320, 384)}
    return _affnet("affnet_t", pretrained, variant, kwargs)


@register_model
def affnet(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """AFFNet."""
    return _affnet("affnet", pretrained, {}, kwargs)
