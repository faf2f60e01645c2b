"""Blocks of BEVANet (arXiv 2508.07300): large separable kernels, their selection, pyramid pooling and fusions.

Authors' code: github.com/maomao0819/BEVANet, commit 603205b, MIT (models/); names of its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.conv import GridMean, resize
from vistrain.layers.norms import LayerNorm2d

# Size of a large kernel: that of the small one, of the dilated one, and the dilation (LSKA, arXiv 2309.01439, table 2)
KERNELS = {7: (3, 3, 2), 11: (3, 5, 2), 23: (5, 7, 3), 35: (5, 11, 3), 41: (5, 13, 3), 53: (5, 17, 3)}


class DWConv(nn.Module):
    """A depthwise convolution that keeps the size, named `dwconv`.

    Args:
        dim: C.
        kernel_size: (height, width).
        dilation: of the kernel.
    """

    def __init__(self, dim: int, kernel_size: tuple[int, int] = (3, 3), dilation: int = 1) -> None:
        super().__init__()
        padding = (dilation * (kernel_size[0] - 1) // 2, dilation * (kernel_size[1] - 1) // 2)
        self.dwconv = nn.Conv2d(dim, dim, kernel_size, padding=padding, dilation=dilation, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return self.dwconv(x)


class PWConv(nn.Module):
    """A 1x1 convolution, named `pwconv`.

    Args:
        in_channels, out_channels: C and C'; None: the same.
        bias: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.pwconv = nn.Conv2d(in_channels, out_channels or in_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H, W]`."""
        return self.pwconv(x)


class KernelSelection(nn.Module):
    """Weighs three kernels' outputs by channel and by place (the paper's comprehensive kernel selection).

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(dim // 16, 32)
        self.fc_reduce = _gate(dim, hidden)
        self.fc_expand_small, self.fc_expand_big_h, self.fc_expand_big_v = (_gate(hidden, dim) for _ in range(3))
        self.conv_squeeze = nn.Conv2d(2, 3, 7, padding=3)

    def forward(self, small: Tensor, wide: Tensor, high: Tensor) -> Tensor:
        """Three `[B, C, H, W]` -> their weighted sum."""
        total = small + wide + high
        context = self.fc_reduce(total.mean((2, 3), keepdim=True))
        place = torch.cat((total.mean(1, keepdim=True), total.amax(1, keepdim=True)), 1)
        places = self.conv_squeeze(place).sigmoid().chunk(3, 1)
        gates = (self.fc_expand_small, self.fc_expand_big_h, self.fc_expand_big_v)
        parts = zip((small, wide, high), gates, places, strict=True)
        return torch.stack([x * gate(context).sigmoid() * p for x, gate, p in parts]).sum(0)


class SparseKernelAttention(nn.Module):
    """SDLSKA: a small kernel, a wide and a high dilated one upon it, selected, as a gate.

    Args:
        dim: C.
        kernel_size: 7, 11, 23, 35, 41 or 53.

    Raises:
        ConfigError: another size.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        small, large, dilation = _kernel(kernel_size)
        self.DW_conv = DWConv(dim, (small, small))
        self.DW_D_conv_h = DWConv(dim, (1, large), dilation)
        self.DW_D_conv_v = DWConv(dim, (large, 1), dilation)
        self.pwconv, self.FS_kernel = PWConv(dim), KernelSelection(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        small = self.DW_conv(x)
        return x * self.pwconv(self.FS_kernel(small, self.DW_D_conv_h(small), self.DW_D_conv_v(small)))


class SeparableKernelAttention(nn.Module):
    """LSKA (arXiv 2309.01439): four one-dimensional depthwise convolutions, as a gate.

    Args:
        dim, kernel_size: as in `SparseKernelAttention`.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        small, large, dilation = _kernel(kernel_size)
        self.DW_conv_h, self.DW_conv_v = DWConv(dim, (1, small)), DWConv(dim, (small, 1))
        self.DW_D_conv_h = DWConv(dim, (1, large), dilation)
        self.DW_D_conv_v = DWConv(dim, (large, 1), dilation)
        self.pwconv = PWConv(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return x * self.pwconv(self.DW_D_conv_v(self.DW_D_conv_h(self.DW_conv_v(self.DW_conv_h(x)))))


class SpatialAttention(nn.Module):
    """A gate between two 1x1 convolutions, and a residual.

    Args:
        dim: C.
        gate: `[B, C, H, W]` -> the same shape.
    """

    def __init__(self, dim: int, gate: nn.Module) -> None:
        super().__init__()
        self.proj_1, self.spatial_gating_unit, self.proj_2 = PWConv(dim), gate, PWConv(dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return x + self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x))))


class ConvMLP(nn.Module):
    """1x1, depthwise 3x3, GELU, 1x1.

    Args:
        dim, hidden: C and the width between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = PWConv(dim, hidden), DWConv(hidden), PWConv(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class EVANBlock(nn.Module):
    """Efficient visual attention: large-kernel attention and a perceptron, each with batch norm and layer scale.

    Args:
        dim: C.
        kernel_size: see `SparseKernelAttention`.
        expand: width of the perceptron, in C.
    """

    def __init__(self, dim: int, kernel_size: int, expand: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.attn = SpatialAttention(dim, SparseKernelAttention(dim, kernel_size))
        self.mlp = ConvMLP(dim, int(dim * expand))
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class BasicBlock(nn.Module):
    """ResNet's two 3x3 convolutions.

    Args:
        inputs, width, stride: of the first convolution.
        act: ReLU at the end.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, act: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample, self.act = _shortcut(inputs, width, stride), act

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, width, H / stride, W / stride]`."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        out = out + (x if self.downsample is None else self.downsample(x))
        return out.relu() if self.act else out


class Bottleneck(nn.Module):
    """ResNet's three convolutions, twice as wide at the end as between.

    Args:
        inputs, width, stride: of the block; the stride is the 3x3 convolution's.
        act: ReLU at the end.
    """

    expansion = 2

    def __init__(self, inputs: int, width: int, stride: int, act: bool) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample, self.act = _shortcut(inputs, out, stride), act

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, 2 * width, H / stride, W / stride]`."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        out = self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x))
        return out.relu() if self.act else out


def basic_layer(inputs: int, width: int, count: int, stride: int = 1) -> nn.Sequential:
    """Basic blocks; of several, the last has no ReLU."""
    blocks = [BasicBlock(inputs, width, stride, act=True)]
    blocks += [BasicBlock(width, width, 1, act=i < count - 1) for i in range(1, count)]
    return nn.Sequential(*blocks)


def bottleneck_layer(inputs: int, width: int, count: int, stride: int = 1) -> nn.Sequential:
    """Bottlenecks; the first and the last have no ReLU."""
    out = width * Bottleneck.expansion
    blocks = [Bottleneck(inputs, width, stride, act=False)]
    blocks += [Bottleneck(out, width, 1, act=i < count - 1) for i in range(1, count)]
    return nn.Sequential(*blocks)


class PixelAttentionFusion(nn.Module):
    """PIDNet's Pag (arXiv 2206.02066, section 3.2): takes from the coarse branch where both agree.

    Args:
        dim, hidden: C and the width of the comparison.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.f_x = nn.Sequential(nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden))
        self.f_y = nn.Sequential(nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """`[B, C, H, W]` and `[B, C, h, w]` -> `[B, C, H, W]`."""
        query = resize(self.f_y(coarse), fine.shape[2:])
        share = (self.f_x(fine) * query).sum(1, keepdim=True).sigmoid()
        return (1 - share) * fine + share * resize(coarse, fine.shape[2:])


class LargeKernelPyramid(nn.Module):
    """DLKPPM: pyramid pooling of five scales in a row, a large kernel among them.

    Args:
        inputs, width, outputs: channels before, within and after.
        kernel_size: of the large kernel.
    """

    def __init__(self, inputs: int, width: int, outputs: int, kernel_size: int = 35) -> None:
        super().__init__()
        self.scale0 = nn.Sequential(*_pre(inputs), PWConv(inputs, width, bias=False))
        pools: dict[str, nn.Module] = {"1": nn.AvgPool2d(5, 2, 2), "2": nn.AvgPool2d(9, 4, 4)}
        pools |= {"4": GridMean(2), "5": nn.AdaptiveAvgPool2d(1)}
        for name, pool in pools.items():
            self.add_module(f"scale{name}", nn.Sequential(pool, *_pre(inputs), PWConv(inputs, width, bias=False)))
        self.bn = nn.BatchNorm2d(width)
        self.lska = SpatialAttention(width, SeparableKernelAttention(width, kernel_size))
        self.layer_scale_lska = nn.Parameter(torch.full((width,), 1e-2))
        for name, dilation in (("1", 2), ("2", 2), ("_lska", 1), ("4", 1), ("5", 1)):
            conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
            self.add_module(f"process{name}", nn.Sequential(*_pre(width), conv))
        self.compression = nn.Sequential(*_pre(6 * width), PWConv(6 * width, outputs, bias=False))
        self.shortcut = nn.Sequential(*_pre(inputs), PWConv(inputs, outputs, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H, W]`."""
        first = self.scale0(x)
        found = [first]
        for name in ("1", "2", "_lska", "4", "5"):
            if name == "_lska":
                scale = first + self.layer_scale_lska[:, None, None] * self.lska(self.bn(first))
            else:
                scale = resize(self.get_submodule(f"scale{name}")(x), x.shape[2:])
            found.append(self.get_submodule(f"process{name}")(scale + found[-1]))
        return self.compression(torch.cat(found, 1)) + self.shortcut(x)


class BoundaryFusion(nn.Module):
    """BGAF: details where the boundary branch is sure, semantics elsewhere, and both everywhere.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_p, self.conv_i, self.out = (
            nn.Sequential(*_pre(dim), nn.Conv2d(dim, dim, 3, padding=1, bias=False)) for _ in range(3)
        )

    def forward(self, detail: Tensor, semantic: Tensor, boundary: Tensor) -> Tensor:
        """Three `[B, C, H, W]` -> `[B, C, H, W]`."""
        detail, semantic, share = self.conv_p(detail), self.conv_i(semantic), boundary.sigmoid()
        return self.out(share * detail + (1 - share) * semantic + detail + semantic)


class PixelHead(nn.Module):
    """3x3 and 1x1 convolution, each after batch norm and ReLU.

    Args:
        inputs, width, outputs: channels before, within and after.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, outputs, H, W]`."""
        return self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


def layer_norm(dim: int) -> LayerNorm2d:
    """Of the channels of each cell, as it follows each stage of blocks."""
    return LayerNorm2d(dim, eps=1e-5)


def _gate(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(PWConv(inputs, outputs), DWConv(outputs), nn.BatchNorm2d(outputs), nn.ReLU())


def _pre(dim: int) -> Sequence[nn.Module]:
    return nn.BatchNorm2d(dim), nn.ReLU()


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _kernel(size: int) -> tuple[int, int, int]:
    if size not in KERNELS:
        raise ConfigError("kernel_size", f"no large kernel of {size}", f"one of {', '.join(map(str, KERNELS))}")
    return KERNELS[size]
