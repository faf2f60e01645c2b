"""What a module is to a convolutional host network and to the documentation, and modules by name."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vistrain.by_name import NamedParts
from vistrain.contract import Contract
from vistrain.errors import DataError

Place = Literal["branch", "convolution", "norm", "end"]
# What a host gives to a module of each place, and nobody else; a constructor takes what it needs of it
FACTS: dict[Place, tuple[str, ...]] = {
    "branch": ("dim", "grid"),
    "convolution": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups", "grid"),
    "norm": ("dim", "grid"),
    "end": ("dim", "grid"),
}
# Where each stands: in a ResNet, and in a MobileNet
PLACES: dict[Place, str] = {
    "branch": "on what a block adds, after its last norm; in a MobileNet after the depthwise convolution",
    "convolution": "in place of a block's last 3x3 convolution",
    "norm": "in place of a block's first norm",
    "end": "behind a stage's last sum, before its activation",
}


class ConvModule(Contract, nn.Module):
    """Base of all that stand in one place of a convolutional host's blocks, `forward(x: [B, C, H, W])`.

    Maps keep their shape, but that a convolution has strides. A constructor takes of the names in `FACTS` those that
    it needs, and the host gives them: `dim` (C); `grid` ((H, W) of the map that it gives at the size of images that
    the host is built for); of a convolution also what `nn.Conv2d` is told. All other parameters are the user's
    (`module_args`) and have defaults.

    Attributes:
        formula: the mathematics on one line; empty for a base of several modules, which is none itself.
        cost: parameters and multiply-adds on one line, in N cells and C channels.
        place: where in a block it stands, see `PLACES`.
        sizes: which maps it takes, in words.
        least_cells: fewest cells of the maps that it takes.
        oddities: what is kept for fidelity though one would not write it so; empty for nothing.
    """

    formula: str = ""
    cost: str = ""
    place: Place = "branch"
    sizes: str = "any"
    least_cells: int = 1
    oddities: str = ""

    def refusal(self, x: Tensor, remedy: str) -> DataError:
        """The error for a map `[B, C, H, W]` that it cannot take."""
        size = "x".join(map(str, x.shape[2:]))
        return DataError(type(self).__name__, f"takes no map of {size}: it takes {self.sizes}", remedy)


def is_module(value: object) -> bool:
    """Whether something is a module's class; bases of several state no formula."""
    return isinstance(value, type) and issubclass(value, ConvModule) and bool(value.formula)


MODULES: NamedParts[ConvModule] = NamedParts(
    room=__name__.rpartition(".")[0],
    base=ConvModule,
    what="module",
    listed="modules",
    facts=lambda cls: FACTS[cls.place],
)
