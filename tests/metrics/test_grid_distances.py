"""Distances between places of a grid, against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from vistrain.metrics import grid_distances
from vistrain.metrics.grid_distances import nearest_distances


def scattered(seed: int, count: int, sides: tuple[int, ...]) -> np.ndarray:
    """Places int64 `[count, axes]`, some of them twice and some below 0."""
    draw = np.random.default_rng(seed)
    return np.stack([draw.integers(-3, side, count) for side in sides], 1)


@pytest.mark.parametrize(
    ("sides", "spacing"),
    [
        ((40, 50), (1.0, 1.0)),
        ((12, 14, 13), (0.9, 2.5, 1.0)),
        ((60, 6, 90), (5.0, 0.3, 0.7)),  # many lie beyond what the grid is searched for
        ((5, 200, 5), (0.01, 1.0, 10.0)),  # room for a thousand steps along the first axis
    ],
)
def test_distances_are_those_of_all_pairs(sides: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    places, others = scattered(0, 300, sides), scattered(1, 40, sides)
    wanted = cdist(places * np.array(spacing), others * np.array(spacing)).min(1)
    found = nearest_distances(places, others, spacing)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_far_places_and_large_grids_are_searched_without_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.array([[0, 0, 0], [3, 0, 1], [900, 40, 7]])
    others = np.array([[0, 0, 0], [890, 40, 7], [0, 0, 500]])
    wanted = [0.0, 10**0.5, 10.0]
    np.testing.assert_allclose(nearest_distances(places, others, (1, 1, 1)), wanted, atol=1e-12)
    monkeypatch.setattr(grid_distances, "MOST_VOXELS", 1000)
    np.testing.assert_allclose(nearest_distances(places, others, (1, 1, 1)), wanted, atol=1e-12)
    assert len(nearest_distances(places[:0], others, (1, 1, 1))) == 0
