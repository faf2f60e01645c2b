"""Halo attention, token by token."""

from __future__ import annotations

from typing import Any

import torch
from attention_contract import Case
from torch import Tensor

from vistrain.attention.halo import HaloAttention


def definition(module: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    q, k, v = module.qkv(x).unflatten(2, (3, module.num_heads, -1)).unbind(2)
    side, halo = module.block, module.halo
    q, k, v = (t.unflatten(1, size) for t in (q, k, v))
    out = torch.empty_like(q)
    for y in range(size[0]):
        for x_ in range(size[1]):
            logits, values = [], []
            for i in range(y // side * side - halo, y // side * side + side + halo):
                for j in range(x_ // side * side - halo, x_ // side * side + side + halo):
                    inside = 0 <= i < size[0] and 0 <= j < size[1]
                    if module.mask_border and not inside:
                        continue
                    key = k[:, i, j] if inside else torch.zeros_like(q[:, y, x_])
                    values.append(v[:, i, j] if inside else torch.zeros_like(key))
                    place = side + halo - 1
                    key = key + module.relative[0, i - y + place] + module.relative[1, j - x_ + place]
                    logits.append((q[:, y, x_] * key).sum(-1) * module.scale)
            weights = torch.stack(logits, -1).softmax(-1)
            out[:, y, x_] = (weights[..., None] * torch.stack(values, 2)).sum(2)
    return module.proj(out.flatten(3).flatten(1, 2))


ARGS = {"dim": 8, "num_heads": 2, "block_size": 2, "halo_size": 1}
SIZES: dict[str, Any] = {"sizes": ((4, 6), (2, 8), (6, 2)), "refused": ((7, 9), (4, 5), (3, 2))}
CASES = (
    Case("halo", HaloAttention, ARGS, definition, **SIZES),
    Case("halo_masked", HaloAttention, {**ARGS, "mask_border": True}, definition, **SIZES),
    Case("halo_wide", HaloAttention, {**ARGS, "halo_size": 3}, definition, sizes=((4, 4), (2, 6))),
    Case("halo_none", HaloAttention, {**ARGS, "halo_size": 0}, definition, sizes=((4, 4), (2, 6))),
)
