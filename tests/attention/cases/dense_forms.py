"""Operators by their formulas, weights of all pairs of tokens written out."""

from __future__ import annotations

import math
from typing import Any

import torch
from attention_contract import Case
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention import (
    GaussianMixtureAttention,
    GaussianMixtureWindowAttention,
    HedgehogAttention,
    LightningAttention,
    TransNormerAttention,
    URPEAttention,
)

Size = tuple[int, ...]


def heads_of(module: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys, values `[B, heads, N, d]`."""
    return tuple(module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4))


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def places(size: Size) -> Tensor:
    """`[N, axes]`."""
    return torch.cartesian_prod(*(torch.arange(side) for side in size)).view(math.prod(size), -1)


def gaussian_mixture(module: Any, x: Tensor, size: Size) -> Tensor:
    q, k, v = heads_of(module, x)
    distance = (places(size)[:, None] - places(size)).square().sum(-1)
    widths = 2 * (module.mask.sigma.square() + 1e-5)
    mask = (module.mask.alpha * torch.exp(-distance / widths)).sum(0)
    return module.proj(joined((q @ k.mT / q.shape[-1] ** 0.5 * mask).softmax(-1) @ v))


def gaussian_mixture_window(module: Any, x: Tensor, size: Size) -> Tensor:
    """Windows of the rolled map; those that came around from the other end of it are kept apart by -100."""
    side, shift = module.window[0], module.shift[0]
    q, k, v = heads_of(module, x)
    cells = places(size)
    rolled = torch.stack([(cells[:, axis] - shift) % size[axis] for axis in (0, 1)], 1)
    around = cells < shift
    together = (rolled[:, None] // side == rolled // side).all(-1)
    apart = (around[:, None] != around).any(-1)
    step = rolled[:, None] % side - rolled % side
    table = module.relative_position_bias_table.T.unflatten(1, (2 * side - 1, 2 * side - 1))
    bias = table[:, (step[..., 0] + side - 1) % (2 * side - 1), (step[..., 1] + side - 1) % (2 * side - 1)]
    widths = 2 * (module.mask.sigma.square() + 1e-5)
    mask = (module.mask.alpha * torch.exp(-step.square().sum(-1) / widths)).sum(0)
    logits = q @ k.mT / q.shape[-1] ** 0.5 * mask + bias - 100.0 * apart
    return module.proj(joined(logits.masked_fill(~together, float("-inf")).softmax(-1) @ v))


def hedgehog(module: Any, x: Tensor, size: Size) -> Tensor:
    q, k, v = heads_of(module, x)
    maps = []
    for rows, layer in ((q, module.map_q.layer), (k, module.map_k.layer)):
        projected = torch.einsum("hdf,bhnd->bhnf", layer, rows)
        maps.append(torch.cat((projected.softmax(-1), (-projected).softmax(-1)), -1))
    weights = maps[0] @ maps[1].mT
    return module.proj(joined(weights / weights.sum(-1, keepdim=True) @ v))


def lightning(module: Any, x: Tensor, size: Size) -> Tensor:
    q, k, v = (
        F.silu(layer(x)).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for layer in (module.q_proj, module.k_proj, module.v_proj)
    )
    since = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    decay = torch.exp(-module.slopes[:, None, None] * since.abs())
    decay = decay if module.bidirectional else decay.tril()
    out = joined((q @ k.mT * decay) @ v)
    return module.o_proj(module.norm(out) * torch.sigmoid(module.output_gate(x)))


def transnormer(module: Any, x: Tensor, size: Size) -> Tensor:
    q, k, v = heads_of(module, x)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    products = q[:, :, :, None] * k[:, :, None]
    if module.theta is not None:
        step = (places(size)[:, None] - places(size)).to(x.dtype)
        axis = torch.arange(q.shape[-1]) % len(size)
        products = products * (step[..., axis] * module.theta[:, None, None]).cos()
    out = products.sum(-1) @ v / x.shape[1]
    out = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.norm.weight
    return module.proj(joined(out))


def urpe(module: Any, x: Tensor, size: Size) -> Tensor:
    q, k, v = heads_of(module, x)
    cells = places(size)
    rows = []
    for a in range(len(cells)):
        offset = [
            (cells[a, axis] - cells[:, axis] + side - 1).clamp(0, 2 * side - 2) for axis, side in enumerate(module.grid)
        ]
        index = offset[0] * (2 * module.grid[1] - 1) + offset[1]
        logits = torch.einsum("bhd,bhnd->bhn", q[:, :, a], k) * q.shape[-1] ** -0.5 + module.rp_bias[index].T
        rows.append(torch.einsum("bhn,bhnd->bhd", logits.softmax(-1) * module.ur_rp_bias[index].T, v))
    return module.proj(joined(torch.stack(rows, 2)))


SMALL = {"dim": 8, "num_heads": 2}
CASES = [
    Case("gaussian_mixture", GaussianMixtureAttention, SMALL, gaussian_mixture),
    *(
        Case(
            f"gaussian_mixture_window_{shift}",
            GaussianMixtureWindowAttention,
            {**SMALL, "window_size": 4, "shift": shift},
            gaussian_mixture_window,
            sizes=((8, 8), (4, 12), (12, 8)),
            refused=((7, 9), (3, 2)),
        )
        for shift in (0, 2)
    ),
    Case("hedgehog", HedgehogAttention, SMALL, hedgehog),
    Case("hedgehog_mimics", HedgehogAttention, {**SMALL, "mimicry": 1.0}, hedgehog),
    Case("lightning", LightningAttention, {**SMALL, "block": 8, "layers": 3, "layer": 1}, lightning),
    Case("lightning_causal", LightningAttention, {**SMALL, "block": 8, "bidirectional": False}, lightning),
    Case("transnormer", TransNormerAttention, SMALL, transnormer),
    Case("transnormer_plain", TransNormerAttention, {**SMALL, "lrpe": False}, transnormer),
    Case("urpe", URPEAttention, {**SMALL, "grid": (8, 8)}, urpe),
]
