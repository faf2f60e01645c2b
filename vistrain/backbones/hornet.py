"""HorNet: convolutions that gate one another recursively, in place of attention.

HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions, arXiv 2207.14284.
Authors' code: raoyongming/HorNet, MIT (hornet.py; the dense codes add a norm to each map: `output_norm_eps=1e-6`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
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

# Authors' names -> ours. Theirs keep downsampling apart from the stages, the stem first.
AUTHORS = KeyMap(
    name="HorNet",
    marker=r"^downsample_layers\.",
    rules=(
        (r"^stages\.(\d+)\.", r"stages.\1.blocks."),
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [f"norm{i}" for i in range(4)])


class GlobalLocalFilter(nn.Module):
    """A 3x3 convolution of one half of the channels, a filter as large as the map of the other (section 3.3).

    Args:
        dim: channels, even.
        size: (h, w) of the filter in the frequencies of a real Fourier transform: of maps of h x 2 (w - 1) cells, or
            one column more. On other maps it is resized between frequencies, bilinearly with corners aligned.
    """

    def __init__(self, dim: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, bias=False, groups=dim // 2)
        self.complex_weight = nn.Parameter(trunc_normal_(torch.empty(dim // 2, *size, 2), std=0.02))
        self.pre_norm = LayerNorm2d(dim)
        self.post_norm = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`; even channels come from the convolution, odd ones from the filter."""
        near, far = self.pre_norm(x).chunk(2, 1)
        spectrum = torch.fft.rfft2(far.float(), norm="ortho")  # transforms know no half precision
        size = (spectrum.shape[2], spectrum.shape[3])
        weight = self.complex_weight.float()
        if weight.shape[1:3] != size:
            weight = F.interpolate(weight.permute(3, 0, 1, 2), size, mode="bilinear", align_corners=True)
            weight = weight.permute(1, 2, 3, 0).contiguous()
        far = torch.fft.irfft2(spectrum * torch.view_as_complex(weight), (x.shape[2], x.shape[3]), norm="ortho")
        near = self.dw(near)
        return self.post_norm(torch.stack((near, far.to(near.dtype)), 2).flatten(1, 2))


class GatedConv(nn.Module):
    """Recursive gated convolution, gnConv (section 3.1): a product of `order` spatially mixed maps, from thin to wide.

    Args:
        dim: channels C, a multiple of `2 ** (order - 1)`.
        order: of the spatial interaction, n.
        scale: of the spatially mixed maps, 1 / alpha in equation 3.7.
        filter_size: of a `GlobalLocalFilter`; None mixes by a 7x7 convolution of each channel.
    """

    def __init__(self, dim: int, order: int, scale: float, filter_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.dims = [dim // 2**i for i in reversed(range(order))]
        self.scale = scale
        mixed = sum(self.dims)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv: nn.Module = (
            nn.Conv2d(mixed, mixed, 7, padding=3, groups=mixed)
            if filter_size is None
            else GlobalLocalFilter(mixed, filter_size)
        )
        self.pws = nn.ModuleList(nn.Conv2d(a, 2 * a, 1) for a in self.dims[:-1])
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        x, mixed = self.proj_in(x).split((self.dims[0], sum(self.dims)), 1)
        first, *gates = (self.dwconv(mixed) * self.scale).split(self.dims, 1)
        x = x * first
        for widen, gate in zip(self.pws, gates, strict=True):
            x = widen(x) * gate
        return self.proj_out(x)


class HorBlock(nn.Module):
    """A gated convolution and an MLP, each on normalised cells, scaled and added to what came in (figure 2).

    Args:
        dim: channels.
        order, scale, filter_size: see `GatedConv`.
        layer_scale_init_value: initial factor of both branches, learnt for each channel; 0 for no factors.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        order: int,
        scale: float,
        filter_size: tuple[int, int] | None = None,
        layer_scale_init_value: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.gnconv = GatedConv(dim, order, scale, filter_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        value = layer_scale_init_value
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), value)) if value > 0 else None for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        mixed = self.gnconv(self.norm1(x))
        x = x + self.drop_path(mixed if self.gamma1 is None else self.gamma1[:, None, None] * mixed)
        changed = self.pwconv2(self.act(self.pwconv1(self.norm2(x.permute(0, 2, 3, 1)))))
        changed = changed if self.gamma2 is None else self.gamma2 * changed
        return x + self.drop_path(changed.permute(0, 3, 1, 2))


class HorNet(StagedBackbone):
    """HorNet (arXiv 2207.14284, section 3.2).

    Args:
        in_chans: channels of the images.
        base_dim: channels of the first stage; they double from stage to stage.
        depths: blocks of each stage.
        orders: of the gated convolutions of each stage.
        scale: see `GatedConv`.
        filter_sizes: of the filters of each stage, see `GlobalLocalFilter`; None for a 7x7 convolution.
        layer_scale_init_value: see `HorBlock`.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    pool_first = True
    smallest_side = 32

    def __init__(
        self,
        in_chans: int = 3,
        base_dim: int = 64,
        depths: Sequence[int] = (2, 3, 18, 2),
        orders: Sequence[int] = (2, 3, 4, 5),
        scale: float = 1 / 3,
        filter_sizes: Sequence[tuple[int, int] | None] = (None, None, None, None),
        layer_scale_init_value: float = 1e-6,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        dims = [base_dim * 2**i for i in range(4)]
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            shape = (dims[i], orders[i], scale, filter_sizes[i], layer_scale_init_value)
            down = nn.Sequential(LayerNorm2d(dims[i - 1]), nn.Conv2d(dims[i - 1], dims[i], 2, 2))
            blocks = [HorBlock(*shape, drop_path=rate) for rate in rates]
            stages.append(Stage(down if i else nn.Identity(), blocks, channels_last=False))
        super().__init__(
            nn.Sequential(nn.Conv2d(in_chans, base_dim, 4, 4), LayerNorm2d(base_dim)),
            stages,
            LayerNorm2d(dims[-1]),
            channels=dims,
            strides=(4, 8, 16, 32),
            **base,
        )
        initialise(self, convolutions="truncated")


PUBLISHED = {
    "hornet_tiny_7x7": Published(22, 4.0, 82.8),
    "hornet_tiny_gf": Published(23, 3.9, 83.0),
    "hornet_small_7x7": Published(50, 8.8, 83.8),
    "hornet_small_gf": Published(50, 8.7, 84.0),
    "hornet_base_7x7": Published(87, 15.6, 84.2),
    "hornet_base_gf": Published(88, 15.5, 84.3),
    # They print 209, 211 and 216 million of the large ones, with the 10450 classes of ImageNet-21k-P: 14.5 of them.
    "hornet_large_7x7": Published(194.5, 34.8),
    "hornet_large_gf": Published(196.3, 34.7),
    "hornet_large_gf_img384": Published(201.8, 101.8, size=384),
}
_CODE = "https://github.com/raoyongming/HorNet"
_CROP: dict[int, dict[str, Any]] = {224: {"crop_pct": 0.875}, 384: {"crop_pct": 1.0, "crop_mode": "squash"}}
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2207.14284", _CODE, "mit", size=row.size, **_CROP[row.size]) for name, row in PUBLISHED.items()}
)

# Filters for maps of 14 and 7 cells (images of 224 pixels), and of 24 and 12 (384).
_GF_224: dict[str, Any] = {"filter_sizes": (None, None, (14, 8), (7, 4))}
_GF_384: dict[str, Any] = {"filter_sizes": (None, None, (24, 13), (12, 7))}


def _hornet(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(HorNet, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def hornet_tiny_7x7(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-T with 7x7 convolutions."""
    return _hornet("hornet_tiny_7x7", pretrained, {"base_dim": 64}, kwargs)


@register_model
def hornet_tiny_gf(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-T with global filters in the last two stages."""
    return _hornet("hornet_tiny_gf", pretrained, {"base_dim": 64, **_GF_224}, kwargs)


@register_model
def hornet_small_7x7(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-S with 7x7 convolutions."""
    return _hornet("hornet_small_7x7", pretrained, {"base_dim": 96}, kwargs)


@register_model
def hornet_small_gf(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-S with global filters in the last two stages."""
    return _hornet("hornet_small_gf", pretrained, {"base_dim": 96, **_GF_224}, kwargs)


@register_model
def hornet_base_7x7(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-B with 7x7 convolutions."""
    return _hornet("hornet_base_7x7", pretrained, {"base_dim": 128}, kwargs)


@register_model
def hornet_base_gf(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-B with global filters in the last two stages."""
    return _hornet("hornet_base_gf", pretrained, {"base_dim": 128, **_GF_224}, kwargs)


@register_model
def hornet_large_7x7(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-L with 7x7 convolutions."""
    return _hornet("hornet_large_7x7", pretrained, {"base_dim": 192}, kwargs)


@register_model
def hornet_large_gf(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-L with global filters in the last two stages."""
    return _hornet("hornet_large_gf", pretrained, {"base_dim": 192, **_GF_224}, kwargs)


@register_model
def hornet_large_gf_img384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """HorNet-L with global filters in the last two stages, for images of 384 pixels."""
    return _hornet("hornet_large_gf_img384", pretrained, {"base_dim": 192, **_GF_384}, kwargs)
