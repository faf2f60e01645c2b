"""Rotary position encodings: pairs of channels are turned by angles that grow with position.

RoPE, arXiv 2104.09864, section 3.2, with the spacing of RetNet, arXiv 2307.08621 (microsoft/torchscale, MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, channels: int, theta: float = 10000.0) -> Tensor:
    """Angles of pairs of channels, each of which has one twice, as RetNet spaces them (arXiv 2307.08621).

    Args:
        positions: `[N]`.
        channels: even.
        theta: ratio of the longest to the shortest wave length; both ends are there (`linspace`).

    Returns:
        `[N, channels]` float32.
    """
    steps = torch.linspace(0, 1, channels // 2, device=positions.device)
    angles = positions.float()[:, None] * theta**-steps
    return angles.repeat_interleave(2, 1)


def turns(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `rotate` multiplies by: cosines of angles `[N, C]`, and sines, those of the first of each pair negative."""
    cos, sin = angles.cos(), angles.sin().unflatten(-1, (-1, 2))
    return cos.to(dtype), torch.stack((-sin[..., 0], sin[..., 1]), -1).flatten(-2).to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turns neighbouring channels (0 and 1, 2 and 3, ...) by their angle.

    Args:
        x: `[..., N, C]`.
        turn: see `turns`; what is turned alike shares them.
    """
    cos, sin = turn
    other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, other, sin)
