"""SG-Former: attention tells what matters on a map, and the next block's keys are merged less where it does.

SG-Former: Self-guided Transformer with Evolving Token Reallocation, arXiv 2308.12216. Authors' code:
OliverRensu/SG-Former, no licence (sgformer.py): nothing of it is here, it is written from a description. Results
depend on a sort of what matters, which rounding can change: they are reproducible, and not smooth.
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
from torch.utils.checkpoint import checkpoint

from vistrain.backbones.staged import (
    NormedStage,
    Published,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError, DataError
from vistrain.layers.mlp import ConvMlp
from vistrain.layers.norms import LayerNorm2d
from vistrain.layers.position import sine_embedding
from vistrain.layers.windows import window_merge, window_partition

# Authors' names -> ours. Theirs count stages from 1, and call the group norm after a convolution `bn`.
AUTHORS = KeyMap(
    name="SG-Former",
    marker=r"^patch_embed1\.conv\.",
    rules=(
        (r"^pos_embed$", "stem.pos_embed"),
        (r"^patch_embed1\.", "stem."),
        *((rf"^patch_embed{i + 1}\.conv(\d)\.", rf"stages.{i}.downsample.conv\1.") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^norm{i + 1}\.", f"stages.{i}.norm.") for i in range(4)),
        (r"\.dwconv\.dwconv\.", ".dwconv."),
        (r"\.c\.(?=weight$)", ".conv."),
        (r"\.(conv\d|conv\.\d)\.bn\.", r".\1.norm."),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
WINDOW = (7, 7)
# Tokens that become one key, of the quarter that matters least, of the middle half, and of the quarter that matters
# most, for each ratio of the pooled map; with a ratio of 2, of the two halves.
MERGED: dict[int, tuple[int, ...]] = {8: (196, 56, 28), 4: (49, 14, 7), 2: (2, 1)}
Mask = tuple[Tensor, Tensor]


class ConvGroupNorm(nn.Sequential):
    """A convolution without bias, and a norm over the whole image: `[B, C, H, W]` -> `[B, C', h, w]`."""

    def __init__(self, in_chans: int, out: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(in_chans, out, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, norm=nn.GroupNorm(1, out)))


class Positioned(nn.Module):
    """What every attention here has beside it: a 3x3 convolution of projected tokens, and a projection of the sum.

    Args:
        dim: channels.
        num_heads: of the attention.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.lepe_linear = nn.Linear(dim, dim)
        self.lepe_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def finish(self, attended: Tensor, x: Tensor) -> Tensor:
        """What was attended to, and the normalised map, `[B, H, W, C]` each -> `[B, H, W, C]`."""
        position = self.lepe_conv(self.lepe_linear(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(attended + position)


class HybridAttention(Positioned):
    """Half of the heads attend to a pooled map, the other half within windows; both tell what matters (section 3.2).

    Args:
        dim, num_heads: see `Positioned`.
        sr_ratio: cells by cells of the pooled map.
        qkv_bias: whether projections to queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
        self.norm = nn.LayerNorm(dim)
        self.q1, self.q2 = (nn.Linear(dim, dim // 2, bias=qkv_bias) for _ in "12")
        self.kv1, self.kv2 = (nn.Linear(dim, dim, bias=qkv_bias) for _ in "12")

    def forward(self, x: Tensor, mask: Mask | None) -> tuple[Tensor, Mask | None]:
        """Attend.

        Args:
            x: `[B, H, W, C]`, normalised.
            mask: of the block before, not used.

        Returns:
            `[B, H, W, C]`, and how much each cell is attended to, `[B, H * W]`: row by row, and column by column.
        """
        size, heads = (x.shape[1], x.shape[2]), self.num_heads // 2
        pooled = self.sr(x.permute(0, 3, 1, 2))
        grid = (pooled.shape[2], pooled.shape[3])
        pooled = F.gelu(self.norm(pooled.flatten(2).mT))
        q = self.q1(x.flatten(1, 2)).unflatten(-1, (heads, -1)).transpose(1, 2)
        k, v = self.kv1(pooled).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * self.scale).softmax(-1)
        everywhere = (weights @ v).transpose(1, 2).flatten(2).unflatten(1, size)
        seen = weights.detach().mean((1, 2)).view(-1, 1, *grid)
        matters = F.interpolate(seen, size, mode="nearest")[:, 0]

        q = window_partition(self.q2(x), WINDOW).unflatten(-1, (heads, -1)).transpose(1, 2)
        k, v = window_partition(self.kv2(x), WINDOW).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * self.scale).softmax(-1)
        near = window_merge((weights @ v).transpose(1, 2).flatten(2), WINDOW, size)
        local = window_merge(weights.detach().mean((1, 2))[..., None], WINDOW, size)[..., 0]

        total = matters.to(local.dtype) + local
        return self.finish(torch.cat([everywhere, near], -1), x), (total.flatten(1), total.mT.flatten(1))


class ReallocatedAttention(Positioned):
    """Attention to keys that stand for many tokens where little matters, and for few where much does (section 3.3).

    Half of the heads read tokens of equal importance row by row, the other half column by column.

    Args:
        dim, num_heads: see `Positioned`.
        sr_ratio: chooses how many tokens a key stands for (`MERGED`).
        qkv_bias: whether projections to queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        self.merged = MERGED[sr_ratio]
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv1, self.kv2 = (nn.Linear(dim, dim, bias=qkv_bias) for _ in "12")
        for i, count in enumerate(self.merged, 1):
            self.add_module(f"f{i}", nn.Linear(count, 1))

    def forward(self, x: Tensor, mask: Mask | None) -> tuple[Tensor, Mask | None]:
        """`[B, H, W, C]`, and a mask as `HybridAttention` gives it -> `[B, H, W, C]`, and none."""
        assert mask is not None
        size = (x.shape[1], x.shape[2])
        q = self.q(x.flatten(1, 2)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        orders = (x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2))
        parts = [
            project(self._merge(tokens, matters)).unflatten(-1, (2, self.num_heads // 2, -1)).permute(2, 0, 3, 1, 4)
            for tokens, matters, project in zip(orders, mask, (self.kv1, self.kv2), strict=True)
        ]
        k, v = torch.cat(parts, 2)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.finish(attended.unflatten(1, size), x), None

    def _merge(self, tokens: Tensor, matters: Tensor) -> Tensor:
        """`[B, N, C]` and `[B, N]` -> `[B, K, C]`, from what matters least to what matters most."""
        order = matters.sort(1).indices
        quarter = tokens.shape[1] // 4
        shares = [quarter, 2 * quarter, quarter] if len(self.merged) == 3 else [2 * quarter, 2 * quarter]
        starts = torch.arange(tokens.shape[0], device=order.device)[:, None] * tokens.shape[1]
        ordered = tokens.flatten(0, 1).index_select(0, (order + starts).flatten()).view_as(tokens).split(shares, 1)
        merged = [
            self.get_submodule(f"f{i}")(part.mT.unflatten(2, (-1, count)))[..., 0].mT
            for i, (part, count) in enumerate(zip(ordered, self.merged, strict=True), 1)
        ]
        return torch.cat(merged, 1)


class PlainAttention(Positioned):
    """Attention over the whole map.

    Args:
        dim, num_heads: see `Positioned`.
        qkv_bias: whether projections to queries, keys and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        self.q, self.kv = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)

    def forward(self, x: Tensor, mask: Mask | None) -> tuple[Tensor, Mask | None]:
        """`[B, H, W, C]` and no mask -> `[B, H, W, C]`, and none."""
        size, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.finish(attended.unflatten(1, size), x.unflatten(1, size)), None


class SGBlock(nn.Module):
    """Attention and an MLP, each on normalised tokens and added to what came in.

    Args:
        dim: channels.
        attn: `[B, H, W, C]` and a mask or None -> `[B, H, W, C]`, and a mask or None.
        mlp_ratio: hidden channels of the MLP by channels.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), residual=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Mask | None = None) -> tuple[Tensor, Mask | None]:
        """`[B, H, W, C]` and what mattered to the block before -> the same of this one."""
        attended, mask = self.attn(self.norm1(x), mask)
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x))), mask


class SGStage(NormedStage):
    """A stage whose blocks hand on what matters. Arguments as of `NormedStage`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        x = self.downsample(x).permute(0, 2, 3, 1)
        mask: Mask | None = None
        for block in self.blocks:
            again = self.grad_checkpointing and torch.is_grad_enabled()
            x, mask = checkpoint(block, x, mask, use_reentrant=False) if again else block(x, mask)
        return self.norm(x.permute(0, 3, 1, 2))


class Stem(nn.Module):
    """Three convolutions, a norm, and a learnt position for each cell of the map of `img_size`.

    Args:
        in_chans, dim: channels of input and output.
        grid: (H, W) of that map; others must be whole multiples of it, and positions are resized bicubically.
    """

    def __init__(self, in_chans: int, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Sequential(
            ConvGroupNorm(in_chans, dim, 3, 2), nn.GELU(), ConvGroupNorm(dim, dim, 3), nn.GELU(),
            ConvGroupNorm(dim, dim, 3, 2),
        )  # fmt: skip
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.pos_embed = nn.Parameter(_positions(grid, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_chans, H, W]` -> `[B, C, H / 4, W / 4]`.

        Raises:
            DataError: windows and merged tokens do not come out even at this size.
        """
        side = 4 * self.grid[0]
        if x.shape[2] % side or x.shape[3] % side:
            problem = f"SG-Former takes images whose sides are multiples of {side}, not {x.shape[2]}x{x.shape[3]}"
            raise DataError("image", problem, f"resize them to {side}x{side}")
        x = self.norm(self.conv(x))
        size = (x.shape[2], x.shape[3])
        position = self.pos_embed.mT.unflatten(2, self.grid)
        if size != self.grid:
            position = F.interpolate(position, size, mode="bicubic", align_corners=False)
        return x + position


def _positions(grid: tuple[int, int], dim: int) -> Tensor:
    """`[1, H * W, C]`: sines and then cosines, of the column in the first half of the channels, of the row after."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in grid)
    halves = []
    for places in (columns.expand(grid), rows[:, None].expand(grid)):
        waves = sine_embedding(places.reshape(-1, 1), dim // 2)
        halves += [waves[:, 0::2], waves[:, 1::2]]
    return torch.cat(halves, 1)[None]


class SGFormer(StagedBackbone):
    """SG-Former (arXiv 2308.12216, section 3.4). Maps that it gives out are normalised.

    Args:
        img_size: side of the images in pixels, a multiple of 224. Sides of other images must be multiples of it.
        in_chans: channels of the images.
        embed_dims, depths, num_heads: channels, blocks and heads of each stage; depths are even but for the last.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        qkv_bias, sr_ratios: see `HybridAttention`, the latter for each stage, 1 for plain attention.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 16, 1),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        qkv_bias: bool = True,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        def attention(stage: int, index: int) -> nn.Module:
            dim, heads, ratio = embed_dims[stage], num_heads[stage], sr_ratios[stage]
            if ratio == 1:
                return PlainAttention(dim, heads, qkv_bias)
            return (ReallocatedAttention if index % 2 else HybridAttention)(dim, heads, ratio, qkv_bias)

        if img_size < 224 or img_size % 224:
            problem = f"{img_size} is no multiple of 224, for which its tokens are reallocated"
            raise ConfigError("args.img_size", problem, "leave it out: images of other sizes are padded")
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            dim = embed_dims[i]
            blocks = [SGBlock(dim, attention(i, j), mlp_ratios[i], rate) for j, rate in enumerate(rates)]
            layers = OrderedDict(
                conv1=ConvGroupNorm(embed_dims[i - 1], dim), act1=nn.GELU(),
                conv2=ConvGroupNorm(dim, dim, 3, 2, dim), act2=nn.GELU(), conv3=ConvGroupNorm(dim, dim),
            )  # fmt: skip
            stages.append(SGStage(nn.Sequential(layers) if i else nn.Identity(), blocks, dim))
        super().__init__(
            Stem(in_chans, embed_dims[0], (img_size // 4, img_size // 4)),
            stages,
            nn.Identity(),
            channels=embed_dims,
            strides=(4, 8, 16, 32),
            **base,
        )
        self.size_divisor = img_size
        initialise(self, convolutions="fan_out")


# Accuracies and multiply-adds are in no material of the authors' that could be read.
PUBLISHED = {"sgformer_s": Published(22.5), "sgformer_m": Published(38.7), "sgformer_b": Published(77.95)}
_CODE = "https://github.com/OliverRensu/SG-Former"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2308.12216", _CODE, "none", "stem.conv.0.conv") for name in PUBLISHED}
)


def _sgformer(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(SGFormer, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def sgformer_s(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """SG-Former-S."""
    return _sgformer("sgformer_s", pretrained, {}, kwargs)


@register_model
def sgformer_m(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """SG-Former-M."""
    return _sgformer("sgformer_m", pretrained, {"depths": (2, 6, 28, 2)}, kwargs)


@register_model
def sgformer_b(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """SG-Former-B."""
    variant = {"embed_dims": (96, 192, 384, 768), "depths": (4, 6, 24, 2), "num_heads": (4, 6, 12, 24)}
    return _sgformer("sgformer_b", pretrained, variant, kwargs)
