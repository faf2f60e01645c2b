"""NAFNet: a U-Net of blocks without activation functions (arXiv 2204.04676).

Chen et al., "Simple Baselines for Image Restoration". Names of parameters are those of megvii-research/NAFNet,
`basicsr/models/archs/NAFNet_arch.py` and, for the local form, `local_arch.py` (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.norms import LayerNorm2d
from vistrain.layers.padding import EdgeMode
from vistrain.layers.weighted_conv import weight_convolutions
from vistrain.restoration.restorer import Restorer


def simple_gate(x: Tensor) -> Tensor:
    """The product of the two halves of the channels: `[B, 2C, H, W]` -> `[B, C, H, W]` (section 3.3)."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """Two residual branches: gated depthwise convolution with simplified channel attention, and a gated perceptron.

    Args:
        channels: C.
        dw_expand, ffn_expand: widths of the branches over C.
        drop_out_rate: of both branches.
    """

    def __init__(self, channels: int, dw_expand: int = 2, ffn_expand: int = 2, drop_out_rate: float = 0.0) -> None:
        super().__init__()
        wide, half = channels * dw_expand, channels * dw_expand // 2
        self.norm1, self.norm2 = LayerNorm2d(channels), LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(half, half, 1))
        self.conv3 = nn.Conv2d(half, channels, 1)
        self.conv4 = nn.Conv2d(channels, channels * ffn_expand, 1)
        self.conv5 = nn.Conv2d(channels * ffn_expand // 2, channels, 1)
        self.dropout = nn.Dropout(drop_out_rate)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        y = simple_gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.beta * self.dropout(self.conv3(y * self.sca(y)))
        y = simple_gate(self.conv4(self.norm2(x)))
        return x + self.gamma * self.dropout(self.conv5(y))


class NAFNet(Restorer):
    """The network; sides that no `2^levels` divides are padded with zeros at the bottom and right inside.

    Args:
        img_channel: channels of the image.
        width: channels at full resolution; doubled with each level.
        middle_blk_num: blocks at the lowest resolution.
        enc_blk_nums, dec_blk_nums: blocks per level, from the highest resolution down, and up again.
        den: densities of weighted convolutions from the border to the centre, `[0.7]` for the 3x3 kernels
            (arXiv 2505.24558); None for plain convolutions.

    Raises:
        ConfigError: encoder and decoder have not the same number of levels, or `den` does not fit.
    """

    padding: EdgeMode = "zeros"

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 16,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (),
        dec_blk_nums: Sequence[int] = (),
        den: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if len(enc_blk_nums) != len(dec_blk_nums):
            raise ConfigError("dec_blk_nums", f"{len(dec_blk_nums)} levels up, {len(enc_blk_nums)} down")
        levels = len(enc_blk_nums)
        self.channels, self.multiple = img_channel, 2**levels
        widths = [width * 2**level for level in range(levels)]
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(w, n) for w, n in zip(widths, enc_blk_nums, strict=True))
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths)
        self.middle_blks = _blocks(width * self.multiple, middle_blk_num)
        # From 2w channels to w at twice the resolution.
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * w, 4 * w, 1, bias=False), nn.PixelShuffle(2)) for w in reversed(widths)
        )
        self.decoders = nn.ModuleList(_blocks(w, n) for w, n in zip(reversed(widths), dec_blk_nums, strict=True))
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        if den is not None:
            weight_convolutions(self, den)

    def forward(self, x: Tensor) -> Tensor:
        """Restore.

        Args:
            x: `[B, img_channel, H, W]`, brightest pixel = 1; any size.

        Returns:
            the same shape, not clipped.
        """
        height, width = x.shape[-2:]
        image = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        y, skips = self.intro(image), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            y = encoder(y)
            skips.append(y)
            y = down(y)
        y = self.middle_blks(y)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            y = decoder(up(y) + skips.pop())
        return (self.ending(y) + image)[..., :height, :width]


class LocalMean(nn.Module):
    """The mean over a window around each cell, of `window` cells or as many as there are (TLC, arXiv 2112.04491).

    Windows lie inside the map; where none is centred, at the borders, the nearest one's mean is repeated.

    Args:
        window: `(height, width)` in cells.
    """

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`, or `[B, C, 1, 1]` where the window covers the whole map."""
        size = (x.shape[-2], x.shape[-1])
        window = (min(self.window[0], size[0]), min(self.window[1], size[1]))
        if window == size:
            return x.mean((-2, -1), keepdim=True)
        # One axis after the other: sums stay short, and float32 keeps its digits on large images.
        means = _running_mean(_running_mean(x, window[0], -2), window[1], -1)
        spare = [full - part + 1 for full, part in zip(size, window, strict=True)]
        top, left = ((full - part) // 2 for full, part in zip(size, spare, strict=True))
        pad = (left, size[1] - spare[1] - left, top, size[0] - spare[0] - top)
        return F.pad(means, pad, mode="replicate")

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"window={self.window}"


class NAFNetLocal(NAFNet):
    """NAFNet whose channel attention sees, in an image of any size, as much as in training (TLC, arXiv 2112.04491).

    GoPro's and REDS's published numbers are of this form; SIDD's blocks are of the training size, so plain NAFNet is
    the right one there. The names of weights are the same. Train `NAFNet`, evaluate this.

    Args:
        train_size: of the training patches, `(..., H, W)`; the pooling window is 1.5 times as large.
        base: see `NAFNet`.

    Raises:
        ConfigError: as `NAFNet`.
    """

    def __init__(self, train_size: Sequence[int] = (1, 3, 256, 256), **base: Any) -> None:
        super().__init__(**base)
        levels = len(self.encoders)
        stages = [*self.encoders, self.middle_blks, *self.decoders]
        for stage, level in zip(stages, [*range(levels), levels, *reversed(range(levels))], strict=True):
            window = tuple(self._window(side, level) for side in train_size[-2:])
            for block in stage:
                block.sca[0] = LocalMean((window[0], window[1]))

    def _window(self, side: int, level: int) -> int:
        """Cells of a level that 1.5 training patches span: what the authors' dry run on one patch, padded, fixes."""
        padded = side + -side % self.multiple
        return (padded >> level) * int(1.5 * side) // side


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))


def _running_mean(x: Tensor, window: int, dim: int) -> Tensor:
    """Means of `window` neighbours along an axis, which gets `window - 1` shorter."""
    sums = x.cumsum(dim)
    sums = torch.cat([torch.zeros_like(sums.narrow(dim, 0, 1)), sums], dim)
    count = x.shape[dim] - window + 1
    return (sums.narrow(dim, window, count) - sums.narrow(dim, 0, count)) / window
