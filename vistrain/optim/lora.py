"""Which layers of a network learn through low-rank products (LoRA, arXiv 2106.09685; see `layers.low_rank`).

Its authors' code, microsoft/LoRA, is MIT.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from vistrain.errors import ConfigError
from vistrain.layers.low_rank import adapt

WHERE = "optimizer.groups.lora"


@dataclass(frozen=True)
class LoRA:
    """Linear layers whose weights are frozen and learn through the product of two thin matrices.

    Checkpoints of the run hold the matrices beside the weights; whatever else reads them (`vistrain test`, `predict`,
    `export`, `run.weights`) adds their product to the weights, and sees the network as it was.

    Args:
        match: shell patterns on the names of linear layers (`*.qkv`, `backbone.*.mlp.fc?`; `*` crosses dots).
        rank: of the product.
        alpha: the product is scaled by `alpha / rank`.

    Raises:
        ConfigError: there is no pattern, or a number is not above 0.
    """

    match: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if not self.match:
            raise ConfigError(f"{WHERE}.match", "names no layer", "such as ['*.qkv', '*.proj']")
        for name, value in (("rank", self.rank), ("alpha", self.alpha)):
            if value <= 0:
                raise ConfigError(f"{WHERE}.{name}", f"{value} is not above 0", "8 and 16 are usual")

    def apply(self, model: nn.Module) -> list[str]:
        """Adapt the layers in place, once the network has the weights that it starts from.

        Returns:
            Their names.

        Raises:
            ConfigError: a pattern matches no linear layer, or the rank is none below a layer's sides.
        """
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        for pattern in self.match:
            if not any(fnmatchcase(name, pattern) for name in layers):
                near = difflib.get_close_matches(pattern.replace("*", ""), layers, 3, cutoff=0.0)
                remedy = f"nearest: {', '.join(near)}" if near else "the network has none"
                raise ConfigError(f"{WHERE}.match", f"{pattern!r} matches no linear layer", remedy)
        chosen = {name: m for name, m in layers.items() if any(fnmatchcase(name, p) for p in self.match)}
        for name, layer in chosen.items():
            least = min(layer.weight.shape)
            if self.rank >= least:
                problem = f"{self.rank} is no low rank for {name}, {list(layer.weight.shape)}"
                raise ConfigError(f"{WHERE}.rank", problem, f"use less than {least}, or match fewer layers")
        for layer in chosen.values():
            adapt(layer, self.rank, self.alpha)
        return list(chosen)
