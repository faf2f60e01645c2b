"""Two-stage proposals: every token proposes a box, the best become queries (Deformable-DETR, arXiv 2010.04159,
appendix A.4).

Authors' code: github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/deformable_transformer.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vistrain.devices import upload
from vistrain.layers.deformable import Shapes
from vistrain.layers.position import sine_embedding
from vistrain.layers.precision import at_least_float32


def token_proposals(
    shapes: Shapes, extents: Tensor | None, padding_mask: Tensor | None, device: torch.device, base_size: float = 0.05
) -> tuple[Tensor, Tensor]:
    """The box that each token starts from: its centre, and a side that doubles from level to level.

    Args:
        shapes: (height, width) of each level.
        extents: `[B, L, 2]` from `valid_extents`, or None if nothing is padded.
        padding_mask: `[B, N]` bool, True on padding, or None.
        device: where to make them.
        base_size: side on the finest level, relative to the image.

    Returns:
        logits `[B or 1, N, 4]` of (cx, cy, w, h) in 0..1 of the unpadded image, +inf where unusable, and
        `[B or 1, N]` bool, True where unusable: padding, or any coordinate outside 0.01..0.99.
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        grid = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).flatten(0, 1)[None]
        # One division by the whole extent: row 0 of 50 lies on the bound of 0.01 below, where rounding decides.
        centres.append(
            grid / (upload((width, height), device, grid.dtype) if extents is None else extents[:, None, level])
        )
    centre = torch.cat(centres, 1)
    sides = [centre.new_full((h * w,), base_size * 2.0**level) for level, (h, w) in enumerate(shapes)]
    side = torch.cat(sides)[None, :, None].expand(centre.shape[0], -1, 2)
    boxes = torch.cat((centre, side), -1)
    unusable = ((boxes <= 0.01) | (boxes >= 0.99)).any(-1)
    if padding_mask is not None:
        unusable = unusable | padding_mask
    logits = torch.log(boxes / (1 - boxes)).masked_fill(unusable[..., None], math.inf)
    return logits, unusable


def top_proposals(scores: Tensor, count: int) -> Tensor:
    """Indices `[B, min(count, N)]` of the best of `[B, N]` scores, best first.

    A tiny image has fewer tokens than queries are asked for: then every token becomes one (the official code fails).
    """
    return scores.topk(min(count, scores.shape[1]), 1).indices


def box_position(logits: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Sine encoding `[B, Q, 4 * features]` of boxes given as logits `[B, Q, 4]`, in the order of the coordinates."""
    return sine_embedding(at_least_float32(logits).sigmoid() * (2 * math.pi), features, temperature)
