"""DLGSANet: lightweight dynamic local and global self-attention networks (arXiv 2301.02031, ICCV 2023).

Names of parameters are those of NeonLeexiang/DLGSANet, basicsr/archs/dlgsanet_arch.py, commit 0974b9a (Apache-2.0).
The global attention is Restormer's (arXiv 2111.09881), its local windows in evaluation are TLC's (arXiv 2112.04491).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.norms import LayerNorm2d
from vistrain.restoration.super_resolver import SuperResolver

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "none": nn.Identity,
    "softmax": partial(nn.Softmax, -1),  # of Restormer's blocks alone
}
BLOCK_TYPES = ("sparseedge", "edge", "idynamic", "restormer")
RESTORMER_KERNEL = 48  # the authors' code passes `tlc_kernel` to the sparse attention alone: faithful


class RestormerNorm(nn.Module):
    """Layer normalisation over channels under Restormer's names: `[B, C, H, W]` -> `[B, C, H, W]`.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.body(x)


class GatedConvFeedForward(nn.Module):
    """Restormer's GDFN: two halves, convolved depthwise, one of which gates the other.

    Args:
        dim: channels C.
        expansion: width of a half over C.
    """

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        wide = 2 * int(dim * expansion)
        self.project_in = nn.Conv2d(dim, wide, 1, bias=False)
        self.dwconv = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.project_out = nn.Conv2d(wide // 2, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        gate, values = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(gate) * values)


class PixelFeedForward(nn.Module):
    """A perceptron for each pixel.

    Args:
        dim: channels C.
        expansion: width between over C.
    """

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        wide = int(dim * expansion)
        self.body = nn.Sequential(nn.Conv2d(dim, wide, 1), nn.GELU(), nn.Conv2d(wide, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return self.body(x)


def feed_forward(kind: str, dim: int, expansion: float) -> nn.Module:
    """`GDFN` or `BaseFFN`; a ConfigError for another kind."""
    if kind not in ("GDFN", "BaseFFN"):
        raise ConfigError("idynamic_ffn_type", f"no {kind!r}", "use GDFN or BaseFFN")
    return (GatedConvFeedForward if kind == "GDFN" else PixelFeedForward)(dim, expansion)


class PixelDynamicConv(nn.Module):
    """A depthwise convolution whose kernels a small network writes anew for every pixel (MHDLSA, section 3.1).

    Args:
        dim: channels C.
        kernel_size: odd side of the kernels.
        heads: channels that share a kernel (the authors' name; there are C / heads kernels for each pixel).

    Raises:
        ConfigError: `heads` does not divide C, or an even kernel.
    """

    def __init__(self, dim: int, kernel_size: int, heads: int) -> None:
        super().__init__()
        if dim % heads or kernel_size % 2 == 0:
            problem = f"{heads} channels of {dim} share a kernel of {kernel_size}"
            raise ConfigError("idynamic_num_heads", problem, "a divisor of dim, and an odd window_size")
        self.kernel_size, self.groups = kernel_size, dim // heads
        narrow = dim // 4
        self.conv1 = nn.Sequential(
            nn.Conv2d(dim, narrow, 1), nn.Conv2d(narrow, narrow, kernel_size, padding=kernel_size // 2, groups=narrow)
        )
        self.conv2 = nn.Sequential(nn.Conv2d(narrow, kernel_size**2 * self.groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        height, width = x.shape[2:]
        side, margin = self.kernel_size, self.kernel_size // 2
        kernels = self.conv2(self.conv1(x)).unflatten(1, (self.groups, side**2, 1))
        padded = F.pad(x, (margin,) * 4).unflatten(1, (self.groups, -1))
        # One tap after another: all patches at once would take side ** 2 times the memory of the map.
        out = torch.zeros_like(x).unflatten(1, (self.groups, -1))
        for tap, (row, column) in enumerate(product(range(side), repeat=2)):
            out.addcmul_(padded[..., row : row + height, column : column + width], kernels[:, :, tap])
        return out.flatten(1, 2)


class DynamicLocalLayer(nn.Module):
    """Dynamic convolution between two 1x1 convolutions, then a feed-forward network, each with a residual.

    Args:
        dim: channels C.
        window_size, heads: see `PixelDynamicConv`.
        ffn_type, ffn_expansion: see `feed_forward`.
        dynamic: False takes a plain depthwise convolution instead.
    """

    def __init__(
        self, dim: int, window_size: int, heads: int, ffn_type: str, ffn_expansion: float, dynamic: bool
    ) -> None:
        super().__init__()
        conv: nn.Module = PixelDynamicConv(dim, window_size, heads)
        if not dynamic:
            conv = nn.Conv2d(dim, dim, window_size, padding=window_size // 2, groups=dim)
        self.norm1, self.norm2 = RestormerNorm(dim), RestormerNorm(dim)
        outer = {name: nn.Conv2d(dim, dim, 1, bias=False) for name in ("conv0", "conv1")}
        self.IDynamicDWConv = nn.ModuleDict({**outer, "conv": conv})
        self.IDynamic_ffn = feed_forward(ffn_type, dim, ffn_expansion)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        y = self.norm1(x)
        for name in ("conv0", "conv", "conv1"):
            y = self.IDynamicDWConv[name](y)
        x = x + y
        return x + self.IDynamic_ffn(self.norm2(x))


class ChannelMapAttention(nn.Module):
    """Attention between channels: C/h x C/h maps from all pixels (Restormer's MDTA), rectified here (SparseGSA, 3.2).

    In evaluation pixels are those of overlapping windows as large as a training patch, whose results are averaged.

    Args:
        dim: channels C.
        num_heads: h.
        activation: of the maps; `relu`, `gelu`, `sigmoid`, `none`, or `softmax` (Restormer's).
        kernel: side of the windows in evaluation.

    Raises:
        ConfigError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, num_heads: int, activation: str, kernel: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError("restormer_num_heads", f"{num_heads} heads do not divide {dim} channels")
        self.num_heads, self.kernel = num_heads, kernel
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, whole: bool) -> Tensor:
        """Args: x: `[B, C, H, W]`; whole: attend over the whole map, not in windows. Returns: `[B, C, H, W]`."""
        qkv = self.qkv_dwconv(self.qkv(x))
        size = (x.shape[2], x.shape[3])
        if whole or max(size) <= self.kernel:
            return self.project_out(self._attend(qkv))
        out, count = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        high, wide = (min(side, self.kernel) for side in size)
        for top, left in product(*(_starts(side, self.kernel) for side in size)):
            window = (..., slice(top, top + high), slice(left, left + wide))
            out[window] += self._attend(qkv[window])
            count[window] += 1
        return self.project_out(out / count)

    def _attend(self, qkv: Tensor) -> Tensor:
        """`[B, 3C, h, w]` -> `[B, C, h, w]`."""
        q, k, v = qkv.flatten(2).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        maps = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return (self.act(maps * self.temperature) @ v).flatten(1, 2).unflatten(2, qkv.shape[2:])


def _starts(side: int, kernel: int) -> list[int]:
    """Where windows begin: as few as cover the side, evenly spread up to rounding, the last one at the end."""
    if side <= kernel:
        return [0]
    gaps = (side - 1) // kernel
    return [*range(0, side - kernel, -(-(side - kernel) // gaps)), side - kernel]


class ChannelMapLayer(nn.Module):
    """Attention between channels, then a feed-forward network, each with a residual.

    Args:
        dim: channels C.
        num_heads, activation, kernel: see `ChannelMapAttention`.
        ffn_type, ffn_expansion: see `feed_forward`.
        tlc_flag: use windows in evaluation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_type: str,
        ffn_expansion: float,
        activation: str,
        tlc_flag: bool,
        kernel: int,
    ) -> None:
        super().__init__()
        self.tlc_flag = tlc_flag
        self.norm3, self.norm4 = RestormerNorm(dim), RestormerNorm(dim)
        self.restormer_attn = ChannelMapAttention(dim, num_heads, activation, kernel)
        self.restormer_ffn = feed_forward(ffn_type, dim, ffn_expansion)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        x = x + self.restormer_attn(self.norm3(x), whole=self.training or not self.tlc_flag)
        return x + self.restormer_ffn(self.norm4(x))


class HybridDynamicGroup(nn.Module):
    """Layers, a convolution, and what came in (RHDTG, section 3.3).

    Args:
        layers: of the group.
        dim: channels C.
    """

    def __init__(self, layers: list[nn.Module], dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers, nn.Conv2d(dim, dim, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return x + self.body(x)


class DLGSANet(SuperResolver):
    """DLGSANet. Images of any size are taken.

    Defaults are the large network's; the light one has `dim` 48, 4 groups and 3 blocks, the tiny one 3 groups.

    Args:
        dim: channels C.
        groups: residual groups.
        blocks: pairs of layers in a group.
        buildblock_type: layers of a block: `sparseedge` (local, then global, the published one), `edge` (with
            Restormer's softmax), `idynamic` (local alone), `restormer` (global alone, with softmax).
        window_size, idynamic_num_heads, idynamic_ffn_type, idynamic_ffn_expansion_factor, idynamic: see
            `DynamicLocalLayer`.
        restormer_num_heads, restormer_ffn_type, restormer_ffn_expansion_factor: see `ChannelMapLayer`.
        activation: of the maps of `sparseedge`: `relu`, `gelu`, `sigmoid` or `none`. The authors' code takes any other
            word, `softmax` too, for `none`; here such a word is refused.
        tlc_flag: attend in windows in evaluation. It changes the output; published numbers are with it.
        tlc_kernel: side of these windows, for x2, x3, x4: 96, 72, 48.
        upscale: factor of enlargement.
        upsampler: see `SuperResolver`; `pixelshuffledirect`, `pixelshuffle` or `none` in the authors' code. With `none`
            the image is not added to what is found.
        body_norm: normalises before and after all groups.
        base: see `SuperResolver`.

    Raises:
        ConfigError: unknown kinds, or heads that do not divide the channels.
    """

    sets_itself = ("embed_dim", "multiple")
    finds_residual = False  # the authors' code gives what the last convolution finds, without the image

    def __init__(
        self,
        dim: int = 90,
        groups: int = 6,
        blocks: int = 4,
        buildblock_type: str = "sparseedge",
        window_size: int = 7,
        idynamic_num_heads: int = 6,
        idynamic_ffn_type: str = "GDFN",
        idynamic_ffn_expansion_factor: float = 2.0,
        idynamic: bool = True,
        restormer_num_heads: int = 6,
        restormer_ffn_type: str = "GDFN",
        restormer_ffn_expansion_factor: float = 2.0,
        tlc_flag: bool = True,
        tlc_kernel: int = 48,
        activation: str = "relu",
        upscale: int = 4,
        upsampler: str = "pixelshuffledirect",
        body_norm: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(embed_dim=dim, upscale=upscale, upsampler=upsampler, multiple=1, **base)
        if buildblock_type not in BLOCK_TYPES:
            remedy = f"use {', '.join(BLOCK_TYPES)}"
            raise ConfigError("buildblock_type", f"no {buildblock_type!r}", remedy)
        sparse = buildblock_type == "sparseedge"
        if activation not in ACTIVATIONS or (sparse and activation == "softmax"):
            problem = f"{activation!r} is none of the sparse attention, for which the authors' code takes no activation"
            remedy = "use relu, gelu, sigmoid or none; buildblock_type=edge has Restormer's softmax"
            raise ConfigError("activation", problem, remedy)
        act, kernel = (activation, tlc_kernel) if sparse else ("softmax", RESTORMER_KERNEL)

        def block() -> list[nn.Module]:
            layers: list[nn.Module] = []
            if buildblock_type != "restormer":
                expansion = idynamic_ffn_expansion_factor
                layers.append(
                    DynamicLocalLayer(dim, window_size, idynamic_num_heads, idynamic_ffn_type, expansion, idynamic)
                )
            if buildblock_type != "idynamic":
                expansion = restormer_ffn_expansion_factor
                layers.append(
                    ChannelMapLayer(dim, restormer_num_heads, restormer_ffn_type, expansion, act, tlc_flag, kernel)
                )
            return layers

        norms = [RestormerNorm(dim)] if body_norm else []
        body = [HybridDynamicGroup([layer for _ in range(blocks) for layer in block()], dim) for _ in range(groups)]
        shallow = nn.Conv2d(self.channels, dim, 3, padding=1, bias=False)
        self.overlap_embed = nn.Sequential(nn.ModuleDict({"proj": shallow}))  # the authors' name has a level
        self.deep_feature_extraction = nn.Sequential(
            *norms, *body, *([RestormerNorm(dim)] if body_norm else []), nn.Conv2d(dim, dim, 3, padding=1)
        )

    @property
    def tlc_flag(self) -> bool:
        """Whether evaluation attends in windows; set it on the network for all its layers."""
        return any(layer.tlc_flag for layer in self.modules() if isinstance(layer, ChannelMapLayer))

    @tlc_flag.setter
    def tlc_flag(self, value: bool) -> None:
        """Sets it for all layers."""
        for layer in self.modules():
            if isinstance(layer, ChannelMapLayer):
                layer.tlc_flag = value

    def trunk(self, x: Tensor) -> Tensor:
        """See `SuperResolver`."""
        shallow: Tensor = self.overlap_embed[0]["proj"](x)  # type: ignore[index]
        return self.deep_feature_extraction(shallow) + shallow
