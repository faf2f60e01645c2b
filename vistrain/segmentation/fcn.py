"""FCN: Fully Convolutional Networks for Semantic Segmentation (Long et al. 2015, arXiv 1411.4038).

As in mmsegmentation 0.11 (github.com/open-mmlab/mmsegmentation, Apache-2.0, decode_heads/fcn_head.py): the auxiliary
head of UPerNet, on the map of stride 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.conv import ConvModule
from vistrain.segmentation.head import DecodeHead


class FCNHead(DecodeHead):
    """Convolutions on one map.

    Args:
        stride: of the map.
        embed_dim: width.
        num_convs, kernel_size, dilation: of the convolutions; 0 convolutions classify the map itself.
        concat_input: a further convolution sees the map and what the others made of it.
        base: see `DecodeHead`.

    Raises:
        ConfigError: there is no map of that stride, or no convolutions for a map of another width.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        embed_dim: int = 256,
        stride: int = 16,
        num_convs: int = 1,
        kernel_size: int = 3,
        dilation: int = 1,
        concat_input: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(channels, strides, num_classes, embed_dim=embed_dim, **base)
        if stride not in strides:
            raise ConfigError("stride", f"no map of stride {stride}", f"one of {', '.join(map(str, strides))}")
        self.index = list(strides).index(stride)
        width = channels[self.index]
        if num_convs == 0 and width != embed_dim:
            raise ConfigError("embed_dim", f"{embed_dim}, but without convolutions it is the map's {width}")
        self.convs = nn.Sequential(
            *(
                ConvModule(embed_dim if i else width, embed_dim, kernel_size, dilation=dilation)
                for i in range(num_convs)
            )
        )
        self.concat_input = concat_input
        if concat_input:
            self.conv_cat = ConvModule(width + embed_dim, embed_dim, kernel_size)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        x = maps[self.index]
        out: Tensor = self.convs(x)
        return self.conv_cat(torch.cat((x, out), 1)) if self.concat_input else out
