"""From a pyramid of maps to the one sequence of tokens that deformable transformers work on.

Deformable-DETR (arXiv 2010.04159). Authors' code: github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/
deformable_transformer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistrain.detr.deformable import valid_extents
from vistrain.devices import upload
from vistrain.layers.padding import resize_mask
from vistrain.layers.position import SinePositionEncoding


@dataclass(frozen=True)
class Pyramid:
    """Tokens of L levels, fine to coarse, each level row by row, and what is needed to read them.

    Attributes:
        tokens: `[B, N, C]`.
        position: `[B or 1, N, C]` float32, sine encoding plus the level's embedding.
        shapes: (height, width) of each level; their products sum to N.
        padding_mask: `[B, N]` bool, True on padding; None if nothing is padded.
        extents: `[B, L, 2]` valid columns and rows of each level, or None.
        ratios: `[B, L, 2]` the same as shares of the padded width and height, or None.
        sizes: (height, width) of each image without padding, if the host knows them.
        padded: (height, width) of the padded images; None if nothing is padded.
    """

    tokens: Tensor
    position: Tensor
    shapes: list[tuple[int, int]]
    padding_mask: Tensor | None
    extents: Tensor | None
    ratios: Tensor | None
    sizes: Sequence[tuple[int, int]] | None
    padded: tuple[int, int] | None

    def valid_tokens(self) -> list[int] | None:
        """How many tokens of each image are not padding, without waiting for a device; None if the host cannot know."""
        if self.sizes is None or self.padded is None:
            return None
        levels = []
        for shape in self.shapes:
            # The mask of an image is one of rows and one of columns, and so is what a level takes of it.
            axes = [
                resize_mask(torch.arange(side) < torch.tensor(of_images)[:, None], (cells,))
                for of_images, side, cells in zip(zip(*self.sizes, strict=True), self.padded, shape, strict=True)
            ]
            levels.append(axes[0].sum(1) * axes[1].sum(1))
        return torch.stack(levels).sum(0).tolist()


def flatten_pyramid(
    levels: Sequence[Tensor],
    mask: Tensor | None,
    encoding: SinePositionEncoding,
    level_embed: Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Pyramid:
    """Lay maps end to end (Deformable-DETR, `DeformableTransformer.forward`).

    Args:
        levels: `[B, C, H_l, W_l]` each, fine to coarse.
        mask: `[B, H, W]` bool of the images, True on padding; None if nothing is padded.
        encoding: of positions within a map.
        level_embed: `[L, C]`, added to the positions of each level.
        sizes: (height, width) of each image without padding, what `mask` says, for the host.
    """
    device = levels[0].device
    shapes = [(x.shape[-2], x.shape[-1]) for x in levels]
    masks = [None if mask is None else resize_mask(mask, shape) for shape in shapes]
    positions = [
        encoding(shape, own, device) + embed for shape, own, embed in zip(shapes, masks, level_embed, strict=True)
    ]
    tokens = torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2).contiguous()
    present = [m for m in masks if m is not None]
    flat = torch.cat([m.flatten(1) for m in present], 1) if present else None
    extents = valid_extents(present) if present else None
    ratios = None if extents is None else extents / upload([(w, h) for h, w in shapes], device, extents.dtype)
    padded = None if mask is None else (mask.shape[1], mask.shape[2])
    return Pyramid(tokens, torch.cat(positions, 1), shapes, flat, extents, ratios, sizes, padded)
