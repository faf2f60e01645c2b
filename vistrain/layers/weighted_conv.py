"""Weighted convolution: kernels times a density that depends on the distance from their centre (arXiv 2505.24558).

Cammarasana and Patane, "Optimal Weighted Convolution ...". The authors' code
(cammarasana123/weightedConvolution2.0, `wConv.py`, `wConv_Trainable.py`) is GPL-3.0: nothing of it is here. This is
written from the paper's formula; the names of parameters and buffers are theirs, so that weights load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistrain.errors import ConfigError

# The densities that the authors suggest, by kernel size.
SUGGESTED: Mapping[int, tuple[float, ...]] = {1: (), 3: (0.7,), 5: (0.2, 0.8), 7: (0.25, 0.15, 0.55)}


def density(den: Tensor, dims: int) -> Tensor:
    """The density of a kernel: at each cell the product over the axes of (den, 1, den reversed).

    Args:
        den: `[(k - 1) / 2]`, the density along an axis from the border to the centre, where it is 1.
        dims: number of spatial axes.

    Returns:
        `[k] * dims`.
    """
    axis = torch.cat([den, den.new_ones(1), den.flip(0)])
    axes = "abc"[:dims]
    return torch.einsum(f"{','.join(axes)}->{axes}", *[axis] * dims)


class _WeightedConv(nn.Module):
    """What the operators share: a kernel, an optional bias, and the convolution with `weight * density`.

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size: side of the kernel, odd.
        stride, padding, groups, dilation: as in `nn.Conv2d`; but the default padding is 1 whatever the kernel, and
            there is no bias by default, as in the authors' code.
        bias: add a bias per output channel.
    """

    dims = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *[kernel_size] * self.dims))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def convolve(self, x: Tensor, phi: Tensor) -> Tensor:
        """Convolve with `weight * phi`."""
        function = F.conv3d if self.dims == 3 else F.conv2d
        weight = self.weight * phi
        return function(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.weight.shape[1] * self.groups}, {self.weight.shape[0]}, kernel_size={self.kernel_size}"


class WeightedConv2d(_WeightedConv):
    """Convolution `y = conv(x, weight * Phi) + bias` with a fixed density `Phi = alfa alfa^T`, alfa = (den, 1, den').

    With den = (1, ..., 1) it is `nn.Conv2d`; the cost is the same, since the product is of the kernel's size.

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size: side of the kernel, odd.
        den: density from the border of the kernel to the cell beside its centre, `(kernel_size - 1) / 2` numbers.
        base: `stride`, `padding`, `groups`, `dilation` as in `nn.Conv2d`, and `bias`; but the default padding is 1
            whatever the kernel, and there is no bias by default, as in the authors' code.

    Raises:
        ConfigError: the kernel is even, or `den` has another length.
    """

    alfa: Tensor
    Phi: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        den: Sequence[float],
        **base: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **base)
        _check(kernel_size, den)
        values = torch.tensor(list(den), dtype=torch.float32)
        self.register_buffer("alfa", density(values, 1))
        self.register_buffer("Phi", density(values, self.dims))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']` (with another D in three dimensions)."""
        return self.convolve(x, self.Phi)


class WeightedConv3d(WeightedConv2d):
    """The weighted convolution of volumes: `Phi` is the triple outer product. Arguments as `WeightedConv2d`."""

    dims = 3


class TrainableWeightedConv2d(_WeightedConv):
    """Weighted convolution whose density `den` is learned with the kernel (`wConv_Trainable.py`).

    The authors give `den` an optimizer of its own (learning rate 1e-2 with warm restarts, against 1e-4 for kernels).

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size: side of the kernel, odd; the authors' code has 7 alone.
        den: the density to start from; by default the one that the authors suggest for this size.
        base: as in `WeightedConv2d`.

    Raises:
        ConfigError: the kernel is even, or `den` has another length.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 7,
        den: Sequence[float] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **base)
        start = SUGGESTED.get(kernel_size, ()) if den is None else den
        _check(kernel_size, start)
        self.den = nn.Parameter(torch.tensor(list(start), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        return self.convolve(x, density(self.den, self.dims))


def weight_convolutions(module: nn.Module, den: Sequence[float], trainable: bool = False) -> nn.Module:
    """Replaces, in place, every convolution of a network whose kernel `den` fits by a weighted one.

    Stride, padding, groups and dilation stay, and so do the parameters themselves; buffers are added.

    Args:
        module: the network; only square `nn.Conv2d` with zero padding are looked at.
        den: density; its length says the kernel size, `2 len(den) + 1`.
        trainable: learn the density, one for each convolution.

    Returns:
        `module`.

    Raises:
        ConfigError: no convolution has this kernel size.
    """
    size = 2 * len(den) + 1
    kind = TrainableWeightedConv2d if trainable else WeightedConv2d
    found = [
        (parent, name, conv)
        for parent in module.modules()
        for name, conv in parent.named_children()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (size, size) and conv.padding_mode == "zeros"
    ]
    if not found:
        raise ConfigError("den", f"no convolution has a kernel of {size}x{size}", "give (kernel - 1) / 2 numbers")
    for parent, name, conv in found:
        stride, padding, dilation = conv.stride[0], int(conv.padding[0]), conv.dilation[0]
        weighted = kind(
            conv.in_channels, conv.out_channels, size, den, stride=stride, padding=padding, groups=conv.groups,
            dilation=dilation, bias=conv.bias is not None,
        )  # fmt: skip
        weighted.register_parameter("weight", cast(nn.Parameter, conv.weight))
        weighted.register_parameter("bias", cast("nn.Parameter | None", conv.bias))
        setattr(parent, name, weighted)
    return module


def _check(kernel_size: int, den: Sequence[float]) -> None:
    if kernel_size % 2 == 0:
        raise ConfigError("kernel_size", f"{kernel_size} is even", "a density needs a centre: use an odd size")
    if len(den) != (kernel_size - 1) // 2:
        raise ConfigError(
            "den", f"{len(den)} numbers for a kernel of {kernel_size}", f"give {(kernel_size - 1) // 2}, border first"
        )
