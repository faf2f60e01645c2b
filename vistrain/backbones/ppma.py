"""PPMA: attention whose logits fall with what a path from token to token passes, along a row and a column.

Polyline Path Masked Attention for Vision Transformer, arXiv 2506.15940. Authors' code: zhongchenzhao/PPMA, Apache-2.0
(classification/models/PPMA.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.mlp import ResidualConvMlp
from vistrain.layers.rotary import rotary_angles, rotate

# Authors' names -> ours. Downsampling stands before a stage here, and in their code after the one before.
AUTHORS = KeyMap(
    name="PPMA",
    marker=r"\.retention\.path_embed\.",
    rules=(
        (r"^patch_embed\.proj\.", "stem."),
        *((rf"^layers\.{i}\.downsample\.", f"stages.{i + 1}.downsample.") for i in range(3)),
        (r"^layers\.", "stages."),
        (r"\.gamma_([12])$", r".gamma\1"),
        (r"\.retention_layer_norm\.", ".norm1."),
        (r"\.final_layer_norm\.", ".norm2."),
        (r"\.retention\.path_embed\.", ".attn."),
        (r"\.retention\.", ".attn."),
        (r"\.(lepe|dwconv|pos)\.conv\.", r".\1."),
        (r"^proj\.", "norm.proj."),
        (r"^norm\.(?!proj\.)", "norm.norm."),
    ),
    drop=(r"\.Relpos\.angle$",),  # constants
)
_convert = converter(AUTHORS)


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under our names; factors of branches are `[C]` here and `[1, 1, 1, C]` there, the last layer linear."""
    state = {k: v.flatten() if ".gamma" in k else v for k, v in _convert(weights, model).items()}
    last = state.get("norm.proj.weight")
    if last is not None:
        state["norm.proj.weight"] = last.view(*last.shape[:2], 1, 1)
    return state


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

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        height, width = x.shape[1:3]
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        position = self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        heads = x.unflatten(-1, (self.num_heads, -1))
        steps = F.softplus(self.dt_linear(heads) + self.dt_bias[:, None])  # [B, H, W, heads, 2]
        decay = (-self.A_log.float().exp()[:, None] * steps.float()).permute(4, 0, 3, 1, 2)
        along_rows, along_columns = decay[0].cumsum(3), decay[1].cumsum(2)  # [B, heads, H, W]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4) for part in (q, k, v))
        # Positions are counted row by row, as if the map were a line.
        angles = rotary_angles(torch.arange(height * width, device=x.device), q.shape[-1])
        q, k = (rotate(part.flatten(2, 3), angles).unflatten(2, (height, width)) for part in (q, k))
        attend = self._chunks if self.chunkwise else self._whole
        attended = attend(q, k, v, along_rows, along_columns)  # [B, heads, H, W, D]
        return self.out_proj(attended.permute(0, 2, 3, 1, 4).flatten(3) + position)

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


class PPMABlock(nn.Module):
    """Position by convolution, attention and an MLP, each added to what came in.

    Args:
        dim: channels.
        num_heads, chunkwise: see `PathMaskedAttention`.
        mlp_ratio: hidden channels of the MLP by channels.
        layer_scale: initial factor of attention and MLP, learnt for each channel; None for no factors.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        chunkwise: bool,
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pos = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = PathMaskedAttention(dim, num_heads, chunkwise)
        self.ffn = ResidualConvMlp(dim, int(dim * mlp_ratio))
        scales = (None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale)) for _ in "12")
        self.gamma1, self.gamma2 = scales
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        x = x + self.pos(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        attended = self.attn(self.norm1(x))
        x = x + self.drop_path(attended if self.gamma1 is None else self.gamma1 * attended)
        changed = self.ffn(self.norm2(x))
        return x + self.drop_path(changed if self.gamma2 is None else self.gamma2 * changed)


class PPMAViT(StagedBackbone):
    """PPMAViT (arXiv 2506.15940, section 3.4), in the layout of RMT.

    Args:
        in_chans: channels of the images.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        chunkwise_recurrents: whether attention is chunkwise, for each stage.
        projection: channels of what the classifier sees.
        layerscales: whether branches have factors that are learnt, for each stage.
        layer_init_values: start of these.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        num_heads: Sequence[int] = (4, 4, 8, 16),
        mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        chunkwise_recurrents: Sequence[bool] = (True, True, False, False),
        projection: int = 1024,
        layerscales: Sequence[bool] = (False, False, False, False),
        layer_init_values: float = 1e-6,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            dim, scale = embed_dims[i], layer_init_values if layerscales[i] else None
            shape = (dim, num_heads[i], chunkwise_recurrents[i], mlp_ratios[i], scale)
            reduction = nn.Conv2d(embed_dims[i - 1], dim, 3, 2, 1)
            down = nn.Sequential(OrderedDict(reduction=reduction, norm=nn.BatchNorm2d(dim)))
            stages.append(Stage(down if i else nn.Identity(), [PPMABlock(*shape, drop_path=rate) for rate in rates]))
        half, dim = embed_dims[0] // 2, embed_dims[0]
        widths = ((in_chans, half, 2), (half, half, 1), (half, dim, 2), (dim, dim, 1))
        layers = [x for a, b, s in widths for x in (nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.GELU())]
        last = OrderedDict(
            proj=nn.Conv2d(embed_dims[-1], projection, 1), norm=nn.BatchNorm2d(projection), act=nn.SiLU()
        )
        super().__init__(
            nn.Sequential(*layers[:-1]),
            stages,
            nn.Sequential(last),
            channels=embed_dims,
            strides=(4, 8, 16, 32),
            **{"num_features": projection, **base},
        )
        initialise(self)


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
    return _ppma("ppma_tiny", pretrained, {}, kwargs)


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
