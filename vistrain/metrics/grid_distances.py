"""Distances from places of a grid to the nearest of others, exactly, and fast where they are small."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

REACH = 10.0  # sides of a voxel within which the grid itself is searched
MOST_ROOM = 200  # voxels along an axis
MOST_VOXELS = 2**27  # of the grid, a byte each


def nearest_distances(places: np.ndarray, others: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Euclidean distances float64 `[N]`, in units of the spacing.

    Surfaces of a truth and of what was found lie close together, so a search that goes outwards from each place ends
    soon: first along the place's own column of the last axis, for which each voxel says how far the nearest other one
    is, then in the columns around it, ring by ring, until no further one can be nearer. Places that have none within
    `REACH` ask a k-d tree.

    Args:
        places: int64 `[N, axes]`.
        others: int64 `[M, axes]`, at least one.
        spacing: of the grid along each axis.
    """
    if not len(places):
        return np.zeros(0)
    lengths = np.asarray(spacing, np.float64)
    reach = min(REACH * float(np.prod(lengths) ** (1 / len(lengths))), MOST_ROOM * float(lengths.min()))
    room = (reach / lengths).astype(np.int64)
    low = np.minimum(places.min(0), others.min(0)) - room
    sides = np.maximum(places.max(0), others.max(0)) + room + 1 - low
    best = np.full(len(places), np.inf)
    if np.prod(sides, dtype=np.float64) <= MOST_VOXELS:
        strides = np.append(np.cumprod(sides[:0:-1])[::-1], 1)
        steps = _columns(others @ strides - low @ strides, int(np.prod(sides)), int(room[-1]))
        best = _search(places @ strides - low @ strides, steps, lengths, room, strides, reach)
    far = np.flatnonzero(best > reach**2)
    if len(far):
        # Larger leaves and no medians: a fifth less time on surfaces, and the same distances
        tree = cKDTree(others * lengths, leafsize=32, balanced_tree=False)
        best[far] = tree.query(places[far] * lengths)[0] ** 2
    return np.asarray(np.sqrt(best))


def _columns(others: np.ndarray, voxels: int, room: int) -> np.ndarray:
    """uint8 `[voxels]`: steps along the last axis to the nearest of the others, 255 where there is none so near."""
    found = np.full(voxels, 255, np.uint8)
    for step in range(room, -1, -1):
        found[others - step] = step
        found[others + step] = step
    return found


def _search(
    places: np.ndarray, steps: np.ndarray, lengths: np.ndarray, room: np.ndarray, strides: np.ndarray, reach: float
) -> np.ndarray:
    """Squared distances `[N]`, right where they are at most `reach` squared."""
    squares = np.full(256, np.inf)
    squares[: room[-1] + 1] = (np.arange(room[-1] + 1) * lengths[-1]) ** 2
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in room[:-1]))), np.int64)
    apart = ((shifts * lengths[:-1]) ** 2).sum(1)
    order = np.argsort(apart, kind="stable")
    shifts, apart = shifts[order] @ strides[:-1], apart[order]
    rings, starts = np.unique(apart, return_index=True)
    best = np.full(len(places), np.inf)
    active, own = np.arange(len(places)), best.copy()
    for ring, first, after in zip(rings, starts, (*starts[1:], len(apart)), strict=True):
        if ring > reach**2:
            break
        open_still = own > ring
        if not open_still.all():
            best[active[~open_still]] = own[~open_still]
            active, own, places = active[open_still], own[open_still], places[open_still]
            if not len(active):
                break
        for shift in shifts[first:after]:
            np.minimum(own, squares[steps[places + shift]] + ring, out=own)
    best[active] = own
    return best
