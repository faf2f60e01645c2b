"""Bi-level routing attention: regions choose the regions that they attend to, their tokens attend to these alone.

BiFormer: Vision Transformer with Bi-Level Routing Attention, arXiv 2303.08810, section 3.2.
Authors' code: rayleizhu/BiFormer, MIT (ops/bra_legacy.py, ops/bra_nchw.py). Theirs gathers keys and values element by
element; here whole regions are rows of a table, and the attention is torch's fused one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator
from vistrain.layers.windows import window_merge, window_partition

Pool = Literal["identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool"]


class BiLevelRoutingAttention(AttentionOperator):
    """Attention of each region's tokens to those of the `topk` regions whose mean key fits its mean query best.

    The authors have two forms, which differ on maps that regions do not tile: `bra_legacy` pads the map before the
    projections, so that padded tokens are the projections' bias and count in the means; `bra_nchw` pads what was
    projected with zeros, and means are of true tokens. No form masks padded keys.

    Args:
        dim: channels.
        num_heads: of the attention.
        n_win: regions along each side of the map.
        qk_dim: channels of queries and keys; None is `dim`.
        qk_scale: of the logits; None is `qk_dim ** -0.5` - of all heads' channels together, faithfully.
        topk: regions that each region attends to; all of them if there are fewer.
        side_dwconv: kernel of the depthwise convolution of the values that is added; 0 for none.
        pad_projected: the form of `bra_nchw`.
        kv_pool: how the keys and values of a region are made fewer before attention.
        kv_per_win: side of what the adaptive ways of pooling make of a region.
        kv_pool_ratio: kernel and stride of the others.
        soft_routing: weigh a region's keys and values by the softmax of the logits that it was chosen by.
        diff_routing: let gradients into those logits.
        param_routing: a linear layer before the means are compared.
        project: whether a linear layer follows.
    """

    formula = "y_i = softmax_j(q_i k_j s) v_j + DWConv(v)_i, j in the k regions that fit the region of i"
    cost = "4NC^2 + 2N^2C topk / n_win^2"
    growth = "N^2"
    padding = "padded cells count; maps are padded with zeros until regions tile them"
    oddities = "logits are scaled by the channels of all heads together; padded keys are not masked"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        n_win: int = 7,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        topk: int = 4,
        side_dwconv: int = 5,
        pad_projected: bool = False,
        kv_pool: Pool = "identity",
        kv_per_win: int = 1,
        kv_pool_ratio: int = 1,
        soft_routing: bool = False,
        diff_routing: bool = False,
        param_routing: bool = False,
        project: bool = True,
    ) -> None:
        super().__init__()
        qk_dim = qk_dim or dim
        self.num_heads, self.n_win, self.topk, self.qk_dim = num_heads, n_win, topk, qk_dim
        self.scale = qk_scale or qk_dim**-0.5
        self.pad_projected, self.soft_routing, self.diff_routing = pad_projected, soft_routing, diff_routing
        self.kv_pool = _pool(kv_pool, kv_per_win, kv_pool_ratio)
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim)
        self.router = nn.Linear(qk_dim, qk_dim) if param_routing else nn.Identity()
        self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim) if side_dwconv else None
        self.proj = nn.Linear(dim, dim) if project else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W), any."""
        height, width = size
        x = x.unflatten(1, size)
        if self.pad_projected:
            region = max(1, height // self.n_win), max(1, width // self.n_win)
            qkv = _pad(self.qkv(x), region)
        else:
            x = _pad(x, (self.n_win, self.n_win))
            region = x.shape[1] // self.n_win, x.shape[2] // self.n_win
            qkv = self.qkv(x)
        whole = (qkv.shape[1], qkv.shape[2])
        values = qkv[..., 2 * self.qk_dim :]
        q, kv = (window_partition(t, region) for t in qkv.split([self.qk_dim, qkv.shape[3] - self.qk_dim], -1))
        logits = self._affinity(q, kv[..., : self.qk_dim], size, whole, region)
        x = window_merge(self._attend(q, kv, region, logits), region, whole)
        if self.lepe is not None:
            x = x + self.lepe(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(x[:, :height, :width]).flatten(1, 2)

    def _affinity(
        self, q: Tensor, k: Tensor, size: tuple[int, int], whole: tuple[int, int], region: tuple[int, int]
    ) -> Tensor:
        """Regions `[B * P, L, C]` of queries and keys -> logits `[B, P, P]` between their means."""
        regions = (whole[0] // region[0]) * (whole[1] // region[1])
        means = [q.mean(1), k.mean(1)]
        if self.pad_projected and whole != size:  # padded zeros add nothing to the sums: only the count is wrong
            rows, columns = (
                (side - torch.arange(0, end, step, device=q.device)).clamp(max=step)
                for side, end, step in zip(size, whole, region, strict=True)
            )
            share = (rows[:, None] * columns).flatten() / (region[0] * region[1])
            means = [mean.unflatten(0, (-1, regions)) / share.to(mean.dtype)[:, None] for mean in means]
        query, key = (mean.reshape(-1, regions, self.qk_dim) for mean in means)
        if not self.diff_routing:
            query, key = query.detach(), key.detach()
        return (self.router(query) * self.scale) @ self.router(key).transpose(1, 2)

    def _attend(self, q: Tensor, kv: Tensor, region: tuple[int, int], logits: Tensor) -> Tensor:
        """Regions of queries `[B * P, L, Cq]`, of keys and values `[B * P, L, Cq + C]` -> `[B * P, L, C]`."""
        batch, regions, _ = logits.shape
        best, index = logits.topk(min(self.topk, regions), -1)  # [B, P, k]
        kv = self.kv_pool(kv.unflatten(1, region).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        rows = index + torch.arange(batch, device=index.device)[:, None, None] * regions
        chosen = kv.index_select(0, rows.flatten()).unflatten(0, index.shape)  # [B, P, k, L', Cq + C]
        if self.soft_routing:
            chosen = best.softmax(-1)[..., None, None] * chosen
        k, v = chosen.flatten(2, 3).flatten(0, 1).split([self.qk_dim, kv.shape[2] - self.qk_dim], -1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)


def _pad(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Zeros at the bottom and right of `[B, H, W, C]` until both sides are multiples."""
    bottom, right = -x.shape[1] % multiple[0], -x.shape[2] % multiple[1]
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def _pool(kind: Pool, per_win: int, ratio: int) -> nn.Module:
    makers: dict[str, Callable[[], nn.Module]] = {
        "identity": nn.Identity,
        "ada_avgpool": partial(nn.AdaptiveAvgPool2d, per_win),
        "ada_maxpool": partial(nn.AdaptiveMaxPool2d, per_win),
        "avgpool": partial(nn.AvgPool2d, ratio),
        "maxpool": partial(nn.MaxPool2d, ratio),
    }
    return makers[kind]()
