"""Names of Keras's functional models: layers are numbered by kind, in the order in which they were made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vistrain.checkpoints.keymap import LAYOUTS, KeyMap
from vistrain.errors import WeightsError

_TENSORS = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_KEY = re.compile(r"^(?P<kind>[a-z]\w*?)(?:_(?P<number>\d+))?/(?:.*/)?(?P<tensor>\w+?)(?::0)?$")


@dataclass(frozen=True)
class KerasMap(KeyMap):
    """`conv3d_28/kernel`, `conv3d/conv3d/kernel:0`: what comes first of its kind in a file is our first of this kind.

    Numbers need not start at 0: they count all layers that a program made. Kernels are turned into torch's order.

    `rules` are applied to our names.

    Args:
        layers: of each kind (`conv3d`) the paths of our modules, in the order in which the authors make theirs.
        own: `(kind, tensor in the file, our name)` where a layer of the authors' own has tensors that Keras names so.
    """

    layers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    own: tuple[tuple[str, str, str], ...] = ()

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under our names.

        Raises:
            WeightsError: there are other kinds of layers, or not as many of a kind.
        """
        paths, numbers, found = dict(self.layers), dict[str, set[int]](), []
        for key in state_dict:
            parts = _KEY.match(key)
            if parts is None or parts["kind"] not in paths:
                raise WeightsError(self.name, f"'{key}' is no layer of {', '.join(paths)}", "is it another network's?")
            number = int(parts["number"] or 0)
            numbers.setdefault(parts["kind"], set()).add(number)
            found.append((key, parts["kind"], number, parts["tensor"]))
        for kind, modules in paths.items():
            if len(there := numbers.get(kind, set())) != len(modules):
                problem = f"{len(there)} layers `{kind}` for {len(modules)}"
                raise WeightsError(self.name, problem, "is the config the one that these weights were trained with?")
        order = {kind: {n: i for i, n in enumerate(sorted(there))} for kind, there in numbers.items()}
        names = {(kind, theirs): ours for kind, theirs, ours in self.own}
        ours = {
            f"{paths[kind][order[kind][number]]}.{names.get((kind, tensor), _TENSORS.get(tensor, tensor))}": (
                LAYOUTS["flax_kernel"](state_dict[key]) if tensor == "kernel" else state_dict[key]
            )
            for key, kind, number, tensor in found
        }
        return super().apply(ours)


def creation_order(network: nn.Module, kinds: Mapping[str, type[nn.Module]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """`KerasMap.layers` of a network whose modules stand in the order in which its authors make theirs.

    Args:
        network: ours.
        kinds: Keras's name of a kind -> our class.
    """
    modules = list(network.named_modules())
    return tuple(
        (kind, paths)
        for kind, cls in kinds.items()
        if (paths := tuple(path for path, module in modules if type(module) is cls))
    )
