"""LSNet: kernels of 3x3 cells, made for each place by looking at 7x7 cells around it.

LSNet: See Large, Focus Small, arXiv 2503.23135. Authors' code: jameslahm/lsnet, no licence (model/lsnet.py,
model/ska.py; detection/model/lsnet.py for maps): nothing of it is here, it is written from the paper and a description.
Theirs aggregates by a Triton kernel for GPUs; here sums of nine shifted products do, without a copy of the neighbours.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, SqueezeExcite
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones.distilled import DistilledBackbone
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
from vistrain.layers.biased_attention import biased_attention
from vistrain.layers.fusion import ConvBN, ParallelConvs

# Authors' names -> ours. The two layers before a stage's blocks are its downsampling there.
AUTHORS = KeyMap(
    name="LSNet",
    marker=r"^blocks\d\.\d+\.(mixer|c)\.",
    rules=(
        (r"^patch_embed\.", "stem."),
        *((rf"^blocks{i}\.([01])\.(?=c\.|bn\.)", rf"stages.{i - 1}.downsample.\1.") for i in (2, 3, 4)),
        (r"^blocks1\.(\d+)\.", r"stages.0.blocks.\1."),
        *((rf"^blocks{i}\.{n}\.", f"stages.{i - 1}.blocks.{n - 2}.") for i in (2, 3, 4) for n in range(2, 32)),
        (r"\.mixer\.conv\.", ".mixer.branches.large."),
        (r"\.mixer\.conv1\.", ".mixer.branches.small."),
        (r"\.mixer\.m\.(?=qkv|dw|proj|attention)", ".mixer."),
        (r"\.ffn\.m\.", ".ffn."),
        (r"\.c\.(?=weight$)", ".conv."),
        (r"^head\.bn\.", "norm."),
        (r"^head_dist\.bn\.", "norm_dist."),
        (r"^(head|head_dist)\.l\.", r"\1."),
    ),
    drop=(r"\.attention_bias_idxs$",),  # a table of constants
)
DENSE = dense_key_map(AUTHORS, ())
_convert = converter(AUTHORS)


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under our names; tables of biases of another grid are resized bicubically, as the dense code does."""
    state, wanted = _convert(weights, model), model.state_dict()
    for key, table in state.items():
        if key.endswith(".attention_biases") and key in wanted and wanted[key].shape != table.shape:
            before, after = (math.isqrt(x.shape[1]) for x in (table, wanted[key]))
            grid = table.view(1, -1, before, before)
            state[key] = F.interpolate(grid, (after, after), mode="bicubic", align_corners=False)[0].flatten(1)
    return state


def small_kernel_aggregation(x: Tensor, kernels: Tensor) -> Tensor:
    """Weighted sums of 3x3 cells around each, zeros beyond the border (section 3.2, equation 5).

    Args:
        x: `[B, C, H, W]`.
        kernels: `[B, G, 9, H, W]`; channel c takes those of c modulo G, faithfully interleaved.

    Returns:
        `[B, C, H, W]`.
    """
    height, width = x.shape[2:]
    dtype = torch.promote_types(x.dtype, kernels.dtype)
    # Rows of two more cells stand one after the other, so that each of the nine neighbours is a whole map, moved:
    # long runs in memory however small the map is. What the two more cells of kernels come to is cut off.
    cells = F.pad(x.to(dtype), (1, 1, 1, 2)).unflatten(1, (-1, kernels.shape[1])).flatten(3)
    kernels = F.pad(kernels.to(dtype), (0, 2)).flatten(3)[:, None]
    if torch.is_grad_enabled() and (cells.requires_grad or kernels.requires_grad):
        out: Tensor = _SumOfShifted.apply(cells, kernels, width + 2)
    else:
        out = _sum_of_shifted(cells, kernels, width + 2)
    return out.flatten(1, 2).unflatten(2, (height, width + 2))[..., :width].contiguous()


def _shifted(cells: Tensor, row: int, length: int) -> list[Tensor]:
    """`[..., L]`, rows of so many cells -> the nine neighbours of the first cells, each `[..., length]`."""
    return [cells[..., start : start + length] for y in range(3) for start in range(y * row, y * row + 3)]


def _sum_of_shifted(cells: Tensor, kernels: Tensor, row: int) -> Tensor:
    """`[B, R, G, L]` and `[B, 1, G, 9, N]` -> `[B, R, G, N]`."""
    first, *others = _shifted(cells, row, kernels.shape[-1])
    out = first * kernels[:, :, :, 0]
    for k, shifted in enumerate(others, 1):
        out.addcmul_(shifted, kernels[:, :, :, k])
    return out


class _SumOfShifted(torch.autograd.Function):
    """The same, with gradients that are summed in place: torch's own pad and add a map for each of nine slices."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, kernels: Tensor, row: int) -> Tensor:
        ctx.save_for_backward(cells, kernels)
        ctx.row = row
        return _sum_of_shifted(cells, kernels, row)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        cells, kernels = ctx.saved_tensors
        of_cells, products, of_kernels = torch.zeros_like(cells), torch.empty_like(gradient), []
        parts = (_shifted(maps, ctx.row, kernels.shape[-1]) for maps in (cells, of_cells))
        for k, (shifted, of_shifted) in enumerate(zip(*parts, strict=True)):
            of_shifted.addcmul_(gradient, kernels[:, :, :, k])
            of_kernels.append(torch.mul(gradient, shifted, out=products).sum(1, keepdim=True))
        return of_cells, torch.stack(of_kernels, 3), None


class PooledBatchNorm(nn.BatchNorm1d):
    """A batch norm of vectors `[B, C]`, and of maps `[B, C, H, W]` where nothing pools them."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C]` -> `[B, C]`, or `[B, C, H, W]` -> `[B, C, H, W]`."""
        return super().forward(x) if x.dim() == 2 else super().forward(x.flatten(2)).view_as(x)


class LSConv(nn.Module):
    """Large-kernel perception makes the kernels of small-kernel aggregation (section 3.2).

    Args:
        dim: channels, a multiple of 8.
        groups: channels that share a kernel.
    """

    def __init__(self, dim: int, groups: int = 8) -> None:
        super().__init__()
        half, made = dim // 2, 9 * dim // groups
        self.lkp = nn.Sequential(
            OrderedDict(
                cv1=ConvBN(dim, half),
                act1=nn.ReLU(),
                cv2=ConvBN(half, half, 7, groups=half),
                cv3=ConvBN(half, half),
                act3=nn.ReLU(),
                cv4=nn.Conv2d(half, made, 1),
                norm=nn.GroupNorm(dim // groups, made),
            )
        )
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.bn(small_kernel_aggregation(x, self.lkp(x).unflatten(1, (-1, 9)))) + x


class LeViTAttention(nn.Module):
    """Attention with a bias for each distance along the axes, added to what came in (LeViT, arXiv 2104.01136).

    Args:
        dim: channels.
        key_dim: channels of a head's queries and keys.
        num_heads: of the attention.
        grid: side of the map that biases are learnt for. On other maps the matrix of all pairs is resized bicubically,
            faithfully as if pairs of tokens were pixels.
        drop_path: probability that the branch is left out of a sample in training.
    """

    pairs: Tensor

    def __init__(self, dim: int, key_dim: int, num_heads: int, grid: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.queries = num_heads, num_heads * key_dim
        self.qkv = ConvBN(dim, dim + 2 * self.queries)
        self.dw = ConvBN(self.queries, self.queries, 3, groups=self.queries)
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(dim, dim, bn_weight=0.0))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, grid * grid))
        places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))
        steps = (places[:, None] - places[None, :]).abs()
        self.register_buffer("pairs", steps[..., 0] * grid + steps[..., 1], persistent=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        size = (x.shape[2], x.shape[3])
        q, k, v = self.qkv(x).split((self.queries, self.queries, x.shape[1]), 1)
        q, k, v = (part.flatten(2).unflatten(1, (self.num_heads, -1)).mT for part in (self.dw(q), k, v))
        tokens = size[0] * size[1]
        bias = self.attention_biases.index_select(1, self.pairs.flatten()).view(1, self.num_heads, *self.pairs.shape)
        if bias.shape[-1] != tokens:
            bias = F.interpolate(bias, (tokens, tokens), mode="bicubic", align_corners=False)
        attended = biased_attention(q, k, v, bias)
        return x + self.drop_path(self.proj(attended.mT.flatten(1, 2).unflatten(2, size)))


class LSBlock(nn.Module):
    """A mixer of cells, squeeze and excitation if it is a fixed one, and an MLP that is added (figure 4).

    Args:
        dim: channels.
        mixer: `[B, C, H, W]` -> `[B, C, H, W]`, what came in included.
        excite: whether squeeze and excitation follows the mixer.
        drop_path: probability that the MLP is left out of a sample in training.
    """

    def __init__(self, dim: int, mixer: nn.Module, excite: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.se = SqueezeExcite(dim, 0.25) if excite else nn.Identity()
        self.ffn = nn.Sequential(
            OrderedDict(pw1=ConvBN(dim, 2 * dim), act=nn.ReLU(), pw2=ConvBN(2 * dim, dim, bn_weight=0.0))
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        x = self.se(self.mixer(x))
        return x + self.drop_path(self.ffn(x))


class LSNet(DistilledBackbone):
    """LSNet (arXiv 2503.23135, figure 4). Its strides are 8 to 64.

    Args:
        img_size: side of the images trained on, in pixels, which decides the tables of attention. Images of any size
            are taken.
        in_chans: channels of the images.
        embed_dim: channels of each stage.
        depth: blocks of each stage; 0 leaves downsampling alone.
        num_heads: of the last stage's attention, the last of the list; the others are listed, faithfully, in vain.
        key_dim: channels of a head's queries and keys, likewise.
        bias_grid: side of the map that attention's biases are learnt for; None is that of `img_size`. The authors'
            dense code has 14.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `DistilledBackbone`.
    """

    pool_first = True

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        embed_dim: Sequence[int] = (64, 128, 256, 384),
        depth: Sequence[int] = (0, 2, 8, 10),
        num_heads: Sequence[int] = (3, 3, 3, 4),
        key_dim: Sequence[int] = (16, 16, 16, 16),
        bias_grid: int | None = None,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        def block(stage: int, index: int, rate: float) -> LSBlock:
            dim = embed_dim[stage]
            if index % 2 == 0:
                branches = {"large": ConvBN(dim, dim, 3, groups=dim), "small": ConvBN(dim, dim, groups=dim)}
                return LSBlock(dim, ParallelConvs(branches, identity=True), True, rate)
            if stage < 3:
                return LSBlock(dim, LSConv(dim), False, rate)
            grid = bias_grid or math.ceil(img_size / 64)
            return LSBlock(dim, LeViTAttention(dim, key_dim[3], num_heads[3], grid, rate), False, rate)

        dim = embed_dim[0]
        stem = nn.Sequential(
            ConvBN(in_chans, dim // 4, 3, 2), nn.ReLU(), ConvBN(dim // 4, dim // 2, 3, 2), nn.ReLU(),
            ConvBN(dim // 2, dim, 3, 2),
        )  # fmt: skip
        stages = []
        for i, rates in enumerate(drop_path_rates(depth, drop_path_rate)):
            before = embed_dim[i - 1]
            down = nn.Sequential(ConvBN(before, before, 3, 2, groups=before), ConvBN(before, embed_dim[i]))
            blocks = [block(i, index, rate) for index, rate in enumerate(rates)]
            stages.append(Stage(down if i else nn.Identity(), blocks, channels_last=False))
        norm = PooledBatchNorm(embed_dim[-1])
        super().__init__(stem, stages, norm, channels=embed_dim, strides=(8, 16, 32, 64), **base)
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """Tables of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(".attention_biases")}


PUBLISHED = {
    "lsnet_t": Published(11.4, 0.3, 74.9),
    "lsnet_s": Published(16.1, 0.5, 77.8),
    "lsnet_b": Published(23.3, 1.3, 80.3),  # they print 23.2 million
    "lsnet_t_distill": Published(11.4, 0.3, 76.1, counted={"distillation": False}),
    "lsnet_s_distill": Published(16.1, 0.5, 79.0, counted={"distillation": False}),
    "lsnet_b_distill": Published(23.3, 1.3, 81.6, counted={"distillation": False}),
}
_CODE = "https://github.com/jameslahm/lsnet"


def _classifiers(name: str) -> Any:
    return ("head", "head_dist") if name.endswith("distill") else "head"


default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2503.23135", _CODE, "none", "stem.0.conv", crop_pct=0.875, classifier=_classifiers(name))
        for name in PUBLISHED
    }
)
_SMALL: dict[str, Any] = {"embed_dim": (96, 192, 320, 448), "depth": (1, 2, 8, 10)}
_BASE: dict[str, Any] = {"embed_dim": (128, 256, 384, 512), "depth": (4, 6, 8, 10)}
_TAUGHT = {"distillation": True}


def _lsnet(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(LSNet, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def lsnet_t(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """LSNet-T, whose first stage has no blocks."""
    return _lsnet("lsnet_t", pretrained, {}, kwargs)


@register_model
def lsnet_s(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """LSNet-S."""
    return _lsnet("lsnet_s", pretrained, _SMALL, kwargs)


@register_model
def lsnet_b(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """LSNet-B."""
    return _lsnet("lsnet_b", pretrained, _BASE, kwargs)


@register_model
def lsnet_t_distill(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """LSNet-T with a second classifier, for a teacher."""
    return _lsnet("lsnet_t_distill", pretrained, _TAUGHT, kwargs)


@register_model
def lsnet_s_distill(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """LSNet-S with a second classifier, for a teacher."""
    return _lsnet("lsnet_s_distill", pretrained, _SMALL | _TAUGHT, kwargs)


@register_model
def lsnet_b_distill(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """LSNet-B with a second classifier, for a teacher."""
    return _lsnet("lsnet_b_distill", pretrained, _BASE | _TAUGHT, kwargs)
