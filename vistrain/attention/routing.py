"""Routing attention: tokens attend to those that fall to the same cluster of k-means.

Efficient Content-Based Sparse Attention with Routing Transformers, arXiv 2003.05997, section 4. Authors' code:
google-research/routing_transformer, Apache-2.0 (TensorFlow). Details are those of lucidrains/routing-transformer, MIT,
which is not theirs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.heads import merge_heads
from vistrain.attention.multi_head import MultiHeadAttention
from vistrain.layers.windows import window_merge, window_partition

FIRST_STEPS = 3  # of k-means, before the first training step


class KMeans(nn.Module):
    """Means of unit vectors for each head, which follow the data while training.

    Args:
        num_heads: heads.
        head_dim: channels of a head.
        num_clusters: means of a head.
        decay: share of a mean that a training step leaves.
    """

    means: Tensor
    initted: Tensor

    def __init__(self, num_heads: int, head_dim: int, num_clusters: int, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", F.normalize(torch.randn(num_heads, num_clusters, head_dim), dim=-1))
        self.register_buffer("initted", torch.tensor(False))

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """`[B, heads, N, d]` unit vectors move the means; the first ones place them."""
        points = x.transpose(0, 1).flatten(1, 2)
        if not self.initted:
            self.means.copy_(_far_apart(points, self.means.shape[1]))
            for _ in range(FIRST_STEPS):
                self.means.copy_(self._step(points))
            self.initted.fill_(True)
        self.means.lerp_(self._step(points).to(self.means.dtype), 1 - self.decay)

    def _step(self, points: Tensor) -> Tensor:
        """The mean direction of the points `[heads, N, d]` nearest to each mean; a mean without any stays."""
        nearest = (points.to(self.means.dtype) @ self.means.mT).argmax(-1)
        member = F.one_hot(nearest, self.means.shape[1]).to(self.means.dtype)
        moved = F.normalize(member.mT @ points.to(self.means.dtype), dim=-1)
        return torch.where(member.sum(1)[..., None] > 0, moved, self.means)


class KMeansAttention(nn.Module):
    """Each cluster takes the queries and the keys nearest to its mean, and these attend to each other.

    A query that several clusters take gets the mean of their results, one that none takes gets zeros.

    Args:
        num_heads: heads.
        head_dim: channels d of a head.
        num_clusters: means of a head.
        window_size: queries and keys that a cluster takes.
        causal: whether keys after a query are hidden from it.
        num_mem_kv: learnt keys and values of each cluster, seen by all of its queries.
        commitment: weight of the loss that draws queries and keys to their means.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_clusters: int,
        window_size: int,
        causal: bool = False,
        num_mem_kv: int = 0,
        commitment: float = 1e-4,
    ) -> None:
        super().__init__()
        self.window_size, self.causal, self.commitment = window_size, causal, commitment
        self.kmeans = KMeans(num_heads, head_dim, num_clusters)
        memory = (num_heads, num_clusters, num_mem_kv, head_dim)
        self.mem_key = nn.Parameter(torch.randn(memory)) if num_mem_kv else None
        self.mem_value = nn.Parameter(torch.randn(memory)) if num_mem_kv else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, window_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Attend within clusters.

        Args:
            q, k, v: `[B, heads, N, d]`.
            window_size: instead of the module's.

        Returns:
            `[B, heads, N, d]`, and the commitment loss, weighted, a scalar.
        """
        both = F.normalize(torch.cat((q, k), 2), dim=-1)
        if self.training:
            self.kmeans.follow(both)
        means = self.kmeans.means.to(both.dtype)
        near = both @ means.mT  # [B, heads, 2N, clusters]
        window = min(window_size or self.window_size, q.shape[2])
        chosen_q, chosen_k = (part.mT.topk(window, -1).indices for part in near.chunk(2, 2))
        taken_q, taken_k, taken_v = _take(q, chosen_q), _take(k, chosen_k), _take(v, chosen_k)
        mask = None
        if self.causal:
            mask = chosen_q[..., :, None] >= chosen_k[..., None, :]
        if self.mem_key is not None and self.mem_value is not None:
            memory = (m.expand(q.shape[0], *m.shape) for m in (self.mem_key, self.mem_value))
            taken_k, taken_v = (torch.cat((m, t), 3) for m, t in zip(memory, (taken_k, taken_v), strict=True))
            if mask is not None:
                mask = F.pad(mask, (self.mem_key.shape[2], 0), value=True)
        shape, some = taken_q.shape[1:3], None
        if mask is not None:  # a query without keys attends to none: zeros, no NaN
            some = mask.any(-1, keepdim=True)
            mask = (mask | ~some).flatten(1, 2)
        few_q, few_k, few_v = (x.flatten(1, 2) for x in (taken_q, taken_k, taken_v))  # fused kernels know no fifth axis
        attended = F.scaled_dot_product_attention(few_q, few_k, few_v, mask).unflatten(1, shape)
        if some is not None:
            attended = attended * some
        return _put(attended, chosen_q, q.shape[2]), self._loss(both, near, means)

    def _loss(self, both: Tensor, near: Tensor, means: Tensor) -> Tensor:
        nearest = near.argmax(-1)[..., None].expand_as(both)
        return self.commitment * F.mse_loss(both, means.expand(both.shape[0], -1, -1, -1).gather(2, nearest))


class RoutingAttention(MultiHeadAttention):
    """Half of the heads attend within windows, the others within clusters (section 4.2).

    Args:
        dim: channels C.
        num_heads: dividing C, even.
        grid: of the map that the model is built for; a head has about sqrt(N) clusters of it.
        local_window: cells of the local heads' windows along an axis.
        num_clusters: means of a head; None is sqrt(N).
        commitment: see `KMeansAttention`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d)) v_j, j in the window of i, or in a cluster that i is in"
    cost = "4NC^2 + NC(M^2 + N / c) + 2NcC, c = num_clusters"
    growth = "N sqrt N"
    sizes = "multiples of local_window"
    needs = "a commitment loss of its own; k-means follow the training data"
    oddities = "a query may be in several clusters, or in none, which gives zeros"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        grid: Size = (14, 14),
        local_window: int = 7,
        num_clusters: int | None = None,
        commitment: float = 1e-4,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.local_heads, self.window = num_heads // 2, (local_window, local_window)
        self.clusters = num_clusters or max(1, round(math.sqrt(math.prod(grid))))
        routed = num_heads - self.local_heads
        self.routing = KMeansAttention(routed, dim // num_heads, self.clusters, 1, commitment=commitment)

    def fitting(self, size: Size) -> Size:
        """The next multiples of the window."""
        return tuple(-(-side // step) * step for side, step in zip(size, self.window, strict=True))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W).

        Raises:
            DataError: windows do not tile the map.
        """
        self.check_size(size)
        q, k, v = self.heads(x)
        parts = []
        if self.local_heads:
            local = (part[:, : self.local_heads] for part in (q, k, v))
            windows = (window_partition(merge_heads(part).unflatten(1, size), self.window) for part in local)
            split = (part.unflatten(-1, (self.local_heads, -1)).transpose(1, 2) for part in windows)
            near = merge_heads(F.scaled_dot_product_attention(*split))
            near = window_merge(near, self.window, (size[0], size[1])).flatten(1, 2)
            parts.append(near.unflatten(-1, (self.local_heads, -1)).transpose(1, 2))
        share = -(-x.shape[1] // self.clusters)
        routed, loss = self.routing(*(part[:, self.local_heads :] for part in (q, k, v)), share)
        if self.training:
            self.auxiliary["commitment"] = loss
        return self.output(torch.cat((*parts, routed), 1))


def _far_apart(points: Tensor, count: int) -> Tensor:
    """So many of the unit vectors `[heads, N, d]`, each as unlike those before it as any -> `[heads, count, d]`."""
    picked = [points[:, :1]]
    likeness = points.new_full(points.shape[:2], -1.0)
    for _ in range(count - 1):
        likeness = torch.maximum(likeness, (points @ picked[-1].mT)[..., 0])
        unlike = likeness.argmin(1)[:, None, None].expand(-1, 1, points.shape[2])
        picked.append(points.gather(1, unlike))
    return torch.cat(picked, 1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """`[B, heads, N, d]` at `[B, heads, clusters, w]` -> `[B, heads, clusters, w, d]`."""
    flat = index.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, flat).unflatten(2, index.shape[2:])


def _put(x: Tensor, index: Tensor, tokens: int) -> Tensor:
    """The mean of what `[B, heads, clusters, w, d]` has for each of N tokens -> `[B, heads, N, d]`."""
    flat, values = index.flatten(2)[..., None], x.flatten(2, 3)
    total = values.new_zeros(*values.shape[:2], tokens, values.shape[-1])
    total = total.scatter_add(2, flat.expand_as(values), values)
    count = values.new_zeros(*values.shape[:2], tokens, 1).scatter_add(2, flat, torch.ones_like(values[..., :1]))
    return total / (count + 1e-5)
