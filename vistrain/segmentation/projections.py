"""1x1 convolutions of several maps that are enlarged and concatenated, done per level: in the order that costs least.

A 1x1 convolution commutes with bilinear and with nearest enlargement, whose weights sum to 1. So each level's share of
it is applied before the enlargement, merged with the level's own projection if it has one. That is exact but for
rounding, and what was the largest product of these heads, all levels' widths at the finest size, is never computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.layers.conv import resize


class LevelProjection(nn.Module):
    """A linear layer on the channels of a map, under the name `proj` (SegFormer's `MLP`).

    Args:
        in_channels, out_channels: of the map, before and after.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H, W]`."""
        return F.conv2d(x, self.proj.weight[:, :, None, None], self.proj.bias)


def merged(share: Tensor, projection: LevelProjection) -> tuple[Tensor, Tensor]:
    """Weight `[D, C_i]` and bias `[D]` of a projection to E channels followed by a share `[D, E]` of a convolution."""
    return share @ projection.proj.weight, share @ projection.proj.bias


def fused(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    align_corners: bool = False,
    nearest: bool = False,
) -> Tensor:
    """Sum of 1x1 convolutions of maps, each enlarged to the first's size.

    Args:
        maps: `[B, C_i, H_i, W_i]`; the first is the finest.
        weights: `[D, C_i]` each.
        bias: `[D]`, or None.
        align_corners: of the bilinear enlargement.
        nearest: enlarge by repetition instead.

    Returns:
        `[B, D, H_0, W_0]`.
    """
    out = F.conv2d(maps[0], weights[0][:, :, None, None], bias)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        x = F.conv2d(x, weight[:, :, None, None])
        larger = F.interpolate(x, out.shape[2:]) if nearest else resize(x, out.shape[2:], align_corners)
        out = out + larger
    return out


def shares(weight: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """A convolution's weight `[D, sum of widths, 1, 1]` cut into those of its inputs, `[D, width]` each."""
    return list(weight[:, :, 0, 0].split(list(widths), 1))


def total(biases: Sequence[Tensor]) -> Tensor:
    """Sum of several `[D]`."""
    return torch.stack(list(biases)).sum(0)


def convolved_enlarged(x: Tensor, weight: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """A convolution that keeps the size, of a map that is enlarged bilinearly before it; the enlarged map of all input
    channels is never computed.

    Each tap of the kernel is a 1x1 convolution, which commutes with the enlargement, and a shift. Enlargement and
    shifts are linear along each axis: products with two matrices that are the same for all channels. For a map of half
    the size that is a quarter of the multiplications, exact but for rounding.

    Args:
        x: `[B, C, h, w]`.
        weight: `[D, C, k, k]`, k odd.
        size: (H, W) of the enlarged map.
        align_corners: of the enlargement.

    Returns:
        `[B, D, H, W]`, as `F.conv2d(resize(x, size, align_corners), weight, padding=k // 2)`.
    """
    height, width = weight.shape[2:]
    rows = _enlarging(x.shape[2], size[0], height, align_corners, x)  # [H, k, h]
    columns = _enlarging(x.shape[3], size[1], width, align_corners, x).transpose(1, 2)  # [W, w, k]
    # Channels last, in the order in which each product is the next one's factor as it lies in memory.
    cut = weight.permute(2, 1, 3, 0).flatten(2)  # [k, C, k * D]
    taps = x.flatten(2).transpose(1, 2)[:, None] @ cut  # [B, k, h * w, k * D]
    tall = rows.flatten(1) @ taps.view(x.shape[0], height * x.shape[2], -1)  # [B, H, w * k * D]
    found = columns.flatten(1) @ tall.view(x.shape[0], size[0], -1, len(weight))  # [B, H, W, D]
    return found.permute(0, 3, 1, 2)


def _enlarging(old: int, new: int, taps: int, align_corners: bool, like: Tensor) -> Tensor:
    """Matrix `[new, taps, old]`: one axis enlarged, and shifted as each tap of a kernel reads it, zeros beyond."""
    identity = torch.eye(old, dtype=like.dtype, device=like.device)[None]
    matrix = F.interpolate(identity, size=new, mode="linear", align_corners=align_corners)[0].T  # [new, old]
    reach = taps // 2
    padded = F.pad(matrix, (0, 0, reach, reach))
    return torch.stack([padded[tap : tap + new] for tap in range(taps)], 1)
