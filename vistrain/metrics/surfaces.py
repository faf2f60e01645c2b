"""Distances between the surfaces of two masks, in two and three axes: Hausdorff, average, share within a tolerance.

What a surface is differs between programs, and numbers with it. Here are both forms in use:

- `voxel_distances`: the voxels of a mask that touch its outside through a face, each counted once; MedPy, MONAI and the
  BraTS challenge.
- `element_distances`: pieces of surface between the voxels, each weighted by its area; DeepMind's surface-distance
  (Nikolov et al. 2018, arXiv 1809.04430; its code: google-deepmind/surface-distance, Apache-2.0).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vistrain.metrics.grid_distances import nearest_distances

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SurfaceDistances:
    """From each part of one surface to the nearest of the other, and back.

    Attributes:
        there, back: float64 `[N]`, `[M]`, in units of the spacing; both empty if one of the masks is.
        there_weight, back_weight: of each part, `[N]`, `[M]`: 1, or an area.
        weighted: whether percentiles are of areas instead of numbers.
    """

    there: np.ndarray
    back: np.ndarray
    there_weight: np.ndarray
    back_weight: np.ndarray
    weighted: bool = False

    @property
    def defined(self) -> bool:
        """Whether both masks have a surface."""
        return bool(len(self.there) and len(self.back))

    def hausdorff(self, percentile: float = 95.0, pooled: bool = False) -> float:
        """The Hausdorff distance, or a percentile in place of the greatest distance; NaN without both surfaces.

        Args:
            percentile: 100 is the Hausdorff distance itself.
            pooled: of all distances together (MedPy's `hd95`), instead of the greater one of both directions (MONAI's,
                the BraTS challenge's). Of weighted parts it is the first distance at which the share is reached.
        """
        if not self.defined:
            return float("nan")
        parts = [(self.there, self.there_weight), (self.back, self.back_weight)]
        if pooled:
            parts = [(np.concatenate((self.there, self.back)), np.concatenate((self.there_weight, self.back_weight)))]
        return max(self._percentile(distances, weights, percentile) for distances, weights in parts)

    def _percentile(self, distances: np.ndarray, weights: np.ndarray, percentile: float) -> float:
        if not self.weighted:
            return float(np.percentile(distances, percentile))
        order = np.argsort(distances)
        share = np.cumsum(weights[order]) / weights.sum()
        return float(distances[order][min(int(np.searchsorted(share, percentile / 100)), len(order) - 1)])

    def average(self, pooled: bool = False) -> float:
        """The average symmetric surface distance; NaN without both surfaces.

        Args:
            pooled: the mean of all distances together (MONAI's symmetric one), instead of the mean of both directions'
                means (MedPy's `assd`).
        """
        if not self.defined:
            return float("nan")
        sums = [float((d * w).sum()) for d, w in ((self.there, self.there_weight), (self.back, self.back_weight))]
        weights = [float(self.there_weight.sum()), float(self.back_weight.sum())]
        if pooled:
            return sum(sums) / sum(weights)
        return sum(s / w for s, w in zip(sums, weights, strict=True)) / 2

    def within(self, tolerance: float) -> float:
        """Surface Dice: the share of both surfaces that lies within a distance of the other; NaN without both."""
        if not self.defined:
            return float("nan")
        near = self.there_weight[self.there <= tolerance].sum() + self.back_weight[self.back <= tolerance].sum()
        return float(near / (self.there_weight.sum() + self.back_weight.sum()))


def voxel_distances(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Between the voxels of two masks that touch their outside through a face; beyond the volume is outside.

    Args:
        a, b: bool `[*S]`, of two or three axes.
        spacing: of the voxels along each axis, mm.
    """
    there, back = _both_ways(border_voxels(a), border_voxels(b), spacing)
    return SurfaceDistances(there, back, np.ones(len(there)), np.ones(len(back)))


def element_distances(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Between the pieces of two surfaces: one in each cell of 2 x 2 x 2 (2 x 2) voxels that are not all on one side, at
    its centre, with the area (length) that marching cubes (squares) give it.

    Args:
        a, b: see `voxel_distances`.
    """
    (cells, areas), (others, other_areas) = _cut_cells(a, spacing), _cut_cells(b, spacing)
    there, back = _both_ways(cells, others, spacing)
    if not len(there):
        areas = other_areas = np.zeros(0)
    return SurfaceDistances(there, back, areas, other_areas, weighted=True)


def border_voxels(mask: np.ndarray) -> np.ndarray:
    """Indices int64 `[N, axes]` of the voxels of a mask that touch its outside through a face."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, mask.ndim), np.int64)
    inside = np.pad(mask[box], 1)
    middle = tuple(slice(1, -1) for _ in inside.shape)
    edge = np.zeros(mask[box].shape, bool)
    for axis in range(mask.ndim):
        for beside in (slice(0, -2), slice(2, None)):
            edge |= ~inside[(*middle[:axis], beside, *middle[axis + 1 :])]
    edge &= inside[middle]
    return _indices(edge) + np.array([part.start for part in box])


def surface_elements(mask: np.ndarray, spacing: Sequence[float]) -> Pair:
    """Centres float64 `[N, axes]`, in units of the spacing, and areas (lengths) `[N]` of cells that a surface cuts."""
    cells, areas = _cut_cells(mask, spacing)
    return (cells - 0.5) * np.asarray(spacing), areas


def _cut_cells(mask: np.ndarray, spacing: Sequence[float]) -> Pair:
    """Indices int64 `[N, axes]` of the last voxel of each cell that a surface cuts, and areas (lengths) `[N]`."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, mask.ndim), np.int64), np.zeros(0)
    inside = np.pad(mask[box], 1).astype(np.uint8)
    codes = np.zeros([side - 1 for side in inside.shape], np.uint8)
    for bit, corner in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        part = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
        codes |= inside[part] << np.uint8(bit)
    cut = (codes > 0) & (codes < (1 << (1 << mask.ndim)) - 1)
    start = np.array([part.start for part in box])
    return _indices(cut) + start, _areas(tuple(map(float, spacing)))[codes[cut]]


def _indices(mask: np.ndarray) -> np.ndarray:
    """`numpy.argwhere`, ten times as fast."""
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), 1)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask; None of an empty one."""
    parts: list[slice] = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(found):
            return None
        parts.append(slice(int(found[0]), int(found[-1]) + 1))
        mask = mask[(*[slice(None)] * axis, parts[-1])]  # the other axes need look no further
    return tuple(parts)


def _both_ways(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> Pair:
    if not len(a) or not len(b):
        return np.zeros(0), np.zeros(0)
    return nearest_distances(a, b, spacing), nearest_distances(b, a, spacing)


@functools.cache
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """The area (length) of the surface in a cell by which of its corners are inside, one bit each, float64
    `[2^(2^axes)]`."""
    corners = list(itertools.product((0, 1), repeat=len(spacing)))
    found = np.zeros(1 << len(corners))
    for code in range(1, len(found) - 1):
        inside = [c for bit, c in enumerate(corners) if code >> bit & 1]
        fewer = inside if 2 * len(inside) <= len(corners) else [c for c in corners if c not in inside]
        found[code] = _length(fewer, spacing) if len(spacing) == 2 else _area(fewer, spacing)
    return found


def _length(fewer: Sequence[tuple[int, ...]], spacing: Sequence[float]) -> float:
    """Of the line that cuts one or two corners off a square, through the middles of its edges."""
    if len(fewer) == 2:
        shared = [axis for axis in (0, 1) if fewer[0][axis] == fewer[1][axis]]
        if shared:
            return float(spacing[1 - shared[0]])
    return len(fewer) * 0.5 * math.hypot(*spacing)


def _area(fewer: Sequence[tuple[int, ...]], spacing: Sequence[float]) -> float:
    """Of the polygons that cut up to four corners off a cube, through the middles of its edges.

    On a face of which only two opposite corners are cut off, each is cut off by itself. A polygon that is not flat is
    made of triangles from that of its corners from which their area in a cube is greatest.
    """
    faces = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    total = 0.0
    for polygon in _polygons(set(fewer)):
        fans = []
        for shift in range(len(polygon)):
            first, *others = np.roll(polygon, shift, 0)
            sides = np.array(others) - first
            normals = np.cross(sides[:-1], sides[1:]) / 2
            fans.append((np.linalg.norm(normals, axis=1).sum().round(9), np.linalg.norm(normals * faces, axis=1).sum()))
        total += float(max(fans, key=lambda fan: fan[0])[1])
    return total


def _polygons(fewer: set[tuple[int, ...]]) -> list[np.ndarray]:
    """Middles of edges `[N, 3]`, in order around each polygon."""
    lines: dict[tuple[float, ...], list[tuple[float, ...]]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        around = [(u, v) for u, v in ((0, 0), (0, 1), (1, 1), (1, 0))]
        face = [tuple(np.insert(c, axis, side).tolist()) for c in around]
        middles = [tuple((np.add(face[i], face[(i + 1) % 4]) / 2).tolist()) for i in range(4)]  # after corner i
        cut = [(face[i] in fewer) != (face[(i + 1) % 4] in fewer) for i in range(4)]
        ends = [middles[i] for i in range(4) if cut[i]]
        if len(ends) == 4 and face[0] in fewer:
            ends = ends[-1:] + ends[:-1]  # corner 0 lies between the last middle and the first
        for one, other in zip(ends[::2], ends[1::2], strict=True):
            lines.setdefault(one, []).append(other)
            lines.setdefault(other, []).append(one)
    found = []
    while lines:
        polygon = [next(iter(lines))]
        while following := [place for place in lines.pop(polygon[-1]) if place in lines]:
            polygon.append(following[0])
        found.append(np.array(polygon))
    return found
