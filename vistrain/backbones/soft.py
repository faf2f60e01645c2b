"""SOFT: a pyramid of softmax-free attention, whose last stage has softmax attention and a token for the class.

SOFT: Softmax-free Transformer with Linear Complexity, arXiv 2110.11945; Softmax-free Linear Transformers,
arXiv 2207.03341. Authors' code: fudan-zvg/SOFT, MIT (models/softmax_free_vision_transformer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vistrain.attention.base import attend
from vistrain.attention.softmax_free import SoftmaxFreeAttention
from vistrain.backbones.class_token import ClassTokenBackbone, as_map, as_tokens, class_and_cells
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
from vistrain.layers.norms import LayerNorm2d
from vistrain.layers.position import resized_positions

# Authors' names -> ours: theirs count stages from 1.
AUTHORS = KeyMap(
    name="SOFT",
    marker=r"^patch_embed1\.proj\.0\.",
    rules=(
        (r"^patch_embed1\.", "stem."),
        (r"^pos_embed1$", "stem.pos_embed"),
        (r"^(pos_embed4|cls_token)$", r"stages.3.\1"),
        (r"^stages\.3\.pos_embed4$", "stages.3.pos_embed"),
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^pos_embed{i + 1}$", f"stages.{i}.downsample.pos_embed") for i in (1, 2)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        (r"\.att\.mha\.W_([qv])\.", r".attn.\1."),
        (r"\.att\.mha\.attn\.Qlandmark_op\.", ".attn.landmarks."),
        (r"\.att\.mha\.attn\.Qnorm_act\.0\.", ".attn.norm."),
        (r"\.att\.mha\.attn\.conv\.", ".attn.conv."),
        (r"\.att\.mha\.ff\.", ".attn.proj."),
        (r"\.att\.", "."),
    ),
    exports=(
        (r"^(stages\.[012]\S*)\.attn\.([qv])\.", (r"\1.att.mha.W_\2.",)),
        (r"^(stages\.[012]\S*)\.attn\.landmarks\.", (r"\1.att.mha.attn.Qlandmark_op.",)),
        (r"^(stages\.[012]\S*)\.attn\.norm\.", (r"\1.att.mha.attn.Qnorm_act.0.",)),
        (r"^(stages\.[012]\S*)\.attn\.conv\.", (r"\1.att.mha.attn.conv.",)),
        (r"^(stages\.[012]\S*)\.attn\.proj\.", (r"\1.att.mha.ff.",)),
        (r"^(stages\.[012]\.blocks\.\d+)\.(?!att\.)", (r"\1.att.",)),
        *((rf"^stages\.{i}\.blocks\.", (f"block{i + 1}.",)) for i in range(4)),
        (r"^stem\.pos_embed$", ("pos_embed1",)),
        *((rf"^stages\.{i}\.downsample\.pos_embed$", (f"pos_embed{i + 1}",)) for i in (1, 2)),
        (r"^stages\.3\.pos_embed$", ("pos_embed4",)),
        (r"^stages\.3\.cls_token$", ("cls_token",)),
        (r"^stem\.", ("patch_embed1.",)),
        *((rf"^stages\.{i}\.downsample\.", (f"patch_embed{i + 1}.",)) for i in (1, 2, 3)),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
GRIDS = (56, 28, 14, 7)  # sides of the tables of positions, whatever the images' size


class Embedding(nn.Module):
    """Convolutions of stride 2 in all but one, each with batch norm and ReLU, and a position for each cell.

    Args:
        in_chans: channels of what comes in.
        dim: channels C.
        stem: three convolutions instead of one, for images.
        grid: side of the table of positions, which is resized bilinearly; None for none.
    """

    def __init__(self, in_chans: int, dim: int, stem: bool, grid: int | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = ((in_chans, 32, 2), (32, 32, 1), (32, dim, 2)) if stem else ((in_chans, dim, 2),)
        for a, b, stride in widths:
            layers += [nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.proj = nn.Sequential(*layers)
        self.grid = grid
        self.pos_embed = None
        if grid:
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid**2, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_chans, H, W]` -> `[B, C, h, w]`."""
        x = self.proj(x)
        return x if self.pos_embed is None else x + resized_positions(self.pos_embed, (x.shape[2], x.shape[3]))


class SOFTBlock(nn.Module):
    """Softmax-free attention and a perceptron, each added to what came in and normalised after.

    Args:
        dim: channels.
        attn: the attention.
        drop: dropout of both branches (the authors' code gives it the rate of stochastic depth).
    """

    def __init__(self, dim: int, attn: SoftmaxFreeAttention, drop: float = 0.0) -> None:
        super().__init__()
        self.attn = attn
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff1, self.ff2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        size = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        x = self.norm1(x + self.drop(attend(self.attn, x, size)))
        x = self.norm2(x + self.drop(self.ff2(F.gelu(self.ff1(x), approximate="tanh"))))
        return x.unflatten(1, size)


class PlainAttention(nn.Module):
    """Softmax attention of all tokens, the class's with them.

    Args:
        dim: channels.
        num_heads: dividing them.
        qkv_bias: whether projections to queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ClassBlock(nn.Module):
    """Attention and an MLP, each on normalised tokens and added to what came in.

    Args:
        dim: channels.
        num_heads, qkv_bias: see `PlainAttention`.
        mlp_ratio: hidden channels of the MLP by channels.
        drop_path: probability that a branch is left out of a sample in training.
        eps: of the norms.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool, mlp_ratio: float, drop_path: float, eps: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn = PlainAttention(dim, num_heads, qkv_bias)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassStage(Stage):
    """A stage with a token for the class before those of the map.

    Args:
        downsample: see `Stage`.
        blocks: each `[B, 1 + N, C]` -> the same shape.
        dim: channels C.
        grid: side of the table of positions.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int, grid: int) -> None:
        super().__init__(downsample, blocks)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + grid**2, dim), std=0.02))

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` -> the map `[B, C', H', W']`, and the class's token as one of one cell, `[B, C', 1, 1]`."""
        x = self.downsample(x)
        tokens = as_tokens(*class_and_cells(x, self.cls_token, self.pos_embed))
        for block in self.blocks:
            again = self.grad_checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, use_reentrant=False) if again else block(tokens)
        return as_map(tokens, (x.shape[2], x.shape[3]))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        return self.tokens(x)[0]


class SOFT(ClassTokenBackbone):
    """SOFT (arXiv 2110.11945, table 1). Classes are told by a token of the last stage, which is no cell of its map.

    Args:
        in_chans: channels of the images.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage.
        mlp_ratio: hidden channels of the last stage's MLPs by channels; elsewhere they are four times as many.
        qkv_bias: whether projections to queries, keys and values have a bias.
        sr_ratios: cells by cells that make a landmark, in each stage but the last.
        normalized, alone: see `SoftmaxFreeAttention`.
        norm_eps: of the last stage's norms.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (1, 2, 3, 2),
        num_heads: Sequence[int] = (2, 4, 10, 16),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        normalized: bool = False,
        alone: bool = False,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        stages: list[nn.Module] = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            dim, heads = embed_dims[i], num_heads[i]
            if i == 3:
                blocks = [ClassBlock(dim, heads, qkv_bias, mlp_ratio, rate, norm_eps) for rate in rates]
                stages.append(ClassStage(Embedding(embed_dims[2], dim, False, None), blocks, dim, GRIDS[3]))
                continue
            grid = (GRIDS[i], GRIDS[i])
            shape = (dim, heads, grid, sr_ratios[i], (9, 5, 3)[i], normalized, alone, qkv_bias)
            down = Embedding(embed_dims[i - 1], dim, False, GRIDS[i]) if i else nn.Identity()
            stages.append(Stage(down, [SOFTBlock(dim, SoftmaxFreeAttention(*shape), rate) for rate in rates]))
        stem = Embedding(in_chans, embed_dims[0], True, GRIDS[0])
        norm = LayerNorm2d(embed_dims[-1], eps=norm_eps)
        super().__init__(stem, stages, norm, channels=embed_dims, strides=(4, 8, 16, 32), **base)
        initialise(self)

    def advance(self, stage: nn.Module, x: Tensor, token: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `StagedBackbone`; the last stage brings the class's token."""
        return stage.tokens(x) if isinstance(stage, ClassStage) else super().advance(stage, x, token)

    def no_weight_decay(self) -> set[str]:
        """Positions, and the class's token."""
        return {name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "cls_token"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `StagedBackbone`; what the last stage adds to its tokens is of its downsampling."""
        groups = super().group_matcher(coarse)
        if not coarse:
            groups["blocks"][0] = (r"^stages\.(\d+)\.(?:downsample|pos_embed|cls_token)", (0,))
        return groups


PUBLISHED = {
    "soft_tiny": Published(13, 1.9, 79.3, why="printed without the 0.19 of Newton's steps"),
    "soft_tiny_norm": Published(13, 1.9, 79.4, why="printed without the 0.19 of Newton's steps"),
}
_CODE = "https://github.com/fudan-zvg/SOFT"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2207.03341", _CODE, "mit", "stem.proj.0") for name in PUBLISHED}
)


def _soft(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(SOFT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def soft_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """SOFT-Tiny."""
    return _soft("soft_tiny", pretrained, {}, kwargs)


@register_model
def soft_tiny_norm(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """SOFT-Tiny, normalised (SOFT++)."""
    return _soft("soft_tiny_norm", pretrained, {"normalized": True}, kwargs)
