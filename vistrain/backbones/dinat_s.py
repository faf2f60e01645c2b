"""DiNAT_s: Swin with neighbourhoods in place of windows, and dilation in place of shifts.

Dilated Neighborhood Attention Transformer, arXiv 2209.15001, section 4. Authors' code:
SHI-Labs/Neighborhood-Attention-Transformer, MIT (classification/dinats.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones.nat import AT_224, AT_384, alternate, checkpoint_filter_fn, nat_stages
from vistrain.backbones.staged import Published, StagedBackbone, build_variant, default_cfg, initialise, register_model
from vistrain.layers.norms import LayerNorm2d


class PatchEmbed(nn.Module):
    """Patches as tokens, as in Swin: `[B, 3, H, W]` -> `[B, C, ceil(H / p), ceil(W / p)]`.

    Args:
        patch_size: p; images are padded with zeros to a multiple of it at the bottom and right.
        in_chans: channels of the images.
        embed_dim: C.
        patch_norm: whether a norm follows.
        drop: dropout of tokens.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, patch_norm: bool, drop: float) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.norm = LayerNorm2d(embed_dim, eps=1e-5) if patch_norm else nn.Identity()
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_chans, H, W]` -> `[B, C, ceil(H / p), ceil(W / p)]`."""
        bottom, right = (-side % self.patch_size for side in x.shape[2:])
        return self.drop(self.norm(self.proj(F.pad(x, (0, right, 0, bottom)))))


class PatchMerging(nn.Module):
    """Four tokens to one, as in Swin: `[B, C, H, W]` -> `[B, 2C, ceil(H / 2), ceil(W / 2)]`.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, 2C, ceil(H / 2), ceil(W / 2)]`."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = torch.cat([x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)
        return self.reduction(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class DiNATs(StagedBackbone):
    """DiNAT_s: Swin with neighbourhoods for windows and dilation for shifts (2209.15001, section 4).

    Args:
        patch_size: side of the patches that become tokens, in pixels.
        patch_norm: whether tokens are normalised at once.
        in_chans, embed_dim, depths, num_heads, kernel_size, dilations, mlp_ratio, qkv_bias, qk_scale: see `NAT`.
        strides, rpb: see `NAT`.
        proj_drop_rate, attn_drop_rate, drop_path_rate: see `NAT`.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        strides: Sequence[int] = (1, 1, 1, 1),
        rpb: bool = True,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        dims = [embed_dim * 2**i for i in range(len(depths))]
        attention: dict[str, Any] = {"kernel_size": kernel_size, "qkv_bias": qkv_bias, "qk_scale": qk_scale, "rpb": rpb}
        attention |= {"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate}
        shape = (dims, depths, num_heads, dilations, drop_path_rate, attention, strides, mlp_ratio)
        super().__init__(
            PatchEmbed(patch_size, in_chans, embed_dim, patch_norm, proj_drop_rate),
            nat_stages(PatchMerging, *shape),
            LayerNorm2d(dims[-1], eps=1e-5),
            channels=dims,
            strides=[patch_size * 2**i for i in range(len(depths))],
            **base,
        )
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """Tables of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}


PUBLISHED = {
    "dinat_s_tiny": Published(28, 4.5, 81.8),
    "dinat_s_small": Published(50, 8.7, 83.5),
    "dinat_s_base": Published(88, 15.4, 83.8),
    "dinat_s_large": Published(197, 34.5, 86.5),  # trained on ImageNet-22k first, as the next
    "dinat_s_large_384": Published(197, 101.5, 87.4, size=384),
}
_CODE = "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer"
default_cfgs = generate_default_cfgs(
    {
        name: default_cfg(
            "2209.15001",
            _CODE,
            "mit",
            first_conv="stem.proj",
            size=row.size,
            crop_pct=1.0 if row.size == 384 else 0.875,
        )
        for name, row in PUBLISHED.items()
    }
)

_TINY: dict[str, Any] = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
_SMALL: dict[str, Any] = {**_TINY, "depths": (2, 2, 18, 2)}
_BASE: dict[str, Any] = {**_SMALL, "embed_dim": 128, "num_heads": (4, 8, 16, 32)}
_LARGE: dict[str, Any] = {**_BASE, "embed_dim": 192}


def _dinat_s(
    name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any], largest: Sequence[int] = AT_224
) -> StagedBackbone:
    dilations = alternate(kwargs.get("depths", variant["depths"]), largest)
    return build_variant(DiNATs, name, pretrained, checkpoint_filter_fn, {"dilations": dilations, **variant, **kwargs})


@register_model
def dinat_s_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT_s-Tiny."""
    return _dinat_s("dinat_s_tiny", pretrained, _TINY, kwargs)


@register_model
def dinat_s_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT_s-Small."""
    return _dinat_s("dinat_s_small", pretrained, _SMALL, kwargs)


@register_model
def dinat_s_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT_s-Base."""
    return _dinat_s("dinat_s_base", pretrained, _BASE, kwargs)


@register_model
def dinat_s_large(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT_s-Large."""
    return _dinat_s("dinat_s_large", pretrained, _LARGE, kwargs)


@register_model
def dinat_s_large_384(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """DiNAT_s-Large for images of 384 pixels: larger dilations."""
    return _dinat_s("dinat_s_large_384", pretrained, _LARGE, kwargs, AT_384)
