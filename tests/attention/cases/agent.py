"""Agent attention by its formula: each agent, then each query, one by one."""

from __future__ import annotations

from typing import Any

import torch
from attention_contract import Case
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention import AgentAttention, ReducedAgentAttention

Size = tuple[int, int]


def linear(values: Tensor, side: int) -> Tensor:
    """`[S]` -> `[side]`, cells as areas."""
    return values if len(values) == side else F.interpolate(values[None, None], side, mode="linear")[0, 0]


def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, size: Size, keys: Size) -> Tensor:
    """One image: queries `[N, C]`, keys and values `[M, C]`."""
    side, heads = module.side, module.num_heads
    pooled = F.adaptive_avg_pool2d(q.T.unflatten(1, size)[None], side)[0].flatten(1).T
    out = torch.zeros_like(q)
    for h in range(heads):
        part = slice(h * q.shape[1] // heads, (h + 1) * q.shape[1] // heads)
        scale = (q.shape[1] // heads) ** -0.5
        gathered = []
        to_agents = torch.empty(len(q), side**2, dtype=q.dtype)
        for a in range(side**2):
            table = F.interpolate(module.an_bias[h, a][None, None], keys, mode="bilinear")[0, 0]
            rows, columns = linear(module.ah_bias[0, h, a, :, 0], keys[0]), linear(module.aw_bias[0, h, a, 0], keys[1])
            bias = (table + rows[:, None] + columns).flatten()
            gathered.append((k[:, part] @ pooled[a, part] * scale + bias).softmax(0) @ v[:, part])
            table = F.interpolate(module.na_bias[h, a][None, None], size, mode="bilinear")[0, 0]
            rows, columns = (
                linear(module.ha_bias[0, h, :, 0, a], size[0]),
                linear(module.wa_bias[0, h, 0, :, a], size[1]),
            )
            to_agents[:, a] = q[:, part] @ pooled[a, part] * scale + (table + rows[:, None] + columns).flatten()
        out[:, part] = to_agents.softmax(-1) @ torch.stack(gathered)
    return out


def detail(module: Any, v: Tensor) -> Tensor:
    """The convolution of values `[C, H, W]` -> `[N, C]`."""
    return F.conv2d(v[None], module.dwc.weight, module.dwc.bias, padding=1, groups=len(v))[0].flatten(1).T


def plain(module: Any, x: Tensor, size: Size) -> Tensor:
    images = []
    for image in x:
        q, k, v = module.qkv(image).chunk(3, -1)
        out = attend(module, q, k, v, size, size) + detail(module, v.T.unflatten(1, size))
        images.append(module.proj(out))
    return torch.stack(images)


def reduced(module: Any, x: Tensor, size: Size) -> Tensor:
    images = []
    for image in x:
        small = module.sr(image.T.unflatten(1, size)[None])[0]
        k, v = module.kv(module.norm(small.flatten(1).T)).chunk(2, -1)
        keys = (small.shape[1], small.shape[2])
        wide = F.interpolate(v.T.unflatten(1, keys)[None], size, mode="bilinear")[0]
        images.append(module.proj(attend(module, module.q(image), k, v, size, keys) + detail(module, wide)))
    return torch.stack(images)


SMALL = {"dim": 8, "num_heads": 2, "grid": (8, 8), "agent_num": 4}
CASES = [
    Case("agent", AgentAttention, SMALL, plain),
    Case("agent_reduced", ReducedAgentAttention, SMALL, reduced, refused=((1, 5),)),
]
