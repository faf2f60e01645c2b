"""ColorMAE: masks of coloured noise (arXiv 2407.13036).

What is shown is where a window of a noise pattern is brightest. The authors' patterns are files; their generator is not
published, and the one here is ours: white noise, filtered by Gaussians whose widths are arguments. Written from the
paper and from the description of carlosh93/ColorMAE, whose licence is not stated.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vistrain.errors import ConfigError, DataError
from vistrain.pretraining.token_masks import Grid, Masking

Color = Literal["red", "green", "blue", "purple"]


class ColorMasking(Masking):
    """Masks whose patches come in clusters (red), evenly spread (blue), or both (green, the best; purple).

    One crop and one flip are drawn for all patterns of a pass, as in the authors' code; a batch of more images than
    there are patterns takes several passes.

    Args:
        ratio: see `Masking`.
        color: red is low-pass, blue high-pass, green band-pass, purple band-stop noise.
        wide: deviation, patches, of the Gaussian of red, blue, and of the lower bound of the two others.
        narrow: of their upper bound. Both are interpretations: the published patterns' are unknown.
        count: patterns.
        side: of a pattern, patches.
        seed: of the generator.
        file: patterns `[L, M, N]` to use instead (the authors' .npz, or .npy).

    Raises:
        ConfigError: a number is out of its range.
        DataError: the file cannot be read.
    """

    def __init__(
        self,
        ratio: float = 0.75,
        color: Color = "green",
        wide: float = 2.0,
        narrow: float = 0.6,
        count: int = 256,
        side: int = 64,
        seed: int = 0,
        file: str | None = None,
    ) -> None:
        super().__init__(ratio)
        if not 0 < narrow < wide or count < 1 or side < 2:
            problem = f"narrow={narrow}, wide={wide}, count={count}, side={side}"
            raise ConfigError("masking", problem, "use 0 < narrow < wide, and at least one pattern of two patches")
        if file is not None:
            self.patterns = read_patterns(file)
        else:
            self.patterns = color_noise(count, side, color, wide, narrow, torch.Generator().manual_seed(seed))

    def order(
        self, images: int, grid: Grid, kept: int, generator: torch.Generator | None, device: torch.device | None
    ) -> Tensor:
        """See `Masking`."""
        return brightest_first(self.windows(images, grid, generator)).to(device)

    def windows(self, images: int, grid: Grid, generator: torch.Generator | None = None) -> Tensor:
        """A window of a pattern for each image, `[B, *grid]`.

        Raises:
            ConfigError: the patterns are smaller than the grid.
        """
        count, rows, columns = self.patterns.shape
        if rows < grid[0] or columns < grid[1]:
            problem = f"patterns of {rows}x{columns} are smaller than images of {grid[0]}x{grid[1]} patches"
            raise ConfigError("model.masking.side", problem, f"use {max(grid)} or more")
        found = []
        for begin in range(0, images, count):
            top = int(torch.randint(rows - grid[0] + 1, (), generator=generator))
            left = int(torch.randint(columns - grid[1] + 1, (), generator=generator))
            flips = torch.rand(2, generator=generator) < 0.5
            window = self.patterns[: images - begin, top : top + grid[0], left : left + grid[1]]
            found.append(window.flip([axis for axis, flip in zip((1, 2), flips.tolist(), strict=True) if flip]))
        return torch.cat(found)


def brightest_first(windows: Tensor) -> Tensor:
    """The order of patches by falling brightness: `[B, h, w]` -> `[B, h * w]` int64. Each window is divided by its
    brightest value first, as the authors do."""
    return (windows / windows.amax((1, 2), keepdim=True)).flatten(1).argsort(1, descending=True)


def color_noise(count: int, side: int, color: Color, wide: float, narrow: float, generator: torch.Generator) -> Tensor:
    """Filtered noise, `[count, side, side]`, values in 0..1 in each pattern; arguments as of `ColorMasking`."""
    white = torch.rand(count, side, side, generator=generator)
    low = blurred(white, wide)
    band = blurred(white, narrow) - low
    found = {"red": low, "blue": white - low, "green": band, "purple": white - band}[color]
    least, most = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    return (found - least) / (most - least)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """`[B, h, w]` filtered by a Gaussian, wrapped around at the borders."""
    rows, columns = images.shape[-2:]
    squares = torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.rfftfreq(columns) ** 2
    passed = torch.exp(-2 * (math.pi * deviation) ** 2 * squares)
    return torch.fft.irfft2(torch.fft.rfft2(images) * passed, s=(rows, columns))


def read_patterns(file: str) -> Tensor:
    """Patterns `[L, M, N]` from a .npy file, or the first array of an .npz.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = np.load(file, allow_pickle=False)
        array = content if isinstance(content, np.ndarray) else content[content.files[0]]
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise DataError(file, f"holds no patterns ({error})", "give an .npz or .npy file of [L, M, N]") from error
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.number) or not array.size:
        raise DataError(file, f"holds {array.dtype} {array.shape}", "patterns are numbers [L, M, N]")
    return torch.from_numpy(array.astype(np.float32))
