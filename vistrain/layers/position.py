"""Sine position encodings, of feature maps and of coordinates (Vaswani et al., 2017; DETR, appendix A.4); tables.

The table of a grid is written from MAE's description: the authors' code is CC BY-NC 4.0, and nothing of it is here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sine_embedding(x: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Sines (even channels) and cosines (odd channels) of each coordinate at `features / 2` frequencies.

    Args:
        x: `[..., D]` angles; coordinates in 0..1 are multiplied by 2 pi by the caller.
        features: channels per coordinate, even.
        temperature: ratio of the longest to the shortest wave length.

    Returns:
        `[..., D * features]`, coordinate after coordinate in the order of `x`.
    """
    exponent = torch.arange(features // 2, device=x.device, dtype=torch.float32) * (2 / features)
    angles = x[..., None] / temperature**exponent
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-3)


class SinePositionEncoding(nn.Module):
    """Position encoding of a feature map from its unpadded extent.

    Args:
        features: channels per axis (half of the embedding).
        temperature: of both axes, or `(y, x)` (DINO: 20; Deformable-DETR: 10000).
        normalize: divide positions by the extent and multiply by `scale`; without it, raw indices count from 1.
        offset: added to positions counted from 1, before dividing (-0.5: pixel centres, Deformable-DETR; 0: DETR).
        scale: angle of the full extent.
        eps: added to the extent.
        order: `yx` (all DETR-likes) or `xy`, which axis has the first half of the channels.
    """

    def __init__(
        self,
        features: int = 128,
        temperature: float | tuple[float, float] = 10000.0,
        normalize: bool = True,
        offset: float = -0.5,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        order: str = "yx",
    ) -> None:
        super().__init__()
        self.features, self.normalize, self.offset, self.scale, self.eps = features, normalize, offset, scale, eps
        pair = temperature if isinstance(temperature, tuple | list) else (temperature, temperature)
        self.temperatures = (float(pair[0]), float(pair[1]))
        self.order = order

    def forward(self, size: tuple[int, int], padding_mask: Tensor | None, device: torch.device | None = None) -> Tensor:
        """Encode one map.

        Args:
            size: (H, W) of the map.
            padding_mask: `[B, H, W]` bool, True on padding; None if nothing is padded.
            device: where to make it when there is no mask.

        Returns:
            `[B, H * W, 2 * features]` float32; B is 1 without a mask (broadcast it).
        """
        if padding_mask is None:
            height, width = size
            y = torch.arange(1, height + 1, device=device, dtype=torch.float32)
            x = torch.arange(1, width + 1, device=device, dtype=torch.float32)
            # The axes are independent here: H + W sines instead of H * W.
            axes = [
                self._axis(y[None], y[-1:, None], 0)[:, :, None].expand(-1, -1, width, -1),
                self._axis(x[None], x[-1:, None], 1)[:, None].expand(-1, height, -1, -1),
            ]
        else:
            valid = ~padding_mask
            y, x = valid.cumsum(1, dtype=torch.float32), valid.cumsum(2, dtype=torch.float32)
            axes = [self._axis(y, y[:, -1:, :], 0), self._axis(x, x[:, :, -1:], 1)]
        if self.order == "xy":
            axes.reverse()
        return torch.cat(axes, -1).flatten(1, 2)

    def _axis(self, positions: Tensor, extent: Tensor, axis: int) -> Tensor:
        if self.normalize:
            positions = (positions + self.offset) / (extent + self.eps) * self.scale
        return sine_embedding(positions[..., None], self.features, self.temperatures[axis])


def resized_positions(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table of learnt positions of a square map, `[1, G * G, C]`, as a map of any size, `[1, C, H, W]`: bilinear."""
    side = round(table.shape[1] ** 0.5)
    maps = table.mT.unflatten(2, (side, side))
    return maps if size == (side, side) else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def grid_table(size: tuple[int, int], features: int, rows_first: bool = False) -> Tensor:
    """The fixed position table of a grid of patches: sines, then cosines, of the columns, and the same of the rows.

    Of MAE (arXiv 2111.06377, appendix A.1), whose table has the columns in its first half.

    Args:
        size: rows and columns.
        features: channels, a multiple of four.
        rows_first: the rows in its first half, as in CAE and BEiT-like codes.

    Returns:
        `[rows * columns, features]` float32, row by row.

    Raises:
        ValueError: `features` is no multiple of four.
    """
    if features < 1 or features % 4:
        raise ValueError(f"{features} channels are no multiple of 4, as a table of positions wants")
    waves = 10000.0 ** -(torch.arange(features // 4, dtype=torch.float64) / (features / 4))

    def axis(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * waves
        return torch.cat((angles.sin(), angles.cos()), 1)

    rows, columns = size
    across = axis(columns)[None].expand(rows, -1, -1)
    down = axis(rows)[:, None].expand(-1, columns, -1)
    halves = (down, across) if rows_first else (across, down)
    return torch.cat(halves, 2).flatten(0, 1).float()
