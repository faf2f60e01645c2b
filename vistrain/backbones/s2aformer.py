"""S2AFormer: convolutions and an attention that is narrow in channels and coarse in keys, by turns.

S2AFormer: Strip Self-Attention for Efficient Vision Transformer, arXiv 2505.22195. The authors have published neither
code nor weights, so no licence of theirs applies. Known are the order of a block's parts, the strides, and the stem's
three convolutions. All else is an argument that says `interpretation`, and no number of the paper is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from vistrain.attention.strip import StripSelfAttention
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

checkpoint_filter_fn = converter(KeyMap(name="S2AFormer", marker=r"^no authors' files\."))


class HybridPerceptionBlock(nn.Module):
    """A convolution of each channel, strip attention, local interaction and an MLP, each added to what came in.

    Interpretation: local interaction is a 1x1 convolution, one of each channel, GELU, and a 1x1 convolution.

    Args:
        dim: channels.
        attn: `[B, H * W, C]` and (H, W) -> `[B, H * W, C]`.
        mlp_ratio: hidden channels of the MLP by channels.
        local_kernel: of local interaction's convolution.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp_ratio: float = 4.0, local_kernel: int = 3, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.pos = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.attn = attn
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.Conv2d(dim, dim, local_kernel, padding=local_kernel // 2, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        size = (x.shape[1], x.shape[2])
        x = x + self.pos(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x).flatten(1, 2), size).unflatten(1, size))
        x = x + self.drop_path(self.local(self.norm2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.drop_path(self.mlp(self.norm3(x)))


class S2AFormer(StagedBackbone):
    """S2AFormer (arXiv 2505.22195).

    Args:
        in_chans: channels of the images.
        embed_dims, depths, num_heads: interpretation: channels, blocks and heads of each stage.
        mlp_ratios: interpretation: hidden channels of the MLPs by channels, for each stage.
        sr_ratios, qk_ratio: see `StripSelfAttention`, the former for each stage.
        local_kernel: interpretation: see `HybridPerceptionBlock`.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 3, 10, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        qk_ratio: float = 0.5,
        local_kernel: int = 3,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        half, dim = embed_dims[0] // 2, embed_dims[0]
        stem = nn.Sequential(
            ConvBN(in_chans, half, 3, 2), nn.GELU(), ConvBN(half, half, 3), nn.GELU(), ConvBN(half, half, 3)
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            dim = embed_dims[i]
            blocks = [
                HybridPerceptionBlock(
                    dim,
                    StripSelfAttention(dim, num_heads[i], sr_ratios[i], qk_ratio),
                    mlp_ratios[i],
                    local_kernel,
                    drop_path=rate,
                )
                for rate in rates
            ]
            stages.append(Stage(ConvBN(embed_dims[i - 1] if i else half, dim, 3, 2), blocks))
        norm = LayerNorm2d(embed_dims[-1])
        super().__init__(stem, stages, norm, channels=embed_dims, strides=(4, 8, 16, 32), **base)
        initialise(self)


# The paper's numbers are of configurations that are not published: none is claimed. The size is ours.
PUBLISHED = {"s2aformer": Published(27.0)}
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2505.22195", "none", "none", "stem.0.conv") for name in PUBLISHED}
)


@register_model
def s2aformer(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """S2AFormer at about Swin-T's size, an interpretation."""
    return build_variant(S2AFormer, "s2aformer", pretrained, checkpoint_filter_fn, kwargs)
