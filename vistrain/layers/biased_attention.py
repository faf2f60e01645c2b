"""Softmax attention with a bias that is learnt, as tables of relative positions give it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def biased_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend.

    On a CPU by plain products: torch's fused attention knows no gradient of a bias there, and no keys narrower than
    values, and the steps that it falls back to are slower.

    Args:
        q, k, v: `[..., N, D]`, `[..., M, D]` and `[..., M, D']`.
        bias: `[..., N, M]`, broadcast, added to the logits; None for none.
        scale: of the logits; None is `D ** -0.5`.
        dropout: probability that an attention weight is dropped.

    Returns:
        `[..., N, D']`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.device.type == "cpu":
        logits = q * scale @ k.mT
        weights = (logits if bias is None else logits + bias).softmax(-1).to(v.dtype)
        return (F.dropout(weights, dropout) if dropout else weights) @ v
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
