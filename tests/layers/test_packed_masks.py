"""Packed masks are the masks: pixel by pixel, at points, wherever they are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from vistrain.layers.packed_masks import PackedMasks
from vistrain.layers.points import sample_masks

SIZE = (13, 21)


def some(count: int = 5) -> tuple[torch.Tensor, PackedMasks]:
    """Random masks within random boxes, one of them empty, and the same packed."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, *SIZE), bool)
    parts = []
    for i, mask in enumerate(masks):
        top, left = int(rng.integers(0, 6)), int(rng.integers(0, 9))
        part = rng.random((int(rng.integers(1, 8)), int(rng.integers(1, 13)))) < 0.5
        part = np.zeros((0, 0), bool) if i == 2 else part
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        parts.append((top, left, part))
    return torch.from_numpy(masks), PackedMasks.of(parts, SIZE)


def test_unpacked_they_are_what_was_packed() -> None:
    masks, packed = some()
    assert packed.shape == masks.shape
    assert torch.equal(packed.unpacked(), masks)
    assert torch.equal(packed[3], masks[3])
    assert len(packed.bits) < masks.numel() / 8
    again = pickle.loads(pickle.dumps(packed)).to("cpu")
    assert torch.equal(again.unpacked(), masks)
    empty = PackedMasks.of([], SIZE)
    assert empty.unpacked().shape == (0, *SIZE)
    assert not PackedMasks.of([(0, 0, np.zeros((0, 0), bool))], SIZE).unpacked().any()
    with pytest.raises(ValueError, match="5x5 at"):
        PackedMasks.of([(10, 0, np.ones((5, 5), bool))], SIZE)


def test_points_see_the_same() -> None:
    masks, packed = some()
    points = torch.rand((5, 300, 2), generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2  # beyond it, too
    extent = (16, 24)
    assert torch.equal(sample_masks(packed, points, extent), sample_masks(masks, points, extent))
    assert torch.equal(sample_masks(packed, points[:1], extent), sample_masks(masks, points[:1], extent))
    index = torch.tensor([4, 0, 0, 2, 1])
    assert torch.equal(sample_masks(packed, points, extent, index), sample_masks(masks, points, extent, index))
    nothing = PackedMasks.of([(0, 0, np.zeros((0, 0), bool))], SIZE)
    assert not sample_masks(nothing, points[:1], extent).any()
