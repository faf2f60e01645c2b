"""Parts of ESPNet (arXiv 1803.06815), with the official names of their parameters.

Authors' code: github.com/sacmehta/ESPNet, commit afe71c3, MIT (train/Model.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError

EPS = 1e-3  # of every batch norm; some published variances are next to 0
DILATIONS = (1, 2, 4, 8, 16)


class Convolution(nn.Module):
    """Bias-free convolution that keeps the size at stride 1, named `conv`.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation: of the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H / stride, W / stride]`."""
        return self.conv(x)


class NormAct(nn.Module):
    """Batch norm and a PReLU with a slope per channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.act = nn.BatchNorm2d(channels, eps=EPS), nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        return self.act(self.bn(x))


class ConvNormAct(Convolution):
    """A `Convolution`, batch norm and PReLU.

    Args:
        in_channels, out_channels, kernel_size, stride: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        self.bn, self.act = nn.BatchNorm2d(out_channels, eps=EPS), nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H / stride, W / stride]`."""
        return self.act(self.bn(self.conv(x)))


class Pyramid(nn.Module):
    """Efficient spatial pyramid: reduce, split into five dilations, fuse hierarchically (section 3, equation 1).

    Args:
        in_channels, out_channels: N and M; M at least 5.
        kernel_size, stride: of the reduction.

    Raises:
        ConfigError: M is below 5.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        width = out_channels // len(DILATIONS)
        if width < 1:
            raise ConfigError("labels", f"{out_channels} classes are too few for ESPNet's decoder", "at least 5")
        self.c1 = Convolution(in_channels, width, kernel_size, stride)
        for dilation in DILATIONS:
            wide = out_channels - (len(DILATIONS) - 1) * width if dilation == 1 else width
            self.add_module(f"d{dilation}", Convolution(width, wide, 3, dilation=dilation))

    def fuse(self, x: Tensor) -> Tensor:
        """`[B, N, H, W]` -> `[B, M, H / stride, W / stride]`."""
        reduced = self.c1(x)
        parts = [self.get_submodule(f"d{dilation}")(reduced) for dilation in DILATIONS]
        for i in range(2, len(parts)):  # the undilated part takes no part in the sums
            parts[i] = parts[i - 1] + parts[i]
        return torch.cat(parts, 1)


class DownESP(Pyramid):
    """The pyramid that halves the size.

    Args:
        in_channels, out_channels: N and M.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2)
        self.bn, self.act = nn.BatchNorm2d(out_channels, eps=EPS), nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, H, W]` -> `[B, M, H / 2, W / 2]`."""
        return self.act(self.bn(self.fuse(x)))


class ESP(Pyramid):
    """The pyramid that keeps the size.

    Args:
        in_channels, out_channels: N and M.
        residual: add the input, which has M channels then.
    """

    def __init__(self, in_channels: int, out_channels: int, residual: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, stride=1)
        self.bn, self.residual = NormAct(out_channels), residual

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, H, W]` -> `[B, M, H, W]`."""
        out = self.fuse(x)
        return self.bn(out + x if self.residual else out)
