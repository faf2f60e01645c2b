"""Efficient channel attention: a channel's gate is a short convolution of the means of its neighbours.

ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, arXiv 1910.03151, section 3.2. Authors'
code: BangguWu/ECANet, MIT (models/eca_module.py); parameters have its names.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.modules.base import ConvModule


class ECA(ConvModule):
    """Gates of channels from a convolution along the channels' means.

    Args:
        dim: channels C.
        k_size: of the convolution, odd; None is the nearest odd number to (log2(C) + 1) / 2 (equation 12). Published
            ImageNet weights have others, one for each stage: 3, 5, 7, 7 of ResNet-18, 3, 5, 5, 7 of ResNet-50.

    Raises:
        ConfigError: the size is even.
    """

    formula = "y = x * sigmoid(conv_k(mean over cells of x)), the convolution along channels"
    cost = "k parameters; NC + kC"

    def __init__(self, dim: int, k_size: int | None = None) -> None:
        super().__init__()
        if k_size is None:
            wanted = int((math.log2(dim) + 1) / 2)
            k_size = wanted if wanted % 2 else wanted + 1
        if k_size < 1 or k_size % 2 == 0:
            raise ConfigError("k_size", f"{k_size} is not an odd number from 1 on", "use 3, 5 or 7")
        self.conv = nn.Conv1d(1, 1, k_size, padding=k_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        gates = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return x * gates[:, 0, :, None, None]
