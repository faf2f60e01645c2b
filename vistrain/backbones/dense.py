"""What a network that works on maps asks of its backbone."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.contract import GuardedContract
from vistrain.structures import Preprocessing


class DenseBackbone(GuardedContract, nn.Module, abc.ABC):
    """Base of all that turn images into maps of several strides. `Backbone` is one for every timm model.

    Attributes:
        strides: of the maps given out, pixels from cell to cell, ascending.
        channels: of the maps given out, in the same order.
        wanted_strides: as they were asked for, where a model has fewer (a plain ViT has one); empty: `strides`.
        preprocessing: how images must be prepared for its weights.
        key_maps: names that it has inside others' dense networks; the first that a file has is meant.
        input_layers: as in `Network`, of its own names.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    wanted_strides: tuple[int, ...] = ()
    preprocessing: Preprocessing = Preprocessing()
    key_maps: Sequence[KeyMap] = ()
    input_layers: tuple[str, ...] = ()

    @abc.abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images `[B, C, H, W]` -> maps `[B, C_i, ceil(H / stride_i), ceil(W / stride_i)]`."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that its authors exempt from weight decay, beside norms and biases."""
        return set()

    def layers_above(self) -> dict[str, int] | None:
        """How many layers lie above each parameter's; see `Network.layers_above`. A head upon it is the topmost."""
        return None
