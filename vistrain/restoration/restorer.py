"""What `RestorationModel` asks of the networks that restore images."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.contract import GuardedContract
from vistrain.layers.padding import EdgeMode


class Restorer(GuardedContract, nn.Module, abc.ABC):
    """Base of all networks from degraded image to restored image.

    Attributes:
        scale: factor of enlargement; 1 for denoisers.
        channels: C of the images.
        multiple: sides that `forward` takes are multiples of it.
        smallest: least side that `forward` takes, pixels.
        least_padding: pixels that are added to each side even where nothing is missing (SwinIR's test script pads a
            full window there).
        padding: how missing pixels are made up at the bottom and right, see `layers.padding.extend`.
        key_maps: names in its official files, if they are not its own.
    """

    scale: int = 1
    channels: int = 3
    multiple: int = 1
    smallest: int = 1
    least_padding: int = 0
    padding: EdgeMode = "reflect"
    key_maps: Sequence[KeyMap] = ()

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]`, brightest pixel 1 -> `[B, C, h * scale, w * scale]`, not clipped."""

    def pairs(self, x: Tensor, truth: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What losses compare while training: outputs, each with the truth in its size. Networks of several have more.

        Args:
            x: `[B, C, h, w]`, brightest pixel 1.
            truth: `[B, C, h * scale, w * scale]`.
        """
        return [(self(x), truth)]
