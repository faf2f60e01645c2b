"""BiFormer: attention to the regions that matter, chosen by routing.

BiFormer: Vision Transformer with Bi-Level Routing Attention, arXiv 2303.08810.
Authors' code: rayleizhu/BiFormer, MIT (models/biformer.py, models/biformer_stl.py, models/biformer_stl_nchw.py;
semantic_segmentation/models_mm/biformer_mm.py). Maps of any size are padded as there with `auto_pad`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.bilevel_routing import BiLevelRoutingAttention, Pool
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    dense_key_map,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d

# Authors' names -> ours, for all of their files. 1x1 convolutions of `biformer_stl_nchw` are linear layers here.
AUTHORS = KeyMap(
    name="BiFormer",
    marker=r"^downsample_layers\.",
    rules=(
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.attn\.(qkv\.qkv|qkv_linear)\.", ".attn.qkv."),
        (r"\.attn\.(wo|output_linear)\.", ".attn.proj."),
        (r"\.attn\.router\.emb\.", ".attn.router."),
        (r"\.pos_embed\.(?!conv\.)", ".pos_embed.conv."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.1\.dwconv\.", ".mlp.conv.conv."),
        (r"\.mlp\.[23]\.", ".mlp.fc2."),
    ),
    # the last stage's attention is not routed, and keeps its names
    exports=(
        (r"^stem\.", ("downsample_layers.0.",)),
        (r"^stages\.(\d)\.downsample\.", (r"downsample_layers.\1.",)),
        (r"^(stages\.[012]\.\S+\.attn)\.qkv\.", (r"\1.qkv.qkv.",)),
        (r"^(stages\.[012]\.\S+\.attn)\.proj\.", (r"\1.wo.",)),
        (r"\.attn\.router\.", (".attn.router.emb.",)),
        (r"\.pos_embed\.conv\.", (".pos_embed.",)),
        (r"\.mlp\.fc1\.", (".mlp.0.",)),
        (r"\.mlp\.conv\.conv\.", (".mlp.1.dwconv.",)),
        (r"\.mlp\.fc2\.", (".mlp.3.",)),
        (r"^stages\.(\d)\.blocks\.", (r"stages.\1.",)),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
DENSE = dense_key_map(AUTHORS, [rf"extra_norms\.{i}" for i in range(4)])
Norm = Literal["batchnorm2d", "layernorm2d"]
NORMS: dict[str, type[nn.Module]] = {"batchnorm2d": nn.BatchNorm2d, "layernorm2d": LayerNorm2d}


class LePEAttention(nn.Module):
    """Attention over the whole map, to which a depthwise convolution is added.

    Args:
        dim: channels.
        num_heads: of the attention.
        side_dwconv: kernel of the convolution; 0 for none.
        lepe_of: what is convolved: in `biformer.py` the input, faithfully; in `biformer_stl_nchw.py` the values.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, side_dwconv: int = 5, lepe_of: Literal["input", "values"] = "input"
    ) -> None:
        super().__init__()
        self.num_heads, self.lepe_of = num_heads, lepe_of
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim) if side_dwconv else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        qkv = self.qkv(x).unflatten(-1, (3, -1))
        q, k, v = qkv.unflatten(-1, (self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.lepe is not None:
            source = x if self.lepe_of == "input" else qkv[:, :, 2]
            attended = attended + self.lepe(source.mT.unflatten(2, size)).flatten(2).mT
        return self.proj(attended)


class ChannelsLastConv(nn.Module):
    """A 3x3 depthwise convolution, `[B, H, W, C]` -> `[B, H, W, C]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class BiFormerBlock(nn.Module):
    """Position by convolution, attention, MLP (figure 4).

    Args:
        dim: channels.
        attn: `[B, H * W, C]` and (H, W) -> `[B, H * W, C]`.
        mlp_ratio: hidden channels of the MLP by channels.
        before_attn_dwconv: whether a 3x3 depthwise convolution is added to the map first.
        layer_scale: start of the channels' factors on both branches; 0 or less for none.
        pre_norm: norms stand before the branches; otherwise after the sums.
        mlp_dwconv: a 3x3 depthwise convolution within the MLP.
        drop_path: probability that the block is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        before_attn_dwconv: bool = True,
        layer_scale: float = -1.0,
        pre_norm: bool = True,
        mlp_dwconv: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.pos_embed = ChannelsLastConv(dim) if before_attn_dwconv else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(dim * mlp_ratio)
        layers = {"fc1": nn.Linear(dim, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, dim)}
        if mlp_dwconv:
            layers = {"fc1": layers["fc1"], "conv": ChannelsLastConv(hidden), **layers}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.drop_path = DropPath(drop_path)
        scaled = layer_scale > 0
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        x = self._residual(x, self._attend, self.norm1, self.gamma1)
        return self._residual(x, self.mlp, self.norm2, self.gamma2)

    def _attend(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        return self.attn(x.flatten(1, 2), size).unflatten(1, size)

    def _residual(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module, gamma: nn.Parameter | None
    ) -> Tensor:
        y = branch(norm(x) if self.pre_norm else x)
        x = x + self.drop_path(y if gamma is None else gamma * y)
        return x if self.pre_norm else norm(x)


class BiFormer(StagedBackbone):
    """BiFormer (arXiv 2303.08810, figure 4).

    Args:
        in_chans: channels of the images.
        embed_dim: channels of each stage.
        depth: blocks of each stage.
        head_dim: channels of a head's queries and keys.
        qk_dims: channels of queries and keys of each stage; None are those of the stage.
        qk_scale: of the logits, where attention is routed; None is one over the root of a stage's `qk_dims`.
        n_win: regions along each side of the map.
        topks: regions that each region attends to, for each stage; -1 is attention over the whole map with 8 heads,
            -2 the same with a convolution beside it.
        side_dwconv: kernel of the convolution beside attention; 0 for none.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        before_attn_dwconv: kernel of the convolution that encodes positions: 3, or 0 for none.
        layer_scale_init_value: start of the channels' factors on all branches; 0 or less for none.
        pre_norm, mlp_dwconv: see `BiFormerBlock`.
        kv_downsample_mode, kv_per_wins, kv_downsample_ratios: `kv_pool`, and for each stage `kv_per_win` and
            `kv_pool_ratio` of `BiLevelRoutingAttention`.
        param_attention: `qkvo`, or `qkv` to leave out the last linear layer, where attention is routed.
        soft_routing, diff_routing, param_routing: see `BiLevelRoutingAttention`.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: Sequence[int] = (64, 128, 256, 512),
        depth: Sequence[int] = (4, 4, 18, 4),
        head_dim: int = 32,
        qk_dims: Sequence[int] | None = None,
        qk_scale: float | None = None,
        n_win: int = 7,
        topks: Sequence[int] = (1, 4, 16, -2),
        side_dwconv: int = 5,
        mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        before_attn_dwconv: Literal[0, 3] = 3,
        layer_scale_init_value: float = -1.0,
        pre_norm: bool = True,
        mlp_dwconv: bool = False,
        kv_downsample_mode: Pool = "identity",
        kv_per_wins: Sequence[int] = (2, 2, 2, 1),
        kv_downsample_ratios: Sequence[int] = (4, 2, 1, 1),
        param_attention: Literal["qkvo", "qkv"] = "qkvo",
        soft_routing: bool = False,
        diff_routing: bool = False,
        param_routing: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        qk_dims = qk_dims or embed_dim

        def attention(stage: int) -> nn.Module:
            if topks[stage] < 0:
                return LePEAttention(embed_dim[stage], side_dwconv=side_dwconv if topks[stage] == -2 else 0)
            return BiLevelRoutingAttention(
                embed_dim[stage],
                qk_dims[stage] // head_dim,
                n_win,
                qk_dims[stage],
                qk_scale,
                topks[stage],
                side_dwconv,
                kv_pool=kv_downsample_mode,
                kv_per_win=kv_per_wins[stage],
                kv_pool_ratio=kv_downsample_ratios[stage],
                soft_routing=soft_routing,
                diff_routing=diff_routing,
                param_routing=param_routing,
                project=param_attention == "qkvo",
            )

        stages = []
        for i, rates in enumerate(drop_path_rates(depth, drop_path_rate)):
            blocks = [
                BiFormerBlock(
                    embed_dim[i],
                    attention(i),
                    mlp_ratios[i],
                    before_attn_dwconv > 0,
                    layer_scale_init_value,
                    pre_norm,
                    mlp_dwconv,
                    drop_path=rate,
                )
                for rate in rates
            ]
            merge = [nn.Conv2d(embed_dim[i - 1], embed_dim[i], 3, 2, 1), nn.BatchNorm2d(embed_dim[i])]
            stages.append(Stage(nn.Sequential(*merge) if i else nn.Identity(), blocks))
        half, dim = embed_dim[0] // 2, embed_dim[0]
        stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, 2, 1),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dim, 3, 2, 1),
            nn.BatchNorm2d(dim),
        )
        super().__init__(
            stem,
            stages,
            nn.BatchNorm2d(embed_dim[-1]),
            channels=embed_dim,
            strides=(4, 8, 16, 32),
            **base,
        )
        initialise(self)


class BiFormerSTL(StagedBackbone):
    """BiFormer in the layout of Swin-T, the paper's ablation (arXiv 2303.08810, table 5).

    Args:
        in_chans: channels of the images.
        embed_dim, depth, head_dim, topks, side_dwconv, mlp_ratios, drop_path_rate: see `BiFormer`.
        n_wins: regions along each side of the map, for each stage.
        norm_layer: between stages and at the end.
        pre_head_norm_layer: at the end, if it is another one.
        nchw: the authors' second form, which pads what was projected (see `BiLevelRoutingAttention`). Its attention
            over the whole map (`topks` of -1) convolves values, faithfully with a kernel of 5 whatever `side_dwconv`.
        base: see `StagedBackbone`.
    """

    smallest_side = 32

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: Sequence[int] = (96, 192, 384, 768),
        depth: Sequence[int] = (2, 2, 6, 2),
        head_dim: int = 32,
        n_wins: Sequence[int] = (7, 7, 7, 7),
        topks: Sequence[int] = (1, 4, 16, -2),
        side_dwconv: int = 5,
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        norm_layer: Norm = "batchnorm2d",
        pre_head_norm_layer: Norm | None = None,
        nchw: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        norm = NORMS[norm_layer]

        def attention(stage: int) -> nn.Module:
            dim = embed_dim[stage]
            if topks[stage] > 0:
                heads = dim // head_dim
                return BiLevelRoutingAttention(
                    dim, heads, n_wins[stage], topk=topks[stage], side_dwconv=side_dwconv, pad_projected=nchw
                )
            if nchw:
                return LePEAttention(dim, lepe_of="values")
            return LePEAttention(dim, side_dwconv=side_dwconv if topks[stage] == -2 else 0)

        stages = []
        for i, rates in enumerate(drop_path_rates(depth, drop_path_rate)):
            blocks = [
                BiFormerBlock(embed_dim[i], attention(i), mlp_ratios[i], before_attn_dwconv=False, drop_path=rate)
                for rate in rates
            ]
            merge = [norm(embed_dim[i - 1]), nn.Conv2d(embed_dim[i - 1], embed_dim[i], 2, 2)]
            stages.append(Stage(nn.Sequential(*merge) if i else nn.Identity(), blocks))
        super().__init__(
            nn.Sequential(nn.Conv2d(in_chans, embed_dim[0], 4, 4), norm(embed_dim[0])),
            stages,
            NORMS[pre_head_norm_layer or norm_layer](embed_dim[-1]),
            channels=embed_dim,
            strides=(4, 8, 16, 32),
            **base,
        )
        initialise(self)


PUBLISHED = {
    "biformer_tiny": Published(13.1, 2.2, 81.4),
    "biformer_small": Published(25.5, 4.5, 83.8),
    "biformer_base": Published(56.8, 9.8, 84.3),
    "biformer_stl": Published(28.4, 4.6, 82.7),
    "biformer_stl_nchw": Published(28.4, 4.6, 82.7),
}
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2303.08810", "https://github.com/rayleizhu/BiFormer", "mit") for name in PUBLISHED}
)


def _build(
    cls: type[StagedBackbone], name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]
) -> StagedBackbone:
    return build_variant(cls, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """BiFormer-T."""
    return _build(BiFormer, "biformer_tiny", pretrained, {"depth": (2, 2, 8, 2)}, kwargs)


@register_model
def biformer_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """BiFormer-S."""
    return _build(BiFormer, "biformer_small", pretrained, {}, kwargs)


@register_model
def biformer_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """BiFormer-B."""
    return _build(BiFormer, "biformer_base", pretrained, {"embed_dim": (96, 192, 384, 768)}, kwargs)


@register_model
def biformer_stl(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """BiFormer-STL."""
    return _build(BiFormerSTL, "biformer_stl", pretrained, {}, kwargs)


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """BiFormer-STL in the authors' second form, with weights of its own."""
    variant = {"nchw": True, "topks": (1, 4, 16, -1)}
    return _build(BiFormerSTL, "biformer_stl_nchw", pretrained, variant, kwargs)
