"""Translation-variant convolution: a depthwise kernel for each cell, made of a map of positions that is learnt.

TVConv: Efficient Translation Variant Convolution for Layout-aware Visual Processing, arXiv 2203.10489, section 3.
Authors' code: JierunChen/TVConv, MIT (face_recognition/model/atoms/TVConv.py); parameters and buffers have its names.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.modules.base import ConvModule


class TVConv(ConvModule):
    """A depthwise convolution whose kernel depends on the cell, and not on the image: for images of one layout.

    Args:
        in_channels, out_channels: C, the same.
        grid: (H, W) of what comes out; maps of other sizes are refused.
        kernel_size: odd.
        stride: of the cells that come out.
        positions: channels of the map of positions.
        hidden: channels of the layers that make kernels of it.
        hidden_layers: such layers between the first and the last.
        bias: whether layers like these make a bias of each cell and channel, too.

    Raises:
        ConfigError: the numbers of channels differ, or the kernel is even.
    """

    formula = "y_cp = sum_o W_co(p) x_c,p+o, W = layers(positions), for each channel c and cell p"
    cost = (
        "9 hidden (positions + hidden + k^2 C) + 4 hidden N parameters; k^2 NC, and for each batch as many N as layers"
    )
    place = "convolution"
    sizes = "maps of the size that it is built for"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        grid: tuple[int, ...] = (3, 3),
        kernel_size: int = 3,
        stride: int = 1,
        positions: int = 4,
        hidden: int = 16,
        hidden_layers: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if in_channels != out_channels:
            problem = f"{in_channels} channels cannot become {out_channels} in it: it is depthwise"
            raise ConfigError("", problem, "choose a host whose convolutions keep them, such as a MobileNet")
        if kernel_size % 2 == 0:
            raise ConfigError("kernel_size", f"{kernel_size} is even", "use 3 or 5")
        self.dim, self.kernel, self.step = in_channels, kernel_size, stride
        numbers = {
            "TVConv_k": kernel_size,
            "TVConv_k_square": kernel_size**2,
            "stride": stride,
            "channels": in_channels,
            "h": grid[0],
            "w": grid[1],
        }
        for name, number in numbers.items():  # the authors keep them with the weights
            self.register_buffer(name, torch.tensor(number))
        self.grid = (grid[0], grid[1])
        self.posi_map = nn.Parameter(torch.ones(1, positions, *self.grid))
        self.weight_layers = _layers(positions, hidden, kernel_size**2 * in_channels, hidden_layers, self.grid)
        self.bias_layers = _layers(positions, hidden, in_channels, hidden_layers, self.grid) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, C, H, W]`, H = ceil(h / stride).

        Raises:
            DataError: what comes out would not be of the size that it is built for.
        """
        size = tuple(-(-side // self.step) for side in x.shape[2:])
        if size != self.grid:
            rows, columns = (side * self.step for side in self.grid)
            raise self.refusal(x, f"give it {rows}x{columns}: set the host's img_size to that of the images")
        shape = (self.dim, self.kernel**2, *self.grid)
        kernels = self.weight_layers(self.posi_map).view(1, *shape)
        patches = F.unfold(x, self.kernel, padding=self.kernel // 2, stride=self.step).view(-1, *shape)
        out = (kernels * patches).sum(2)
        return out if self.bias_layers is None else out + self.bias_layers(self.posi_map)


def _layers(positions: int, hidden: int, out: int, between: int, grid: tuple[int, int]) -> nn.Sequential:
    widths = [positions, *[hidden] * (between + 1)]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.LayerNorm([b, *grid]), nn.ReLU())
        for a, b in pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.Conv2d(hidden, out, 3, padding=1, bias=False))
