"""MOAT: mobile convolutions in place of a transformer's MLP, before its attention.

MOAT: Alternating Mobile Convolution and Attention Brings Strong Vision Models, arXiv 2210.01820. Authors' code:
google-research/deeplab2, Apache-2.0, TensorFlow (model/pixel_encoder/moat.py, model/layers/moat_blocks.py and
moat_attention.py), whose variables `checkpoint_filter_fn` turns into ours.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers import Conv2dSame, DropPath
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
from vistrain.layers.biased_attention import biased_attention
from vistrain.layers.norms import LayerNorm2d
from vistrain.layers.windows import check_divides, window_merge, window_partition

# TensorFlow's names -> ours: of the stem, of blocks (`moat/block_02_01/...`) and of the classifier.
AUTHORS = KeyMap(
    name="MOAT (TensorFlow)",
    marker=r"^(moat/)?(stem/)?conv_0/kernel",
    rules=(
        (r":0$", ""),
        (r"^(moat/)?(stem/)?(conv|norm)_(\d)/", r"stem.\3\4."),
        (r"^moat/block_0(\d)_0*(\d+)/", r"stages.\1.blocks.\2."),
        (r"^(moat/)?final_layer_norm/", "norm."),
        (r"^(moat/)?logits_head/", "head."),
        (r"/(reduce|expand)_conv2d/", r".\1/"),
        (r"/", "."),
        (r"\.(depthwise_kernel|kernel|gamma)$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"\.moving_mean$", ".running_mean"),
        (r"\.moving_variance$", ".running_var"),
    ),
    layouts=(
        (r"/depthwise_kernel", "tf_depthwise"),
        (r"/kernel", "flax_kernel"),
        (r"/attention/[qkv]/weight", "tf_heads_in"),
        (r"/attention/o/weight", "tf_heads_out"),
        (r"/attention/[qkv]/bias", "tf_flat"),
    ),
    drop=(r"num_batches_tracked",),
    exports=(
        (r"norm(\d?)\.weight$", (r"norm\1/gamma",)),
        (r"norm(\d?)\.bias$", (r"norm\1/beta",)),
        (r"\.running_mean$", ("/moving_mean",)),
        (r"\.running_var$", ("/moving_variance",)),
        (r"\.depthwise_conv\.weight$", (".depthwise_conv/depthwise_kernel",)),
        (r"attention\.([qkvo])\.(weight|bias)$", (r"attention/\1/\2",)),
        (r"\.se\.(reduce|expand)\.", (r".se/\1_conv2d.",)),
        (r"\.weight$", ("/kernel",)),
        (r"^norm/", ("final_layer_norm/",)),
        (r"^head(?=[./])", ("logits_head",)),
        (r"^stem\.(conv|norm)(\d)", (r"\1_\2",)),
        (r"^stages\.(\d)\.blocks\.(\d)\.", (r"moat/block_0\1_0\2/",)),
        (r"^stages\.(\d)\.blocks\.(\d+)\.", (r"moat/block_0\1_\2/",)),
        (r"\.", ("/",)),
        (r"$", (":0",)),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)
BN_EPS = 1e-3
Window = tuple[int, int]


def average_same(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """TensorFlow's average pooling with `SAME` padding, which averages do not count.

    Args:
        x: `[B, C, H, W]`.
        kernel_size: 2 or 3.
        stride: 2.

    Returns:
        `[B, C, ceil(H / stride), ceil(W / stride)]`.
    """
    padding = [kernel_size // 3 * (side % 2) for side in x.shape[2:]]  # of 3 cells: on both sides of odd ones
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode=True, count_include_pad=False)


class SqueezeExcite(nn.Module):
    """Squeeze and excitation with swish (SiLU).

    Args:
        dim: channels.
        hidden: channels between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class MBConv(nn.Module):
    """Inverted bottleneck, norms first (section 3.1): wide, a convolution of each channel, narrow again.

    Args:
        dim, out: channels of input and output.
        stride: 1 or 2.
        expansion_rate: channels between by `out`.
        se_ratio: channels within squeeze and excitation by `out`; 0 for none.
        pool_size: cells of the averages that shorten the shortcut: 2 in classification, 3 in dense models.
        drop_path: probability that the branch is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        stride: int = 1,
        expansion_rate: int = 4,
        se_ratio: float = 0.25,
        pool_size: int = 2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.stride, self.pool_size = stride, pool_size
        hidden = out * expansion_rate
        self.shortcut_conv = nn.Conv2d(dim, out, 1) if dim != out else nn.Identity()
        self.pre_norm = nn.BatchNorm2d(dim, BN_EPS)
        self.expand_conv = nn.Conv2d(dim, hidden, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(hidden, BN_EPS)
        self.depthwise_conv = Conv2dSame(hidden, hidden, 3, stride, groups=hidden, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(hidden, BN_EPS)
        self.se = SqueezeExcite(hidden, max(1, int(out * se_ratio))) if se_ratio else nn.Identity()
        self.shrink_conv = nn.Conv2d(hidden, out, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', ceil(H / stride), ceil(W / stride)]`."""
        shortcut = average_same(x, self.pool_size, self.stride) if self.stride > 1 else x
        y = F.gelu(self.expand_norm(self.expand_conv(self.pre_norm(x))))
        y = F.gelu(self.depthwise_norm(self.depthwise_conv(y)))
        return self.shortcut_conv(shortcut) + self.drop_path(self.shrink_conv(self.se(y)))


class RelativeAttention(nn.Module):
    """Attention within windows, or over the whole map, with biases for relative positions.

    Args:
        dim: channels.
        head_size: channels of a head.
        window: (height, width) of windows, which must tile the map; None is the whole map.
        position_size: side of the map that biases are learnt for; on others the table is resized bilinearly. None is
            no biases.
    """

    def __init__(
        self, dim: int, head_size: int = 32, window: Window | None = None, position_size: int | None = None
    ) -> None:
        super().__init__()
        self.head_size, self.window = head_size, window
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        table = None
        if position_size is not None:
            shape = (dim // head_size, 2 * position_size - 1, 2 * position_size - 1)
            table = nn.Parameter(torch.randn(shape) * 0.02)
        self.relative_position_embedding = table

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`.

        Raises:
            DataError: windows do not tile the map.
        """
        size = (x.shape[1], x.shape[2])
        window = self.window or size
        check_divides(window, size)
        x = window_partition(x, window)
        q, k, v = (f(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = self.bias(window)
        x = F.scaled_dot_product_attention(q, k, v) if bias is None else biased_attention(q, k, v, bias)
        return window_merge(self.o(x.transpose(1, 2).flatten(2)), window, size)

    def bias(self, window: Window) -> Tensor | None:
        """`[1, heads, N, N]` for the N cells of a window: of key minus query; None without a table."""
        if self.relative_position_embedding is None:
            return None
        table: Tensor = self.relative_position_embedding
        height, width = window
        wanted = (2 * height - 1, 2 * width - 1)
        if table.shape[1:] != wanted:
            table = F.interpolate(table[None], wanted, mode="bilinear", align_corners=False)[0]
        # [heads, i, j, x, y]: what query (height - 1 - i, width - 1 - j) finds at (x, y)
        views = table.unfold(1, height, 1).unfold(2, width, 1).flip(1, 2)
        return views.reshape(1, len(table), height * width, height * width)


class MOATBlock(MBConv):
    """A mobile convolution and attention on normalised cells, each added to what came in (figure 1).

    Args:
        dim, out: channels of input and output.
        attention: `[B, H, W, C']` -> `[B, H, W, C']`.
        base: see `MBConv`.
    """

    sets_itself = ("se_ratio",)

    def __init__(self, dim: int, out: int, attention: nn.Module, **base: Any) -> None:
        super().__init__(dim, out, se_ratio=0.0, **base)
        self.attention_norm = nn.LayerNorm(out, eps=1e-5)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', ceil(H / stride), ceil(W / stride)]`."""
        x = super().forward(x)
        attended = self.attention(self.attention_norm(x.permute(0, 2, 3, 1)))
        return x + self.drop_path(attended).permute(0, 3, 1, 2)


class MOAT(StagedBackbone):
    """MOAT (arXiv 2210.01820, table 1).

    Args:
        in_chans: channels of the images.
        stem_size: channels of the stem's two convolutions.
        block_type: of each stage, `mbconv` or `moat`.
        num_blocks, hidden_size: blocks and channels of each stage.
        expansion_rate, se_ratio, pool_size: see `MBConv`.
        head_size: channels of a head.
        window_size: (height, width) of attention's windows, for each stage; None is the whole map.
        position_embedding_size: side of the maps that biases are learnt for, for each stage.
        relative_position_embedding_type: None for no biases of positions.
        global_attention_at_end_of_moat_stage: the last block of a stage attends over the whole map.
        drop_path_rate: grows evenly from 0 at the first block, and would be reached after the last, faithfully.
        base: see `StagedBackbone`.
    """

    pool_first = True

    def __init__(
        self,
        in_chans: int = 3,
        stem_size: Sequence[int] = (64, 64),
        block_type: Sequence[Literal["mbconv", "moat"]] = ("mbconv", "mbconv", "moat", "moat"),
        num_blocks: Sequence[int] = (2, 3, 7, 2),
        hidden_size: Sequence[int] = (96, 192, 384, 768),
        expansion_rate: int = 4,
        se_ratio: float = 0.25,
        pool_size: int = 2,
        head_size: int = 32,
        window_size: Sequence[Window | None] = (None, None, None, None),
        position_embedding_size: Sequence[int | None] = (None, None, 14, 7),
        relative_position_embedding_type: Literal["2d_multi_head"] | None = "2d_multi_head",
        global_attention_at_end_of_moat_stage: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        common: dict[str, Any] = {"expansion_rate": expansion_rate, "pool_size": pool_size}
        total = sum(num_blocks)

        def block(stage: int, index: int, rate: float) -> nn.Module:
            before = stem_size[-1] if stage == 0 else hidden_size[stage - 1]
            out = hidden_size[stage]
            shape = {**common, "stride": 1 if index else 2, "drop_path": rate}
            if block_type[stage] == "mbconv":
                return MBConv(out if index else before, out, se_ratio=se_ratio, **shape)
            last = global_attention_at_end_of_moat_stage and index == num_blocks[stage] - 1
            window = None if last else window_size[stage]
            position = position_embedding_size[stage] if relative_position_embedding_type else None
            attention = RelativeAttention(out, head_size, window and (window[0], window[1]), position)
            return MOATBlock(out if index else before, out, attention, **shape)

        stages = [
            Stage(nn.Identity(), [block(i, j, rate) for j, rate in enumerate(rates)], channels_last=False)
            for i, rates in enumerate(drop_path_rates(num_blocks, drop_path_rate * (total - 1) / total))
        ]
        stem = OrderedDict(
            conv0=Conv2dSame(in_chans, stem_size[0], 3, 2),
            norm0=nn.BatchNorm2d(stem_size[0], BN_EPS),
            act0=nn.GELU(),
            conv1=nn.Conv2d(stem_size[0], stem_size[1], 3, padding=1),
        )
        norm = LayerNorm2d(hidden_size[-1], eps=1e-5)
        super().__init__(nn.Sequential(stem), stages, norm, channels=hidden_size, strides=(4, 8, 16, 32), **base)
        tiles = [4 * 2**i * side for i, window in enumerate(window_size) if window for side in window]
        self.size_divisor = math.lcm(*tiles) if tiles else 1
        initialise(self)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def no_weight_decay(self) -> set[str]:
        """Tables of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(".relative_position_embedding")}


_VARIANTS: dict[str, dict[str, Any]] = {
    "moat0": {},
    "moat1": {"num_blocks": (2, 6, 14, 2)},
    "moat2": {"stem_size": (128, 128), "num_blocks": (2, 6, 14, 2), "hidden_size": (128, 256, 512, 1024)},
    "moat3": {"stem_size": (160, 160), "num_blocks": (2, 12, 28, 2), "hidden_size": (160, 320, 640, 1280)},
    "moat4": {"stem_size": (256, 256), "num_blocks": (2, 12, 28, 2), "hidden_size": (256, 512, 1024, 2048)},
    "tiny_moat0": {"stem_size": (32, 32), "hidden_size": (32, 64, 128, 256)},
    "tiny_moat1": {"stem_size": (40, 40), "hidden_size": (40, 80, 160, 320)},
    "tiny_moat2": {"stem_size": (56, 56), "hidden_size": (56, 112, 224, 448)},
    "tiny_moat3": {"stem_size": (80, 80), "hidden_size": (80, 160, 320, 640)},
}
_TENSORFLOW = "printed by TensorFlow's counter, which counts norms and tables of positions too"
# moat2, moat3 and moat4 were trained on ImageNet-22k first, on images whose values are -1 to 1.
PUBLISHED = {
    "moat0": Published(27.8, 5.7, 83.3),
    "moat1": Published(41.6, 9.1, 84.2),
    "moat2": Published(73.4, 54.3, 87.5, size=384, why=_TENSORFLOW),
    "moat3": Published(190.0, 271, 88.4, size=512, why=_TENSORFLOW),
    "moat4": Published(483.2, 648.5, 89.1, size=512, why=_TENSORFLOW),
    "moat0_no_pe": Published(27.8, None, 83.0),
    "moat1_no_pe": Published(41.5, None, 84.1),
    "moat2_no_pe": Published(73.2, 53.8, 87.2, size=384),
    "moat3_no_pe": Published(189.5, 266.1, 88.2, size=512),
    "moat4_no_pe": Published(482.5, 640.6, 88.9, size=512),
    "tiny_moat0": Published(3.4, 1.1, 76.6, size=256),
    "tiny_moat1": Published(5.1, 1.6, 79.2, size=256),
    "tiny_moat2": Published(9.8, 3.0, 81.7, size=256),
    "tiny_moat3": Published(19.5, 6.0, 83.3, size=256),
    "tiny_moat0_no_pe": Published(3.3, None, 76.0, size=256),
    "tiny_moat1_no_pe": Published(5.1, None, 78.9, size=256),
    "tiny_moat2_no_pe": Published(9.7, None, 81.3, size=256),
    "tiny_moat3_no_pe": Published(19.5, None, 83.0, size=256),
}
_CODE = "https://github.com/google-research/deeplab2"


def _mean_std(name: str) -> dict[str, Any]:
    return {"mean": (0.5,) * 3, "std": (0.5,) * 3} if name[:5] in ("moat2", "moat3", "moat4") else {}


default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("2210.01820", _CODE, "apache-2.0", "stem.conv0", size=row.size, **_mean_std(name))
        for name, row in PUBLISHED.items()
    }
)


def _moat(name: str, pretrained: bool, kwargs: dict[str, Any]) -> StagedBackbone:
    variant = dict(_VARIANTS[name.removesuffix("_no_pe")])
    if name.endswith("_no_pe"):
        variant["relative_position_embedding_type"] = None
    return build_variant(MOAT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def moat0(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-0."""
    return _moat("moat0", pretrained, kwargs)


@register_model
def moat0_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-0 without biases of positions."""
    return _moat("moat0_no_pe", pretrained, kwargs)


@register_model
def moat1(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-1."""
    return _moat("moat1", pretrained, kwargs)


@register_model
def moat1_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-1 without biases of positions."""
    return _moat("moat1_no_pe", pretrained, kwargs)


@register_model
def moat2(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-2, for images of 384 pixels."""
    return _moat("moat2", pretrained, kwargs)


@register_model
def moat2_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-2 without biases of positions, for images of 384 pixels."""
    return _moat("moat2_no_pe", pretrained, kwargs)


@register_model
def moat3(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-3, for images of 512 pixels."""
    return _moat("moat3", pretrained, kwargs)


@register_model
def moat3_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-3 without biases of positions, for images of 512 pixels."""
    return _moat("moat3_no_pe", pretrained, kwargs)


@register_model
def moat4(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-4, for images of 512 pixels."""
    return _moat("moat4", pretrained, kwargs)


@register_model
def moat4_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MOAT-4 without biases of positions, for images of 512 pixels."""
    return _moat("moat4_no_pe", pretrained, kwargs)


@register_model
def tiny_moat0(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-0."""
    return _moat("tiny_moat0", pretrained, kwargs)


@register_model
def tiny_moat0_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-0 without biases of positions."""
    return _moat("tiny_moat0_no_pe", pretrained, kwargs)


@register_model
def tiny_moat1(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-1."""
    return _moat("tiny_moat1", pretrained, kwargs)


@register_model
def tiny_moat1_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-1 without biases of positions."""
    return _moat("tiny_moat1_no_pe", pretrained, kwargs)


@register_model
def tiny_moat2(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-2."""
    return _moat("tiny_moat2", pretrained, kwargs)


@register_model
def tiny_moat2_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-2 without biases of positions."""
    return _moat("tiny_moat2_no_pe", pretrained, kwargs)


@register_model
def tiny_moat3(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-3."""
    return _moat("tiny_moat3", pretrained, kwargs)


@register_model
def tiny_moat3_no_pe(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """tiny-MOAT-3 without biases of positions."""
    return _moat("tiny_moat3_no_pe", pretrained, kwargs)
