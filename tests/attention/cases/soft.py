"""SOFT by its formula."""

from __future__ import annotations

from typing import Any

import torch
from attention_contract import Case
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention import SoftmaxFreeAttention


def gaussian(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-(a[:, None] - b[None]).square().sum(-1) / 2)


def newton(kernel: Tensor) -> Tensor:
    """20 steps, as published: from a start that is small enough for any kernel."""
    kernel = kernel + 0.01 * torch.eye(len(kernel))
    found = 1.8 / kernel.abs().sum(1).max() ** 2 * kernel
    for _ in range(20):
        found = 2 * found - found @ kernel @ found
    return found


def soft(module: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    images = []
    for image in x:
        heads = []
        whole_q, whole_v = module.q(image), module.v(image)
        features = x.shape[2] // module.num_heads
        for h in range(module.num_heads):
            part = slice(h * features, (h + 1) * features)
            q, v = whole_q[:, part] / features**0.25, whole_v[:, part]
            marks = module.landmarks(q.T.unflatten(1, size)[None])[0].flatten(1).T
            marks = F.gelu(module.norm(marks))
            outer, inner = gaussian(q, marks), gaussian(marks, marks)
            out = outer @ newton(inner) @ outer.T @ v
            kernel = module.conv.weight[h, 0].expand(features, 1, -1, -1)
            values = v.T.unflatten(1, size)[None]
            heads.append(out + F.conv2d(values, kernel, padding=kernel.shape[2] // 2, groups=features)[0].flatten(1).T)
        images.append(module.proj(torch.cat(heads, -1)))
    return torch.stack(images)


SMALL = {"dim": 8, "num_heads": 2, "ratio": 2}
CASES = [
    Case("soft", SoftmaxFreeAttention, SMALL, soft, refused=((1, 5),)),
    Case(
        "soft_for_a_grid",
        SoftmaxFreeAttention,
        {"dim": 8, "num_heads": 2, "grid": (14, 14)},
        soft,
        sizes=((8, 8), (7, 9), (5, 12)),
    ),
    Case("soft_normalized", SoftmaxFreeAttention, {**SMALL, "normalized": True, "alone": True}),
    Case("soft_of_a_batch", SoftmaxFreeAttention, {**SMALL, "normalized": True}, batch_dependent=True),
]
