"""Any attention operator as a block of a convolutional network, in two axes or three."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vistrain.attention.base import Size
from vistrain.attention.choice import choose, operators
from vistrain.backbones.attention_hosts import HostBlock
from vistrain.errors import ConfigError


class AttentionBlock(nn.Module):
    """An attention operator and a perceptron on the cells of a map, each added to what came in.

    Args:
        operator: its name, or a mapping with `name` and its arguments (`{name: axial, axes: 3}`); see
            docs/attention.md for those that take three axes.
        num_heads: heads, where the operator has some.
        mlp_ratio: hidden channels of the perceptron by channels.
        dim: C; the network gives it.
        grid: sides of the map that the network is built for; the network gives them.
        layer, layers: which of how many blocks it is, from 0; the network gives them.

    Raises:
        ConfigError: the operator does not exist, or takes no maps of so many axes.
    """

    def __init__(
        self,
        operator: str | dict[str, Any],
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        *,
        dim: int,
        grid: Size,
        layer: int = 0,
        layers: int = 1,
    ) -> None:
        super().__init__()
        where = "model.network.attention.operator"
        (chosen,) = choose(operator, None, 1, where)
        built = chosen.build(dim, num_heads, grid, layer, layers, where)
        if len(grid) not in built.axes:
            able = [name for name, cls in operators().items() if len(grid) in cls.axes]
            remedy = f"of {len(grid)} axes are {', '.join(able)}; AxialAttention with its argument `axes`"
            raise ConfigError(where, f"{type(built).__name__} takes no maps of {len(grid)} axes", remedy)
        self.block = HostBlock(dim, built, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *S]` -> `[B, C, *S]`.

        Raises:
            DataError: the operator takes no such map.
        """
        return self.block(x.movedim(1, -1)).movedim(-1, 1)
