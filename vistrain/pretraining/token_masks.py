"""Which patches of an image a network is not shown: masks, as objects that draw them and draw pictures of them.

Random masks are those of MAE (arXiv 2111.06377, section 3; facebookresearch/mae, CC BY-NC 4.0), blocks those of BEiT
(arXiv 2106.08254, algorithm 1; microsoft/unilm, MIT) as CAE takes them (arXiv 2202.03026; Atten4Vis/CAE, licence is not
stated). Written from the papers.
"""

from __future__ import annotations

import abc
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vistrain.contract import Contract
from vistrain.errors import ConfigError

Grid = tuple[int, int]
ATTEMPTS = 100  # to place a block


@dataclass(frozen=True)
class TokenSplit:
    """The patches of a batch, in two parts of the same size in each image.

    Attributes:
        order: `[B, N]` int64, a permutation of the patches of each image: those that are shown come first.
        kept: K, how many these are.
    """

    order: Tensor
    kept: int

    @classmethod
    def of_hidden(cls, hidden: Tensor) -> TokenSplit:
        """Of `[B, N]` bool, True on what is hidden; the patches of each part stay in the order of their rows.

        Raises:
            ValueError: images have not all as many hidden patches.
        """
        counts = (~hidden).sum(1)
        if counts.unique().numel() != 1:
            raise ValueError(f"images with {sorted(set(counts.tolist()))} patches cannot be one batch")
        return cls(hidden.to(torch.int8).argsort(dim=1, stable=True), int(counts[0]))

    @property
    def shown(self) -> Tensor:
        """`[B, K]`, the patches that are shown."""
        return self.order[:, : self.kept]

    @property
    def removed(self) -> Tensor:
        """`[B, N - K]`, the others."""
        return self.order[:, self.kept :]

    @property
    def restore(self) -> Tensor:
        """`[B, N]`: where each patch stands in `order`."""
        return self.order.argsort(1)

    @property
    def hidden(self) -> Tensor:
        """`[B, N]` bool, True on what is hidden."""
        return self.restore >= self.kept


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: `[B, N, C]` (or `[1, N, C]`) at `[B, K]` -> `[B, K, C]`."""
    return tokens.expand(len(index), -1, -1).gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


class Masking(Contract, abc.ABC):
    """Draws which patches are hidden, the same number in each image.

    Args:
        ratio: share of the patches that is hidden; int(N * (1 - ratio)) are shown.

    Raises:
        ConfigError: the ratio is not between 0 and 1.
    """

    def __init__(self, ratio: float = 0.75) -> None:
        if not 0 < ratio < 1:
            problem = f"{ratio} {'hides nothing' if ratio <= 0 else 'shows nothing'}"
            raise ConfigError("ratio", problem, "use a share between 0 and 1, such as 0.75")
        self.ratio = ratio

    def kept(self, tokens: int) -> int:
        """How many of so many patches are shown.

        Raises:
            ConfigError: none, or all of them.
        """
        kept = int(tokens * (1 - self.ratio))
        if not 0 < kept < tokens:
            problem = f"{self.ratio} shows {kept} of the {tokens} patches"
            share = f"use at most {1 - 1 / tokens:.4g} and more than 0, or " if tokens > 1 else "use "
            remedy = f"{share}larger images or smaller patches"
            raise ConfigError("model.masking.ratio", problem, remedy)
        return kept

    def split(
        self, images: int, grid: Grid, generator: torch.Generator | None = None, device: torch.device | None = None
    ) -> TokenSplit:
        """Draw.

        Args:
            images: B.
            grid: rows and columns of patches, N in all.
            generator: of the device; the device's own if None.
            device: where the result is.

        Raises:
            ConfigError: the ratio shows none of the patches, or all.
        """
        kept = self.kept(grid[0] * grid[1])
        return TokenSplit(self.order(images, grid, kept, generator, device), kept)

    @abc.abstractmethod
    def order(
        self, images: int, grid: Grid, kept: int, generator: torch.Generator | None, device: torch.device | None
    ) -> Tensor:
        """`[B, N]` int64: patches of each image, the `kept` that are shown first. Arguments as of `split`."""

    def picture(self, grid: Grid, count: int = 4, cell: int = 8, seed: int = 0) -> np.ndarray:
        """How such masks look: `count` of them side by side, what is shown in white.

        Args:
            grid: rows and columns of patches.
            count: masks.
            cell: pixels of a patch's side.
            seed: of what is drawn.

        Returns:
            uint8 `[H, W, 3]`.
        """
        hidden = self.split(count, grid, torch.Generator().manual_seed(seed)).hidden.view(count, *grid)
        grey = torch.where(hidden, 40, 255).to(torch.uint8).numpy()
        tiles = [np.pad(np.kron(mask, np.ones((cell, cell), np.uint8)), 2, constant_values=128) for mask in grey]
        return np.repeat(np.concatenate(tiles, 1)[..., None], 3, 2)


class RandomMasking(Masking):
    """Each patch as likely as any other.

    Args:
        ratio: see `Masking`.
    """

    def order(
        self, images: int, grid: Grid, kept: int, generator: torch.Generator | None, device: torch.device | None
    ) -> Tensor:
        """See `Masking`: by ascending noise."""
        return by_noise(torch.rand(images, grid[0] * grid[1], generator=generator, device=device))


def by_noise(noise: Tensor) -> Tensor:
    """The order of patches by ascending noise: `[B, N]` -> `[B, N]` int64."""
    return noise.argsort(1)


class BlockMasking(Masking):
    """Rectangles, each of at least `least` patches as long as there is room, until the share is reached.

    Args:
        ratio: see `Masking`; CAE hides 98 of 196.
        least: patches of the smallest rectangle.
        aspect: height / width of the rectangles lies between this and its inverse.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, ratio: float = 0.5, least: int = 16, aspect: float = 0.3) -> None:
        super().__init__(ratio)
        if least < 1 or not 0 < aspect <= 1:
            raise ConfigError("masking", f"least={least}, aspect={aspect}", "use 1 or more, and a ratio in 0..1")
        self.least, self.aspect = least, aspect

    def order(
        self, images: int, grid: Grid, kept: int, generator: torch.Generator | None, device: torch.device | None
    ) -> Tensor:
        """See `Masking`: the order of the rows within both parts."""
        where = None if generator is None else generator.device
        seeds = torch.randint(2**31, (images,), generator=generator, device=where or device).tolist()
        count = grid[0] * grid[1] - kept
        masks = np.stack([self.blocks(grid, count, random.Random(seed)) for seed in seeds])
        return TokenSplit.of_hidden(torch.from_numpy(masks).flatten(1).to(device)).order

    def blocks(self, grid: Grid, count: int, draw: random.Random) -> np.ndarray:
        """A mask `[rows, columns]` bool with exactly `count` hidden patches."""
        mask, rows, columns = np.zeros(grid, bool), *grid
        steepest = math.log(1 / self.aspect)
        while (left := count - int(mask.sum())) > 0:
            for _ in range(ATTEMPTS):
                area = draw.uniform(self.least, left)
                shape = math.exp(draw.uniform(-steepest, steepest))
                height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
                if height >= rows or width >= columns:
                    continue
                top, start = draw.randint(0, rows - height), draw.randint(0, columns - width)
                block = mask[top : top + height, start : start + width]
                if 0 < block.size - int(block.sum()) <= left:
                    block[...] = True
                    break
            else:  # no block fits any more: single patches
                free = np.flatnonzero(~mask)
                mask.flat[draw.sample(free.tolist(), left)] = True
        return mask
