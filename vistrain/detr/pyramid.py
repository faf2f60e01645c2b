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
    """

    tokens: Tensor
    position: Tensor
    shapes: list[tuple[int, int]]
    padding_mask: Tensor | None
    extents: Tensor | None
    ratios: Tensor | None


def flatten_pyramid(
    levels: Sequence[Tensor], padding_mask: Tensor | None, encoding: SinePositionEncoding, level_embed: Tensor
) -> Pyramid:
    """Lay maps end to end (Deformable-DETR, `DeformableTransformer.forward`).

    Args:
        levels: `[B, C, H_l, W_l]` each, fine to coarse.
        padding_mask: `[B, H, W]` bool of the images, True on padding; None if nothing is padded.
        encoding: of positions within a map.
        level_embed: `[L, C]`, added to the positions of each level.
    """
    device = levels[0].device
    shapes = [(x.shape[-2], x.shape[-1]) for x in levels]
    masks = [None if padding_mask is None else resize_mask(padding_mask, shape) for shape in shapes]
    positions = [
        encoding(shape, mask, device) + embed for shape, mask, embed in zip(shapes, masks, level_embed, strict=True)
    ]
    tokens = torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2).contiguous()
    present = [m for m in masks if m is not None]
    mask = torch.cat([m.flatten(1) for m in present], 1) if present else None
    extents = valid_extents(present) if present else None
    ratios = None if extents is None else extents / upload([(w, h) for h, w in shapes], device, extents.dtype)
    return Pyramid(tokens, torch.cat(positions, 1), shapes, mask, extents, ratios)
