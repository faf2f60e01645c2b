"""MATLAB's bicubic enlargement as a network without weights: what super-resolution is compared with."""

from __future__ import annotations

from torch import Tensor

from vistrain.layers.imresize import imresize
from vistrain.restoration.restorer import Restorer
from vistrain.structures import Channels


class BicubicEnlarger(Restorer):
    """Enlarges all channels. On RGB, luma is taken afterwards (BasicSR's line); with `data.color: luma` luma alone is
    enlarged, as the early papers did.

    Args:
        upscale: the factor.
        channels: of the data.
    """

    def __init__(self, upscale: int, channels: Channels) -> None:
        super().__init__()
        self.scale, self.channels = upscale, int(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, C, h * upscale, w * upscale]`."""
        return imresize(x, self.scale)
