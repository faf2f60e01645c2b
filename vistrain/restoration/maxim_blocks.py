"""The blocks of MAXIM (arXiv 2201.02973, section 3): gated perceptrons over blocks and grids, and cross gating.

Modules have the names of the authors' flax code (google-research/maxim, `maxim/models/maxim.py`, Apache-2.0). Maps are
channels-last, `[B, H, W, C]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistrain.layers.windows import window_merge, window_partition

GATING_FACTOR = 2  # widening inside cross gating, whatever `input_proj_factor` says: faithful


@dataclass(frozen=True)
class Cut:
    """How a map is cut into cells, and which pixels are mixed with each other.

    Attributes:
        size: `(h, w)` of a block, or with `grid` the number of cells down and across.
        grid: mix pixels that lie at the same place of all cells, instead of those of one cell.
    """

    size: tuple[int, int]
    grid: bool

    @property
    def tokens(self) -> int:
        """How many pixels are mixed with each other."""
        return self.size[0] * self.size[1]

    def cell(self, size: tuple[int, int]) -> tuple[int, int]:
        """`(h, w)` of a cell of a map of `size`."""
        return (size[0] // self.size[0], size[1] // self.size[1]) if self.grid else self.size

    def apart(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, cells, pixels of a cell, C]`."""
        h, w = self.cell((x.shape[1], x.shape[2]))
        return window_partition(x.contiguous(), (h, w)).view(x.shape[0], -1, h * w, x.shape[3])

    def join(self, cells: Tensor, size: tuple[int, int]) -> Tensor:
        """The inverse, to a map of `size`."""
        return window_merge(cells.flatten(0, 1).contiguous(), self.cell(size), size)

    def mix(self, cells: Tensor, linear: nn.Linear) -> Tensor:
        """A linear layer along the axis of the pixels that belong together: `[B, cells, pixels, C]`, same shape."""
        axis = 1 if self.grid else 2
        mixed: Tensor = linear(cells.transpose(axis, 3)).transpose(axis, 3)
        return mixed


@dataclass(frozen=True)
class MaximSettings:
    """What the blocks of one level have in common; the arguments of `MAXIM` of the same names."""

    block: Cut
    grid: Cut
    use_bias: bool
    dropout_rate: float
    block_gmlp_factor: int
    grid_gmlp_factor: int
    input_proj_factor: int
    channels_reduction: int
    num_groups: int
    use_global_mlp: bool


class MaximConv(nn.Conv2d):
    """A convolution of channels-last maps that divides even sides by the stride, as flax's `SAME` padding does.

    Args:
        channels, out_channels: numbers of channels.
        kernel, stride: of the convolution.
        bias: add one.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, bias: bool, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride=stride, padding=(kernel - stride) // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H / stride, W / stride, C']`."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class MaximDoubling(nn.ConvTranspose2d):
    """A 2x2 transposed convolution of channels-last maps.

    Args:
        channels, out_channels: numbers of channels.
        bias: add one.
    """

    def __init__(self, channels: int, out_channels: int, bias: bool) -> None:
        super().__init__(channels, out_channels, 2, stride=2, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[B, H, W, C]` -> `[B, 2H, 2W, C']`."""
        return super().forward(x.permute(0, 3, 1, 2), output_size).permute(0, 2, 3, 1).contiguous()


def norm(channels: int) -> nn.LayerNorm:
    """flax's layer norm: epsilon 1e-6."""
    return nn.LayerNorm(channels, eps=1e-6)


def gelu(x: Tensor) -> Tensor:
    """flax's default GELU, the approximation by tanh."""
    return F.gelu(x, approximate="tanh")


class MaximGatingUnit(nn.Module):
    """Half of the channels, mixed over space, gates the other: `[B, cells, pixels, 2C]` -> `[B, cells, pixels, C]`."""

    def __init__(self, channels: int, cut: Cut, bias: bool) -> None:
        super().__init__()
        self.cut = cut
        self.intermediate_layernorm = norm(channels)
        self.Dense_0 = nn.Linear(cut.tokens, cut.tokens, bias)

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        u, v = x.chunk(2, -1)
        return u * (self.cut.mix(self.intermediate_layernorm(v), self.Dense_0) + 1)


class MaximGatedMlp(nn.Module):
    """A residual gated perceptron over blocks or over a grid, `[B, H, W, C]`."""

    def __init__(self, channels: int, cut: Cut, factor: int, settings: MaximSettings) -> None:
        super().__init__()
        bias, self.cut = settings.use_bias, cut
        self.unit = "GridGatingUnit" if cut.grid else "BlockGatingUnit"
        self.LayerNorm = norm(channels)
        self.in_project = nn.Linear(channels, channels * factor, bias)
        self.add_module(self.unit, MaximGatingUnit(channels * factor // 2, cut, bias))
        self.out_project = nn.Linear(channels * factor // 2, channels, bias)
        self.dropout = nn.Dropout(settings.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        cells = self.cut.apart(x)
        gated = self.get_submodule(self.unit)(gelu(self.in_project(self.LayerNorm(cells))))
        return self.cut.join(cells + self.dropout(self.out_project(gated)), (x.shape[1], x.shape[2]))


class MultiAxisMlp(nn.Module):
    """The multi-axis block: half of the channels mixes over a grid, half over blocks; residual, `[B, H, W, C]`."""

    def __init__(self, channels: int, settings: MaximSettings) -> None:
        super().__init__()
        wide, bias = channels * settings.input_proj_factor, settings.use_bias
        self.LayerNorm_in = norm(channels)
        self.in_project = nn.Linear(channels, wide, bias)
        self.GridGmlpLayer = MaximGatedMlp(wide // 2, settings.grid, settings.grid_gmlp_factor, settings)
        self.BlockGmlpLayer = MaximGatedMlp(wide // 2, settings.block, settings.block_gmlp_factor, settings)
        self.out_project = nn.Linear(wide, channels, bias)
        self.dropout = nn.Dropout(settings.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        u, v = gelu(self.in_project(self.LayerNorm_in(x))).chunk(2, -1)
        y = torch.cat([self.GridGmlpLayer(u), self.BlockGmlpLayer(v)], -1)
        return x + self.dropout(self.out_project(y))


class MaximChannelAttention(nn.Module):
    """Squeeze and excitation, `[B, H, W, C]`."""

    def __init__(self, channels: int, reduction: int, bias: bool) -> None:
        super().__init__()
        self.Conv_0 = MaximConv(channels, channels // reduction, 1, bias)
        self.Conv_1 = MaximConv(channels // reduction, channels, 1, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        return x * self.Conv_1(self.Conv_0(x.mean((1, 2), keepdim=True)).relu()).sigmoid()


class AttendedConvolutions(nn.Module):
    """Norm, two 3x3 convolutions, channel attention; residual, `[B, H, W, C]` (the paper's RCAB)."""

    def __init__(self, channels: int, settings: MaximSettings) -> None:
        super().__init__()
        bias = settings.use_bias
        self.LayerNorm = norm(channels)
        self.conv1, self.conv2 = MaximConv(channels, channels, 3, bias), MaximConv(channels, channels, 3, bias)
        self.channel_attention = MaximChannelAttention(channels, settings.channels_reduction, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        # Slope 0.2 always: the authors' `lrelu_slope` reaches no block.
        y = self.conv2(F.leaky_relu(self.conv1(self.LayerNorm(x)), 0.2))
        return x + self.channel_attention(y)


class MaximPerceptron(nn.Module):
    """Two linear layers of one width with a GELU between them, `[B, H, W, C]`."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.Dense_0, self.Dense_1 = nn.Linear(channels, channels, bias), nn.Linear(channels, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        y: Tensor = self.Dense_1(gelu(self.Dense_0(x)))
        return y


class AttendedPerceptron(nn.Module):
    """Norm, perceptron, channel attention; residual, `[B, H, W, C]` (the authors' RDCAB)."""

    def __init__(self, channels: int, settings: MaximSettings) -> None:
        super().__init__()
        self.LayerNorm = norm(channels)
        self.channel_mixing = MaximPerceptron(channels, settings.use_bias)
        self.channel_attention = MaximChannelAttention(channels, settings.channels_reduction, settings.use_bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        return x + self.channel_attention(self.channel_mixing(self.LayerNorm(x)))


class MaximBottleneck(nn.Module):
    """Projection, then multi-axis blocks and perceptrons with channel attention; a long skip around them."""

    def __init__(self, channels: int, settings: MaximSettings) -> None:
        super().__init__()
        self.groups = settings.num_groups
        self.input_proj = MaximConv(channels, channels, 1, settings.use_bias)
        for i in range(self.groups):
            self.add_module(f"SplitHeadMultiAxisGmlpLayer_{i}", MultiAxisMlp(channels, settings))
            self.add_module(f"channel_attention_block_1_{i}", AttendedPerceptron(channels, settings))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        x = skip = self.input_proj(x)
        for i in range(self.groups):
            x = self.get_submodule(f"SplitHeadMultiAxisGmlpLayer_{i}")(x)
            x = self.get_submodule(f"channel_attention_block_1_{i}")(x)
        return x + skip


class MaximGatingWeights(nn.Module):
    """Weights that one map gives to another: mixed over a grid and over blocks, half of the channels each."""

    def __init__(self, channels: int, settings: MaximSettings) -> None:
        super().__init__()
        wide, bias = channels * GATING_FACTOR, settings.use_bias
        self.cuts = (settings.grid, settings.block)
        self.LayerNorm_in = norm(channels)
        self.in_project = nn.Linear(channels, wide, bias)
        self.Dense_0 = nn.Linear(settings.grid.tokens, settings.grid.tokens, bias)
        self.Dense_1 = nn.Linear(settings.block.tokens, settings.block.tokens, bias)
        self.out_project = nn.Linear(wide, channels, bias)
        self.dropout = nn.Dropout(settings.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]`, same shape."""
        size = (x.shape[1], x.shape[2])
        halves = gelu(self.in_project(self.LayerNorm_in(x))).chunk(2, -1)
        linears = (self.Dense_0, self.Dense_1)
        mixed = [
            cut.join(cut.mix(cut.apart(half), linear), size)
            for cut, half, linear in zip(self.cuts, halves, linears, strict=True)
        ]
        y: Tensor = self.dropout(self.out_project(torch.cat(mixed, -1)))
        return y


class MaximCrossGating(nn.Module):
    """Two maps gate each other (section 3.4).

    Args:
        x_channels, y_channels: of the two maps.
        channels: of both results.
        doubled: `y` comes at half the resolution.
        settings: of the level.
    """

    def __init__(self, x_channels: int, y_channels: int, channels: int, doubled: bool, settings: MaximSettings) -> None:
        super().__init__()
        bias = settings.use_bias
        if doubled:
            self.ConvTranspose_0 = MaximDoubling(y_channels, channels, bias)
        self.doubled = doubled
        self.Conv_0 = MaximConv(x_channels, channels, 1, bias)
        self.Conv_1 = MaximConv(channels if doubled else y_channels, channels, 1, bias)
        self.LayerNorm_x, self.LayerNorm_y = norm(channels), norm(channels)
        self.in_project_x, self.in_project_y = (nn.Linear(channels, channels, bias) for _ in range(2))
        self.SplitHeadMultiAxisGating_x = MaximGatingWeights(channels, settings)
        self.SplitHeadMultiAxisGating_y = MaximGatingWeights(channels, settings)
        self.out_project_x, self.out_project_y = (nn.Linear(channels, channels, bias) for _ in range(2))
        self.dropout = nn.Dropout(settings.dropout_rate)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, H, W, Cx]` and `[B, H, W, Cy]`, or half of these sides -> two maps `[B, H, W, C]`."""
        skip_x = self.Conv_0(x)
        skip_y = self.Conv_1(self.ConvTranspose_0(y) if self.doubled else y)
        x = gelu(self.in_project_x(self.LayerNorm_x(skip_x)))
        y = gelu(self.in_project_y(self.LayerNorm_y(skip_y)))
        gate_x, gate_y = self.SplitHeadMultiAxisGating_x(x), self.SplitHeadMultiAxisGating_y(y)
        y = skip_y + self.dropout(self.out_project_y(y * gate_x))
        # The first result takes in the second.
        return self.dropout(self.out_project_x(x * gate_y)) + y + skip_x, y


class MaximResample(nn.Module):
    """Bilinear resizing by a power of 2, antialiased where it shrinks, and a 1x1 convolution.

    Args:
        channels, features: of input and output.
        exponent: of the factor, 2^exponent.
        bias: add one.
    """

    def __init__(self, channels: int, features: int, exponent: int, bias: bool) -> None:
        super().__init__()
        self.exponent = exponent
        self.Conv_0 = MaximConv(channels, features, 1, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H * factor, W * factor, features]`."""
        # The two commute; the convolution runs at the lower resolution.
        if self.exponent >= 0:
            x = self.Conv_0(x)
        if self.exponent != 0:
            size = [int(side * 2.0**self.exponent) for side in x.shape[1:3]]
            x = F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", antialias=self.exponent < 0)
            x = x.permute(0, 2, 3, 1).contiguous()
        return x if self.exponent >= 0 else self.Conv_0(x)


class SupervisedAttention(nn.Module):
    """Makes a stage's image, and lets it attend to the features that go on to the next stage (MPRNet, 2102.02808).

    Args:
        features: channels of the map.
        num_outputs: channels of the image; with 3 the input is added to it.
        bias: add one.
    """

    def __init__(self, features: int, num_outputs: int, bias: bool) -> None:
        super().__init__()
        self.residual = num_outputs == 3
        self.Conv_0 = MaximConv(features, features, 3, bias)
        self.Conv_1 = MaximConv(features, num_outputs, 3, bias)
        self.Conv_2 = MaximConv(num_outputs, features, 3, bias)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, H, W, C]`, `[B, H, W, 3]` -> features of the same shape, and the stage's image."""
        output = self.Conv_1(x) + image if self.residual else self.Conv_1(x)
        return x + self.Conv_0(x) * self.Conv_2(output).sigmoid(), output
