"""GMML: Group Masked Model Learning (arXiv 2205.14986).

Blocks of pixels are replaced by noise, others by those of another image; the network reads the whole, and restores what
was replaced. Written from the paper and from the description of Sara-Ahmed/GMML (Apache-2.0), of whose code only the
names of weights and the order of draws are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.predictions import Reconstruction
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer, seed_of
from vistrain.pretraining.token_masks import RandomMasking, TokenSplit

NAMES = KeyMap(
    name="GMML",
    marker=r"^head_recons\.",
    rules=((r"^backbone\.", "backbone.body."),),
)


class BlockCorruption:
    """Where an image is replaced: blocks that lie on a grid, until a share of the pixels is.

    Args:
        share: greatest share of replaced pixels; between half of the image, or it if it is less, and it.
        align: pixels of the grid.
        largest: share of a side that a block's side is at most.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, share: float = 0.75, align: int = 1, largest: float = 0.3) -> None:
        if not 0 < share < 1 or align < 1 or not 0 < largest <= 1:
            problem = f"share={share}, align={align}, largest={largest}"
            raise ConfigError("corruption", problem, "use shares between 0 and 1, and 1 or more pixels")
        self.share, self.align, self.largest = share, align, largest

    def blocks(self, size: tuple[int, int], draw: np.random.RandomState) -> np.ndarray:
        """`[H, W]` bool, True where an image of these sides is replaced.

        Raises:
            ConfigError: blocks of the grid cannot cover the share.
        """
        (height, width), align = size, self.align
        tall, wide = int(height * self.largest), int(width * self.largest)
        if tall <= align or wide <= align:
            problem = f"blocks of at least {align} pixels are to be at most {self.largest} of {height}x{width}"
            raise ConfigError("model.corruption.align", problem, "use less, or larger images")
        wanted = draw.uniform(min(0.5, self.share), self.share) * height * width
        found = np.zeros(size, bool)
        for _ in range(10000):
            if found.sum() >= wanted:
                return found
            top = draw.randint(0, height - align) // align * align
            left = draw.randint(0, width - align) // align * align
            rows = round(min(draw.randint(align, tall), height - top) / align) * align
            columns = round(min(draw.randint(align, wide), width - left) / align) * align
            found[top : top + rows, left : left + columns] = True
        problem = f"blocks on a grid of {align} pixels never cover {wanted / found.size:.2f} of {height}x{width}"
        raise ConfigError("model.corruption", problem, "use a smaller align or share, or larger images")


class GMML(Pretrainer):
    """Restoration of corrupted images.

    Args:
        noise: what is replaced by noise; up to 75 % if None.
        swap: what is then replaced by another image of the batch; up to 30 % if None.
        blocks: numbers, from 1, of the encoder's blocks whose outputs are averaged; four to the top, every second one,
            if empty.
        backbone: see `Pretrainer`.
    """

    key_maps = (NAMES,)

    def __init__(
        self,
        backbone: PatchEncoder,
        noise: BlockCorruption | None = None,
        swap: BlockCorruption | None = None,
        blocks: tuple[int, ...] = (),
    ) -> None:
        super().__init__(backbone, RandomMasking(0.5))
        depth = len(backbone.body.blocks)
        self.noise, self.swap = noise or BlockCorruption(0.75), swap or BlockCorruption(0.3)
        self.blocks = tuple(blocks) or tuple(range(depth, 0, -2)[:4])
        if not all(1 <= number <= depth for number in self.blocks):
            raise ConfigError("model.blocks", f"{list(self.blocks)} of {depth} blocks", f"use 1 to {depth}")
        if backbone.patch[0] != backbone.patch[1]:
            raise ConfigError("backbone.args.patch_size", f"{backbone.patch} is no square", "use one number")
        dim = backbone.dim
        layers = [nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU()]
        self.head_recons = nn.ModuleDict({
            "mlp": nn.Sequential(*layers),
            "convTrans": nn.ConvTranspose2d(dim, backbone.channels, backbone.patch, backbone.patch),
        })  # fmt: skip

    def averaged(self, images: Tensor) -> Tensor:
        """The mean of the chosen blocks' tokens after the final norm, `[B, N, D]`."""
        layers = self.backbone.layers(images)
        mean = torch.stack([layers[number - 1] for number in self.blocks]).mean(0)
        return self.backbone.norm(mean)[:, self.backbone.prefix :]

    def restored(self, images: Tensor) -> Tensor:
        """Normalised pixels `[B, C, H, W]` of corrupted images `[B, C, H, W]`."""
        rows = self.head_recons["mlp"](self.averaged(images))
        maps = rows.mT.unflatten(2, self.backbone.grid(*images.shape[-2:]))
        pixels: Tensor = self.head_recons["convTrans"](maps)
        return pixels

    def corrupt(self, images: Tensor, draws: list[np.random.RandomState]) -> tuple[Tensor, Tensor]:
        """Corrupted images `[B, C, H, W]`, and where, `[B, 1, H, W]` bool."""
        size = (images.shape[-2], images.shape[-1])
        noisy = self._where(self.noise, size, draws, images.device)
        swapped = self._where(self.swap, size, draws, images.device)
        noise = np.stack([draw.standard_normal(images.shape[1:]).astype(np.float32) for draw in draws])
        found = torch.where(noisy, torch.from_numpy(noise).to(images.device), images)
        return torch.where(swapped, images.roll(1, 0), found), noisy | swapped

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels`, see `corrupted_loss`."""
        seeds = torch.randint(2**31, (len(images),)).tolist()
        corrupted, where = self.corrupt(images, [np.random.RandomState(seed) for seed in seeds])
        return {"loss_pixels": corrupted_loss(self.restored(corrupted), images, where)}

    def judge(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """See `Pretrainer`; of images corrupted by their ids."""
        corrupted, where = self.corrupt(images, [np.random.RandomState(seed_of(name)) for name in batch["id"]])
        made = self.restored(corrupted)
        losses = torch.stack([corrupted_loss(a, b, c) for a, b, c in zip(made, images, where, strict=True)])
        return {"loss_pixels": losses}, torch.where(where, made.float(), images)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Reconstruction]:
        """See `Pretrainer`; nothing is hidden, what is shown is corrupted."""
        images = self.prepared(batch)
        corrupted, where = self.corrupt(images, [np.random.RandomState(seed_of(name)) for name in batch["id"]])
        made = self.restored(corrupted).float()
        return [
            Reconstruction(
                {"loss_pixels": corrupted_loss(made[i], images[i], where[i]).item()},
                image=self.pixels(torch.where(where[i], made[i], images[i])),
                shown=self.pixels(corrupted[i]),
            )
            for i in range(len(images))
        ]

    def check_size(self, *size: int) -> None:
        """Refuse sides that are no multiples of a patch's, or too small for the blocks."""
        self.backbone.grid(*size)
        for corruption in (self.noise, self.swap):
            corruption.blocks((size[0], size[1]), np.random.RandomState(0))

    def _where(
        self,
        corruption: BlockCorruption,
        size: tuple[int, int],
        draws: list[np.random.RandomState],
        device: torch.device,
    ) -> Tensor:
        return torch.from_numpy(np.stack([corruption.blocks(size, draw) for draw in draws]))[:, None].to(device)


def corrupted_loss(made: Tensor, images: Tensor, where: Tensor) -> Tensor:
    """The mean absolute error of what was replaced: `[..., C, H, W]` twice, and a mask that is broadcast to it."""
    where = where.expand_as(images)
    errors = (made.float() - images.float()).abs() * where
    return errors.sum() / where.sum().clamp(min=1)
