"""Low-rank adaptation: a frozen weight learns through the product of two thin matrices beside it.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3.
Official code: github.com/microsoft/LoRA, loralib/layers.py (MIT).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# How a state dict names a weight that is adapted, and its parts.
ORIGINAL = ".parametrizations.weight.original"
PARTS = tuple(f".parametrizations.weight.0.{part}" for part in ("lora_A", "lora_B", "scale"))


class LowRank(nn.Module):
    """`W + alpha / rank * B A`: a parametrization of a weight (see `torch.nn.utils.parametrize`).

    Of the weight and not of the layer, so that it acts wherever the weight is used, also by code that never calls the
    layer. B begins at zero, so the first step sees the network as it was; A is drawn as torch draws linear layers.

    Args:
        weight: `[out, in]`, for sizes, device and kind of number.
        rank: of the product.
        alpha: with `rank` the factor on it.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(rank, inputs))
        self.lora_B = nn.Parameter(weight.new_zeros(outputs, rank))
        self.register_buffer("scale", weight.new_tensor(alpha / rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight `[out, in]`, in the weight's own precision under autocast, too."""
        if weight.is_meta:  # which has no autocast
            return adapted(weight, self.lora_A, self.lora_B, self.scale)
        with torch.autocast(weight.device.type, enabled=False):
            return adapted(weight, self.lora_A, self.lora_B, self.scale)


def adapted(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """`W + s B A`: `[out, in]` of weight `[out, in]`, a `[rank, in]`, b `[out, rank]` and a scalar."""
    return weight + scale * (b @ a)


def adapt(layer: nn.Linear, rank: int, alpha: float) -> None:
    """Freeze a layer's weight, and let it learn through a `LowRank`."""
    layer.weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))


def is_adapted(module: nn.Module) -> bool:
    """Whether any weight in a module learns through a `LowRank`."""
    return any(isinstance(part, LowRank) for part in module.modules())


def merged_low_rank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the adapted weights in place of their parts, under the names of the layers themselves.

    Args:
        state: of a network; one without adapted weights comes back as it is.
    """
    found = dict(state)
    for name in [name for name in state if name.endswith(ORIGINAL)]:
        stem = name.removesuffix(ORIGINAL)
        parts = [found[stem + part] for part in PARTS if stem + part in found]
        if [part.ndim for part in parts] != [2, 2, 0] or state[name].ndim != 2:
            continue  # no such weight; whoever loads it refuses the names
        a, b, scale = parts
        if b.shape[1] == a.shape[0] and (b.shape[0], a.shape[1]) == state[name].shape:
            for part in PARTS:
                del found[stem + part]
            found[f"{stem}.weight"] = adapted(found.pop(name), a, b, scale)
    return found
