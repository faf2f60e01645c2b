"""Weighted convolution as a module of host networks; the operators themselves stand in `layers/weighted_conv.py`.

Cammarasana and Patane, "Optimal Weighted Convolution ...", arXiv 2505.24558.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vistrain.layers.weighted_conv import SUGGESTED, TrainableWeightedConv2d, WeightedConv2d
from vistrain.modules.base import ConvModule


class WeightedConvolution(ConvModule, WeightedConv2d):
    """A convolution whose kernel is multiplied by a fixed density.

    Args:
        in_channels, out_channels, kernel_size: see `WeightedConv2d`.
        den: density from the border of the kernel to the cell beside its centre; by default what the authors suggest.
        base: see `WeightedConv2d`.
    """

    formula = "y = conv(x, w * (a a^T)), a = (den, 1, den reversed)"
    cost = "as of the convolution"
    place = "convolution"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        den: Sequence[float] | None = None,
        **base: Any,
    ) -> None:
        start = SUGGESTED.get(kernel_size, ()) if den is None else den
        super().__init__(in_channels, out_channels, kernel_size, den=start, **base)


class TrainableWeightedConvolution(ConvModule, TrainableWeightedConv2d):
    """A convolution whose kernel is multiplied by a density that is learnt.

    Args:
        in_channels, out_channels, kernel_size, den, base: see `TrainableWeightedConv2d`.
    """

    formula = "y = conv(x, w * (a a^T)), a = (den, 1, den reversed), den learnt"
    cost = "as of the convolution, and k // 2 parameters more"
    place = "convolution"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        den: Sequence[float] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, den=den, **base)
