"""Hedgehog: linear attention whose feature maps learn to give the weights of softmax attention.

The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry, arXiv 2402.04347, section 4. Authors'
code: HazyResearch/lolcats, Apache-2.0 (src/model/feature_map.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention

LEAST = 1e-12


class HedgehogFeatureMap(nn.Module):
    """`[softmax(x W), softmax(-x W)]`, W of each head.

    Args:
        num_heads: heads.
        head_dim: channels d of a head.
        feature_dim: features f; there are twice as many.
        identity: start as the identity (`zero_init` of the authors); otherwise from a uniform distribution.
    """

    def __init__(self, num_heads: int, head_dim: int, feature_dim: int, identity: bool = False) -> None:
        super().__init__()
        self.layer = nn.Parameter(torch.empty(num_heads, head_dim, feature_dim))
        if identity:
            with torch.no_grad():
                self.layer.copy_(torch.eye(head_dim, feature_dim).expand_as(self.layer))
        else:
            nn.init.kaiming_uniform_(self.layer)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, heads, N, d]` -> `[B, heads, N, 2f]`, positive."""
        x = x @ self.layer
        return torch.cat((x.softmax(-1), (-x).softmax(-1)), -1).clamp(min=LEAST)


class HedgehogAttention(MultiHeadAttention):
    """`phi(q) (phi(k)^T v) / (phi(q) sum phi(k))`, phi learnt.

    Args:
        dim: channels C.
        num_heads: dividing C.
        feature_dim: see `HedgehogFeatureMap`; None is the channels of a head.
        mimicry: weight of the loss that teaches the feature maps the softmax's weights (section 4.2), while training;
            it is quadratic in N. Queries and keys are taken as they are: the loss reaches feature maps alone.
        identity: see `HedgehogFeatureMap`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y = phi(q) (phi(k)^T v) / (phi(q) sum_j phi(k_j)), phi(x) = [softmax(xW), softmax(-xW)]"
    cost = "4NC^2 + 6NCf, f = feature_dim"
    growth = "N"
    needs = "mimicry: first distilled from softmax attention, then trained on the task"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        feature_dim: int | None = None,
        mimicry: float = 0.0,
        identity: bool = True,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.mimicry, features = mimicry, feature_dim or dim // num_heads
        shape = (num_heads, dim // num_heads, features, identity)
        self.map_q, self.map_k = HedgehogFeatureMap(*shape), HedgehogFeatureMap(*shape)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        q, k, v = self.heads(x)
        if self.training and self.mimicry:
            logits = q.detach() @ k.detach().mT * self.scale
            loss = softmax_mimicry(self.map_q(q.detach()), self.map_k(k.detach()), logits)
            self.auxiliary["softmax_mimicry"] = self.mimicry * loss
        return self.output(linear_attention(self.map_q(q), self.map_k(k), v))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Normalised attention with positive features, keys and values summed up once.

    Args:
        q, k: `[B, heads, N, f]`, `[B, heads, M, f]`, positive.
        v: `[B, heads, M, d]`.

    Returns:
        `[B, heads, N, d]`.
    """
    return q @ (k.mT @ v) / (q @ k.sum(2, keepdim=True).mT)


def softmax_mimicry(q: Tensor, k: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy between the weights of softmax attention and of linear attention (section 4.2, equation 5).

    Args:
        q, k: features `[B, heads, N, f]` and `[B, heads, M, f]`, positive.
        logits: of the teacher, `[B, heads, N, M]`.

    Returns:
        The mean over queries, heads and images, a scalar.
    """
    weights = (q @ k.mT).clamp(min=LEAST)
    log_weights = weights.log() - weights.sum(-1, keepdim=True).log()
    return -(logits.softmax(-1) * log_weights).sum(-1).mean()
