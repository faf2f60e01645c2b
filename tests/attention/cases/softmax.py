"""Softmax attention, token by token."""

from __future__ import annotations

from typing import Any

import torch
from attention_contract import Case
from torch import Tensor

from vistrain.attention.softmax import SoftmaxAttention


def definition(module: Any, x: Tensor, size: tuple[int, ...]) -> Tensor:
    q, k, v = module.qkv(x).unflatten(2, (3, module.num_heads, -1)).unbind(2)  # [B, N, heads, d]
    out = torch.empty_like(q)
    for n in range(x.shape[1]):
        weights = ((q[:, n, None] * k).sum(-1) * module.scale).softmax(1)
        out[:, n] = (weights[..., None] * v).sum(1)
    return module.proj(out.flatten(2))


ARGS = {"dim": 8, "num_heads": 2}
CASES = (
    Case("softmax", SoftmaxAttention, {"dim": 8, "num_heads": 2}, definition),
    Case(
        "softmax_scaled", SoftmaxAttention, {"dim": 8, "num_heads": 1, "qk_scale": 0.5, "qkv_bias": False}, definition
    ),
)
