"""PPMA: attention whose logits fall with what a path from token to token passes, along a row and a column.

Polyline Path Masked Attention for Vision Transformer, arXiv 2506.15940. Authors' code: zhongchenzhao/PPMA, Apache-2.0
(classification/models/PPMA.py; detection/ppma.py has a norm for each map, which `Backbone(output_norm_eps=1e-5)` has
here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones.rmt import RULES, RMTBackbone, rmt_converter
from vistrain.backbones.staged import (
    Published,
    StagedBackbone,
    build_variant,
    default_cfg,
    dense_key_map,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.rotary import rotary_angles, rotate, turns

# Authors' names -> ours.
AUTHORS = KeyMap(
    name="PPMA",
    marker=r"\.retention\.path_embed\.",
    rules=(
        *RULES,
        (r"\.retention_layer_norm\.", ".norm1."),
        (r"\.final_layer_norm\.", ".norm2."),
        (r"\.retention\.path_embed\.", ".attn."),
        (r"\.retention\.(?!dt_|A_log)", ".attn."),
        (r"\.(lepe|dwconv|pos)\.conv\.", r".\1."),
    ),
    drop=(r"\.Relpos\.angle$",),  # constants
)
checkpoint_filter_fn = rmt_converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [f"outnorm{i}" for i in range(4)])


class PathMaskedAttention(nn.Module):
    """Attention masked by polyline paths: first along the query's row, then along the key's column, and the other way.

    A cell decays what passes it, by numbers that are made of it for each head and axis (section 3.2). On the whole map
    both ways are softmaxes of their own and averaged; chunkwise, attention along rows and along columns follow each
    other in either order, and are averaged.

    Args:
        dim: channels.
        num_heads: of the attention.
        chunkwise: see above.
    """

    def __init__(self, dim: int, num_heads: int, chunkwise: bool) -> None:
        super().__init__()
        self.num_heads, self.chunkwise = num_heads, chunkwise
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.dt_linear = nn.Linear(dim // num_heads, 2, bias=False)  # one for all heads, faithfully
        self.dt_bias = nn.Parameter(torch.zeros(num_heads))
        self.A_log = nn.Parameter(torch.zeros(num_heads))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        height, width = size
        x = x.unflatten(1, size)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        position = self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        heads = x.unflatten(-1, (self.num_heads, -1))
        steps = F.softplus(self.dt_linear(heads) + self.dt_bias[:, None])  # [B, H, W, heads, 2]
        decay = (-self.A_log.float().exp()[:, None] * steps.float()).permute(4, 0, 3, 1, 2)
        along_rows, along_columns = decay[0].cumsum(3), decay[1].cumsum(2)  # [B, heads, H, W]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4) for part in (q, k, v))
        # Positions are counted row by row, as if the map were a line.
        angles = rotary_angles(torch.arange(height * width, device=x.device), q.shape[-1])
        turn = turns(angles, q.dtype)
        q, k = (rotate(part.flatten(2, 3), turn).unflatten(2, (height, width)) for part in (q, k))
        attend = self._chunks if self.chunkwise else self._whole
        attended = attend(q, k, v, along_rows, along_columns)  # [B, heads, H, W, D]
        return self.out_proj(attended.permute(0, 2, 3, 1, 4).flatten(3) + position).flatten(1, 2)

    def _chunks(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        turned = [part.transpose(2, 3) for part in (q, k)]
        by_row = (q @ k.mT * scale + _between(rows).to(q.dtype)).softmax(-1)
        by_column = (turned[0] @ turned[1].mT * scale + _between(columns.mT).to(q.dtype)).softmax(-1)
        row_last = by_row @ (by_column @ v.transpose(2, 3)).transpose(2, 3)
        column_last = (by_column @ (by_row @ v).transpose(2, 3)).transpose(2, 3)
        return (row_last + column_last) / 2

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        size = (q.shape[2], q.shape[3])
        by_row, by_column = _between(rows), _between(columns.mT)  # [B, heads, H, W, W], [B, heads, W, H, H]
        # [.., h, w, h', w']: from (h, w) along the row to (h, w'), then along the column to (h', w')
        mask = by_row[:, :, :, :, None, :] + by_column.permute(0, 1, 3, 4, 2)[:, :, :, None]
        mask = mask.flatten(4, 5).flatten(2, 3).to(q.dtype)
        q, k, v = (part.flatten(2, 3) for part in (q, k, v))
        logits = q @ k.mT * q.shape[-1] ** -0.5
        weights = ((logits + mask).softmax(-1) + (logits + mask.mT).softmax(-1)) / 2
        return (weights @ v).unflatten(2, size)


def _between(sums: Tensor) -> Tensor:
    """Running sums `[..., N]` -> what lies between any two places, `[..., N, N]`, negative whatever its sign."""
    return -(sums[..., :, None] - sums[..., None, :]).abs()


class PPMAViT(RMTBackbone):
    """PPMAViT (arXiv 2506.15940, section 3.4), in the layout of RMT.

    Args:
        embed_dims, num_heads: channels and heads of each stage.
        chunkwise_recurrents: whether attention is chunkwise, for each stage.
        layerscales: whether branches have factors that are learnt, for each stage.
        layer_init_values: start of these.
        base: see `RMTBackbone`.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (4, 4, 8, 16),
        chunkwise_recurrents: Sequence[bool] = (True, True, False, False),
        layerscales: Sequence[bool] = (False, False, False, False),
        layer_init_values: float = 1e-6,
        **base: Any,
    ) -> None:
        def attention(stage: int) -> nn.Module:
            return PathMaskedAttention(embed_dims[stage], num_heads[stage], chunkwise_recurrents[stage])

        scales = [layer_init_values if on else None for on in layerscales]
        super().__init__(attention, (2, 1, 2, 1), embed_dims=embed_dims, layer_scales=scales, **base)


PUBLISHED = {
    "ppma_tiny": Published(14, 2.7, 82.6),
    "ppma_small": Published(27, 4.9, 84.2),
    "ppma_base": Published(54, 10.6, 85.0),
}
_CODE = "https://github.com/zhongchenzhao/PPMA"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2506.15940", _CODE, "apache-2.0", crop_pct=0.875) for name in PUBLISHED}
)
_LARGER: dict[str, Any] = {"mlp_ratios": (4, 4, 3, 3), "chunkwise_recurrents": (True, True, True, False)}


def _ppma(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(PPMAViT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def ppma_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """PPMA-T."""
    return _ppma("ppma_tiny", pretrained, {"depths": (2, 2, 8, 2)}, kwargs)


@register_model
def ppma_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """PPMA-S."""
    return _ppma("ppma_small", pretrained, {"depths": (3, 4, 18, 4), **_LARGER}, kwargs)


@register_model
def ppma_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """PPMA-B."""
    variant = {"embed_dims": (80, 160, 320, 512), "depths": (4, 8, 25, 8), "num_heads": (5, 5, 10, 16)}
    scaled = {"layerscales": (False, False, True, True)}
    return _ppma("ppma_base", pretrained, {**variant, **scaled, **_LARGER}, kwargs)
