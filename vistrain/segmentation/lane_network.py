"""From maps of lanes to points on the image, as SCNN's authors decode them (Pan et al. 2018, arXiv 1712.06080, section
4.1; github.com/XingangPan/SCNN, commit 428d5e0, MIT, tools/prob2lines)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistrain.errors import ConfigError
from vistrain.network import Network


@dataclass(frozen=True)
class LaneDecoder:
    """On each of some rows a lane is where its probability is largest. The defaults are CULane's.

    Args:
        offset: of the lowest row, pixels of the original image that lie from it to the image's end (1: the last row).
        step: pixels of the original image between rows, upwards.
        rows: how many; those above the image are left out.
        threshold: a row whose largest probability is no more has no point.
        exist: a lane whose probability of being there is no more has none at all; nor has one of a single point.

    Raises:
        ConfigError: a number is too small.
    """

    offset: int = 1
    step: int = 20
    rows: int = 18
    threshold: float = 0.3
    exist: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("offset", self.offset), ("step", self.step), ("rows", self.rows)):
            if value < 1:
                raise ConfigError(f"model.decoder.{name}", f"{value} is too small", "use 1 or more")

    def heights(self, height: int) -> list[int]:
        """y of the rows in an image of this height, pixels, from the lowest up."""
        return [y for i in range(self.rows) if (y := height - self.offset - i * self.step) >= 0]

    def __call__(self, probabilities: Tensor, exist: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """The lanes of one image.

        Rows and columns are counted from 1 where they are scaled, and rounded, as the authors do.

        Args:
            probabilities: `[L + 1, h, w]`, background first.
            exist: `[L]`.
            size: (H, W) of the original image, pixels.

        Returns:
            L times `[N, 2]` float32, (x, y) in pixels of the original image from below upwards; N is 0, or 2 and more.
        """
        height, width = probabilities.shape[1:]
        heights = torch.tensor(self.heights(size[0]), dtype=torch.float64, device=probabilities.device)
        rows = ((heights + 1) / size[0] * height + 0.5).floor().long() - 1
        seen = rows >= 0
        heights, rows = heights[seen], rows[seen]
        best, column = probabilities[1:, rows].max(-1)  # [L, N]
        x = ((column + 1).double() * (size[1] / width) + 0.5).floor() - 1
        points = torch.stack((x, heights.expand_as(x)), -1).float()
        kept = (best > self.threshold) & (exist > self.exist)[:, None]
        kept &= kept.sum(1, keepdim=True) >= 2
        return tuple(lane[there] for lane, there in zip(points, kept, strict=True))


class LaneNetwork(Network):
    """Base of networks that find lanes; `predict` gives `LaneMaps`.

    Args:
        decoder: from maps to points; CULane's if None.
    """

    learns_from = ("label_map", "exist")

    def __init__(self, decoder: LaneDecoder | None = None) -> None:
        super().__init__()
        self.decoder = decoder or LaneDecoder()
