"""Long convolutions by their sums."""

from __future__ import annotations

import math
from typing import Any

import torch
from attention_contract import Case
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention import HyenaAttention, SGConv

Size = tuple[int, ...]


def causal(x: Tensor, kernel: Tensor) -> Tensor:
    """`[B, D, H, W]` by `[D, h, w]`: each cell sums over those above and to the left of it."""
    out = torch.zeros_like(x)
    for i in range(min(kernel.shape[1], x.shape[2])):
        for j in range(min(kernel.shape[2], x.shape[3])):
            moved = x[:, :, : x.shape[2] - i, : x.shape[3] - j] * kernel[:, i, j, None, None]
            out[:, :, i:, j:] += moved
    return out


def hyena(module: Any, x: Tensor, size: Size) -> Tensor:
    maps = module.short_filter(module.in_proj(x).mT.unflatten(2, size))
    reach = [min(side, module.length) for side in size]
    kernels, dim = module.filter_fn(reach), module.dim
    flips = {"seq": [(2, 3)], "4dir": [(), (2, 3), (3,), (2,)], "4dirp": [(), (2, 3), (3,), (2,)]}
    results = []
    for copy in maps.split((module.order + 1) * dim, 1):
        *gates, v = copy.split(dim, 1)
        for way in flips.get(module.mode, [()]):
            y = v
            for index, gate in enumerate(gates[:0:-1]):
                y = y * gate
                part = slice(index * dim, (index + 1) * dim)
                turn = way if module.mode != "seq" or index == 0 else ()
                turned = causal(y.flip(turn), kernels[part]).flip(turn) / (2 * module.length)
                y = turned + y * module.filter_fn.bias[part, None, None]
            results.append(y * gates[0])
    if module.mode == "4dir":
        weights, bias = module.linear_mix.weight[0], module.linear_mix.bias
        mixed = sum(weight * result for weight, result in zip(weights, results, strict=True)) + bias
        return module.out_proj(mixed.flatten(2).mT)
    mixed = torch.cat(results, 1).flatten(2).mT
    return module.out_proj(module.linear_mix(mixed) if module.mode == "4dirp" else mixed)


def sgconv(module: Any, x: Tensor, size: Size) -> Tensor:
    pieces, last = [], len(module.kernel_list) - 1
    for index, weight in enumerate(module.kernel_list):
        factor = 2 ** max(0, index - 1)
        pieces.append(F.interpolate(weight, scale_factor=float(factor), mode="linear") * 2.0 ** (last - index))
    kernel = (torch.cat(pieces, -1) / module.kernel_norm)[..., : module.length]
    ways = kernel.chunk(2) if module.bidirectional else (kernel,)
    y = x[:, None] * module.D[None, :, None]  # [B, channels, N, C]
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            if 0 <= i - j < kernel.shape[-1]:
                y[:, :, i] = y[:, :, i] + x[:, None, j] * ways[0][..., i - j]
            if module.bidirectional and 0 <= j - i - 1 < kernel.shape[-1]:
                y[:, :, i] = y[:, :, i] + x[:, None, j] * ways[1][..., j - i - 1]
    y = module.output_linear(F.gelu(y).transpose(1, 2).flatten(2))
    return F.glu(y) if module.gated else y


SMALL = {"dim": 8, "grid": (8, 8), "filter_order": 8}
GRID = {"dim": 8, "grid": (6, 6), "kernel_dim": 4}
FEW: tuple[Size, ...] = ((6, 6), (5, 8), (3, 2))
MODES = ("standard", "seq", "parallel", "4dir", "4dirp")
CASES = [
    *(Case(f"hyena_{mode}", HyenaAttention, {**SMALL, "directional_mode": mode}, hyena) for mode in MODES),
    Case("hyena_joint", HyenaAttention, {**SMALL, "joint": True, "sqrt_decay": True, "order": 3}, hyena),
    Case("hyena_seq_3", HyenaAttention, {**SMALL, "order": 3, "directional_mode": "seq"}, hyena),
    Case("hyena_learn", HyenaAttention, {**SMALL, "window_mode": "learn"}, hyena),
    Case("hyena_learn_joint", HyenaAttention, {**SMALL, "window_mode": "learn", "joint": True}, hyena),
    Case("hyena_no_window", HyenaAttention, {**SMALL, "window_mode": "no"}, hyena),
    Case("sgconv", SGConv, GRID, sgconv, sizes=FEW),
    Case("sgconv_causal", SGConv, {**GRID, "bidirectional": False}, sgconv, sizes=FEW),
    Case("sgconv_gated", SGConv, {**GRID, "gated": True, "channels": 2, "n_scales": 2}, sgconv, sizes=FEW),
]
assert math.prod(FEW[1]) > math.prod(GRID["grid"])
