"""PVTv2's shell (Wang et al. 2021, arXiv 2106.13797, section 3.2; whai362/PVT, Apache-2.0): overlapping patches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from vistrain.backbones.staged import NormedStage, drop_path_rates
from vistrain.layers.norms import LayerNorm2d


def overlapping_patches(in_chans: int, dim: int, stride: int) -> nn.Module:
    """Patches twice as wide as their stride, less one, and a norm, as in PVTv2 (section 3.2).

    Returns:
        `[B, in_chans, H, W]` -> `[B, dim, ceil(H / stride), ceil(W / stride)]`.
    """
    proj = nn.Conv2d(in_chans, dim, 2 * stride - 1, stride, stride - 1)
    return nn.Sequential(OrderedDict(proj=proj, norm=LayerNorm2d(dim, eps=1e-5)))


def overlapping_pyramid(
    in_chans: int,
    embed_dims: Sequence[int],
    depths: Sequence[int],
    drop_path_rate: float,
    block: Callable[[int, float], nn.Module],
    patch_size: int = 4,
) -> tuple[nn.Module, list[nn.Module]]:
    """What PVTv2, and all in its shell, are made of: overlapping patches before each stage, a norm after it.

    Args:
        in_chans: channels of the images.
        embed_dims, depths: channels and blocks of each stage.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        block: from a stage's number and a rate of drop path, a block on `[B, H, W, C]`.
        patch_size: stride of the first patches; those between stages have 2.

    Returns:
        The stem and the stages.
    """
    stages: list[nn.Module] = []
    for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
        blocks = [block(i, rate) for rate in rates]
        down = overlapping_patches(embed_dims[i - 1], embed_dims[i], 2) if i else nn.Identity()
        stages.append(NormedStage(down, blocks, embed_dims[i]))
    return overlapping_patches(in_chans, embed_dims[0], patch_size), stages
