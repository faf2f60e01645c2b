"""Axial attention, token by token."""

from __future__ import annotations

from typing import Any

import torch
from attention_contract import Case
from torch import Tensor

from vistrain.attention.axial import AxialAttention


def along(line: Any, grid: Tensor, axis: int) -> Tensor:
    """`[B, *size, C]`: each cell attends to those that differ from it along one axis alone."""
    out = torch.empty_like(grid)
    for place in torch.cartesian_prod(*(torch.arange(side) for side in grid.shape[1:-1])).tolist():
        cell = (slice(None), *place)
        row = tuple(slice(None) if i in (0, axis) else p for i, p in enumerate((0, *place)))
        q = line.to_q(grid[cell]).unflatten(1, (line.num_heads, -1))
        k, v = line.to_kv(grid[row]).unflatten(2, (2, line.num_heads, -1)).unbind(2)
        weights = (torch.einsum("bhd,blhd->bhl", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        out[cell] = line.to_out(torch.einsum("bhl,blhd->bhd", weights, v).flatten(1))
    return out


def definition(module: Any, x: Tensor, size: tuple[int, ...]) -> Tensor:
    grid = x.unflatten(1, size)
    results = []
    for axis, line in enumerate(module.lines, 1):
        results.append(along(line, grid, axis))
        grid = grid if module.sum_axes else results[-1]
    return (sum(results) if module.sum_axes else grid).flatten(1, -2)


ARGS = {"dim": 8, "num_heads": 2}
CASES = (
    Case("axial", AxialAttention, ARGS, definition),
    Case("axial_in_turn", AxialAttention, {**ARGS, "sum_axes": False}, definition),
    Case("axial_volume", AxialAttention, {**ARGS, "axes": 3}, definition, sizes=((2, 3, 4), (3, 1, 2))),
)
