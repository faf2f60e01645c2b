"""Convolution, norm and activation in one, under the names of OpenMMLab's checkpoints.

Names and defaults follow mmcv's `ConvModule` (github.com/open-mmlab/mmcv, Apache-2.0); written from its documentation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormName = Literal["bn", "gn"]


class ConvModule(nn.Module):
    """`[B, C, H, W]` -> `[B, C', H', W']`: convolution that keeps the size (but for its stride), norm, ReLU.

    Args:
        in_channels, out_channels: C and C'.
        kernel_size: odd, or even with an explicit `padding`.
        stride, dilation, groups: of the convolution.
        padding: zeros on each side; None: half the dilated kernel.
        norm: `bn`, `gn` (32 groups) or None; its name is the name of the parameters.
        act: ReLU after the norm.
        bias: of the convolution; None: only where no norm follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: int | None = None,
        norm: NormName | None = "bn",
        act: bool = True,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2 if padding is None else padding
        bias = norm is None if bias is None else bias
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm_name, self.act = norm, act
        if norm is not None:
            self.add_module(norm, nn.BatchNorm2d(out_channels) if norm == "bn" else nn.GroupNorm(32, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H / stride, W / stride]`, rounded up."""
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """Norm and activation of `[B, C', H, W]`, what the convolution gives."""
        if self.norm_name is not None:
            x = self.get_submodule(self.norm_name)(x)
        return F.relu(x) if self.act else x


class DepthwiseSeparableConv(nn.Module):
    """A depthwise and a 1x1 convolution, each with batch norm and ReLU (names of mmcv's module of that name).

    Args:
        in_channels, out_channels, kernel_size, dilation: as in `ConvModule`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(in_channels, in_channels, kernel_size, dilation=dilation, groups=in_channels)
        self.pointwise_conv = ConvModule(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H, W]`."""
        return self.pointwise_conv(self.depthwise_conv(x))


def resize(x: Tensor, size: tuple[int, ...] | torch.Size, align_corners: bool = False) -> Tensor:
    """(Bi-, tri-)linear interpolation of `[B, C, *S]` to `[B, C, *size]`, without antialiasing."""
    size = tuple(size)
    # Sides that are not known while a network is exported are not the same because they are so in the example.
    if not any(isinstance(side, torch.SymInt) for side in (*x.shape[2:], *size)) and tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(
        x, size=size, mode=("linear", "bilinear", "trilinear")[len(size) - 1], align_corners=align_corners
    )


class GridMean(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` to a square grid, of maps whose sides are not known while a network is exported, too.

    Torch takes the cells of the example's sides apart for ONNX, which are wrong at others.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, G, G]`."""
        if not any(isinstance(side, torch.SymInt) for side in x.shape[2:]):
            return super().forward(x)
        assert isinstance(self.output_size, int)
        rows, columns = (cell_shares(side, self.output_size, x) for side in x.shape[2:])
        return rows @ x @ columns.mT


def cell_shares(side: int, cells: int, like: Tensor) -> Tensor:
    """`[G, side]` shares, of the type of another tensor, of an axis's pixels in the mean of each of its G cells: from
    the last pixel that begins at or before the cell to the first that ends at or after it."""
    cell = torch.arange(cells, device=like.device)[:, None]
    pixel = torch.arange(side, device=like.device)[None]
    inside = (pixel >= cell * side // cells) & (pixel * cells < (cell + 1) * side)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True).to(like.dtype)
