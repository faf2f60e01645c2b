"""Routing attention, cluster by cluster."""

from __future__ import annotations

from typing import Any

import torch
from attention_contract import Case
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention import RoutingAttention


def clusters(means: Tensor, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head of one image, `[N, d]` each."""
    total, count = torch.zeros_like(q), torch.full_like(q[:, :1], 1e-5)
    for mean in means:
        queries = (F.normalize(q, dim=-1) @ mean).topk(window).indices
        keys = (F.normalize(k, dim=-1) @ mean).topk(window).indices
        total[queries] += (q[queries] @ k[keys].T / q.shape[1] ** 0.5).softmax(-1) @ v[keys]
        count[queries] += 1
    return total / count


def windows(side: int, size: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(q)
    cell = torch.arange(size[0] * size[1])
    window = (cell // size[1] // side) * size[1] + cell % size[1] // side
    for index in window.unique():
        mates = window == index
        out[mates] = (q[mates] @ k[mates].T / q.shape[1] ** 0.5).softmax(-1) @ v[mates]
    return out


def routing(module: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    images = []
    for image in x:
        q, k, v = module.qkv(image).unflatten(1, (3, module.num_heads, -1)).permute(1, 2, 0, 3)
        near = range(module.local_heads)
        heads = [windows(module.window[0], size, q[h], k[h], v[h]) for h in near]
        share = -(-len(image) // module.clusters)
        for h, means in enumerate(module.routing.kmeans.means, module.local_heads):
            heads.append(clusters(means, share, q[h], k[h], v[h]))
        images.append(module.proj(torch.cat(heads, -1)))
    return torch.stack(images)


CASES = [
    Case(
        "routing",
        RoutingAttention,
        {"dim": 8, "num_heads": 2, "grid": (8, 8), "local_window": 4},
        routing,
        sizes=((8, 8), (4, 12), (12, 8)),
        refused=((7, 9), (3, 2)),
        bf16=2.0,  # rounding moves tokens from one cluster to another
    )
]
