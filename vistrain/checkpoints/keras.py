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
_STATISTICS = {"running_mean": "moving_mean", "running_var": "moving_variance"}
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
                LAYOUTS["flax_kernel"].ours(state_dict[key]) if tensor == "kernel" else state_dict[key]
            )
            for key, kind, number, tensor in found
        }
        return super().apply(ours)

    def export(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors as `conv3d/kernel`, `conv3d_1/kernel`: numbered from 0 by kind, whatever the file had.

        Raises:
            WeightsError: a tensor is of no layer of the authors'.
        """
        place = {path: f"{kind}_{i}" if i else kind for kind, paths in self.layers for i, path in enumerate(paths)}
        kinds = {path: kind for kind, paths in self.layers for path in paths}
        theirs = {(kind, ours): name for kind, name, ours in self.own}
        foreign = {}
        for key, value in super().export(state_dict).items():
            path, _, tensor = key.rpartition(".")
            if path not in place:
                raise WeightsError(self.name, f"'{key}' is of no layer of {', '.join(dict(self.layers))}")
            is_kernel = tensor == "weight" and value.ndim > 1
            usual = {
                "weight": "kernel" if is_kernel else "gamma",
                "bias": "bias" if _has_kernel(path, state_dict) else "beta",
            }
            name = theirs.get((kinds[path], tensor)) or usual.get(tensor) or _STATISTICS.get(tensor, tensor)
            foreign[f"{place[path]}/{name}"] = LAYOUTS["flax_kernel"].theirs(value) if name == "kernel" else value
        return foreign


def _has_kernel(path: str, state_dict: Mapping[str, Tensor]) -> bool:
    weight = state_dict.get(f"{path}.weight")
    return weight is not None and weight.ndim > 1


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
