"""Backbones that tell classes by a token beside the cells of the map, and not by their mean.

ViT, arXiv 2010.11929, section 3.1. Authors' code: google-research/vision_transformer, Apache-2.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistrain.backbones.staged import StagedBackbone
from vistrain.layers.position import resized_positions


class ClassTokenBackbone(StagedBackbone):
    """A backbone whose `start` or `advance` gives the class's token; its maps are those of the cells alone."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `[B, in_chans, H, W]` -> the class's token, normalised, as a map of one cell `[B, C, 1, 1]`."""
        cells, token = self.start(x)
        for stage in self.stages:
            cells, token = self.advance(stage, cells, token)
        return self.norm(token)


def class_and_cells(x: Tensor, cls_token: Tensor, pos_embed: Tensor) -> tuple[Tensor, Tensor]:
    """A map and the token that is learnt for the class, with positions.

    Args:
        x: `[B, C, H, W]`.
        cls_token: `[1, 1, C]`.
        pos_embed: `[1, 1 + N, C]`, the class's first, interpolated to the map.

    Returns:
        `[B, C, H, W]` and `[B, C, 1, 1]`.
    """
    cells = x + resized_positions(pos_embed[:, 1:], (x.shape[2], x.shape[3]))
    return cells, (cls_token + pos_embed[:, :1]).mT[..., None].expand(x.shape[0], -1, -1, -1)


def as_tokens(x: Tensor, token: Tensor) -> Tensor:
    """`[B, C, H, W]` and `[B, C, 1, 1]` -> `[B, 1 + H * W, C]`, the class's first."""
    return torch.cat((token.flatten(2), x.flatten(2)), 2).mT


def as_map(tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The inverse of `as_tokens`; `size` is (H, W)."""
    return tokens[:, 1:].mT.unflatten(2, size), tokens[:, 0, :, None, None]
