"""SEA: sparse attention where a cheap estimate of the attention matrix says it is worth it.

SEA: Sparse Linear Attention with Estimated Attention Mask, arXiv 2310.01777, section 3. Authors' code:
gmlwns2000/sea-attention, no licence (Triton): nothing of it is here, it is written from the paper. The published model
is for text; here a token sees both sides, and groups of `N / width` successive tokens are chosen whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.kernelized import orthogonal_features, positive_features
from vistrain.attention.multi_head import MultiHeadAttention


class SEAAttention(MultiHeadAttention):
    """Softmax attention to the groups of keys that an estimate gives most to, mixed with the mean of all values.

    The estimate: Performer's linear attention (arXiv 2009.14794), from its result and the query a perceptron and a
    small convolution over queries and groups, a softmax over groups.

    Args:
        dim: channels C.
        num_heads: dividing C.
        width: groups of keys.
        top: groups that a query attends to; `width` or more is dense attention.
        features: of Performer.
        distill: weight of the loss that teaches the estimate the dense weights of groups, while training.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y_i = g_i softmax_j(q_i k_j / sqrt(d)) v_j + (1 - g_i) mean(v), j in the groups with top estimates"
    cost = "4NC^2 + 2N^2C (masked) + 2N(m + width)C"
    growth = "N^2"
    axes = (1, 2, 3)
    float32 = True
    needs = "a loss of its own that teaches the estimate (distill); it is quadratic in N"

    weight: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        width: int = 16,
        top: int = 4,
        features: int = 16,
        distill: float = 1.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.width, self.top, self.distill = width, top, distill
        each = dim // num_heads
        self.register_buffer("weight", orthogonal_features(num_heads, features, each))
        self.estimate = nn.Sequential(nn.Linear(2 * each, 2 * each), nn.GELU(), nn.Linear(2 * each, width))
        self.decode = nn.Conv2d(num_heads, num_heads, 3, padding=1)
        self.gate = nn.Linear(each, 1)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        q, k, v = self.heads(x)
        scores = self.scores(q, k, v)
        group = torch.arange(x.shape[1], device=x.device) * self.width // x.shape[1]  # of each key
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        present = torch.zeros(self.width, dtype=torch.bool, device=x.device).index_fill(0, group, True)
        best = scores.masked_fill(~present, float("-inf")).topk(min(self.top, self.width), -1).indices
        seen = chosen.scatter(-1, best, True).index_select(-1, group)
        near = F.scaled_dot_product_attention(q, k, v, seen)
        gate = torch.sigmoid(self.gate(q))
        if self.training and self.distill:
            self.auxiliary["attention_estimate"] = self.distill * self._loss(scores, q.detach(), k.detach(), group)
        return self.output(gate * near + (1 - gate) * v.mean(2, keepdim=True))

    def scores(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Logits of the weight of each group of keys, `[B, heads, N, width]`."""
        root = self.scale**0.5
        features_q, features_k = (positive_features(part * root, self.weight) for part in (q, k))
        context = features_q @ (features_k.mT @ v) / (features_q @ features_k.sum(2, keepdim=True).mT + 1e-6)
        rough = self.estimate(torch.cat((q, context), -1))
        return rough + self.decode(rough)

    def _loss(self, scores: Tensor, q: Tensor, k: Tensor, group: Tensor) -> Tensor:
        weights = (q @ k.mT * self.scale).softmax(-1)
        of_groups = torch.zeros_like(scores).index_add(-1, group, weights)
        return -(of_groups * scores.log_softmax(-1)).sum(-1).mean()
