"""Surfaces of masks and their distances, against brute force and shapes whose numbers are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from vistrain.metrics.surfaces import (
    _areas,
    border_voxels,
    bounding_box,
    element_distances,
    surface_elements,
    voxel_distances,
)


def blob(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A ragged mask that touches the border of its volume."""
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    centre = np.array(shape)[:, None] * draw.uniform(0.2, 0.8, (len(shape), 1))
    radius = ((grid.reshape(len(shape), -1) - centre) ** 2).sum(0).reshape(shape)
    return (radius < (min(shape) / 2.2) ** 2) ^ (draw.random(shape) < 0.02)


@pytest.mark.parametrize(("shape", "spacing"), [((9, 12), (1.0, 1.0)), ((8, 9, 7), (0.9, 2.5, 1.0))])
def test_voxel_distances_are_those_of_the_definition(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    a, b = blob(0, shape), blob(1, shape)
    cross = generate_binary_structure(len(shape), 1)
    borders = [mask & ~binary_erosion(mask, cross, border_value=0) for mask in (a, b)]
    np.testing.assert_array_equal(border_voxels(a), np.argwhere(borders[0]))
    found = voxel_distances(a, b, spacing)
    there = distance_transform_edt(~borders[1], sampling=spacing)[borders[0]]
    back = distance_transform_edt(~borders[0], sampling=spacing)[borders[1]]
    np.testing.assert_allclose(found.there, there, atol=1e-12)
    np.testing.assert_allclose(found.back, back, atol=1e-12)
    assert found.hausdorff(100) == pytest.approx(max(there.max(), back.max()))
    assert found.hausdorff() == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found.hausdorff(pooled=True) == pytest.approx(np.percentile(np.concatenate((there, back)), 95))
    assert found.average() == pytest.approx((there.mean() + back.mean()) / 2)
    assert found.average(pooled=True) == pytest.approx(np.concatenate((there, back)).mean())
    assert found.within(1.0) == pytest.approx(np.concatenate((there <= 1, back <= 1)).mean())


def test_pieces_of_surface_have_the_areas_of_shapes() -> None:
    """Flat sides exactly, edges and corners cut off; a ball within what voxels allow."""
    box = np.zeros((10, 12, 11), bool)
    box[2:8, 3:9, 1:10] = True  # 6 x 6 x 9 voxels
    places, areas = surface_elements(box, (1.0, 1.0, 1.0))
    flat = 2 * (5 * 5 + 2 * 5 * 8)  # cells that a side cuts in halves
    edges = 4 * (5 + 5 + 8) * math.sqrt(0.5)
    corners = 8 * math.sqrt(3) / 8
    assert areas.sum() == pytest.approx(flat + edges + corners)
    assert places.min(0).tolist() == [1.5, 2.5, 0.5]
    _, scaled = surface_elements(box, (2.0, 2.0, 2.0))
    assert scaled.sum() == pytest.approx(4 * areas.sum())
    _, lengths = surface_elements(box[:, :, 5], (1.0, 3.0))
    assert lengths.sum() == pytest.approx(2 * 5 + 2 * 5 * 3 + 4 * 0.5 * math.sqrt(10))
    grid = np.indices((31, 31, 31)) - 15
    _, ball = surface_elements((grid**2).sum(0) <= 14**2, (1.0, 1.0, 1.0))
    assert ball.sum() == pytest.approx(4 * math.pi * 14.2**2, rel=0.1)


def test_areas_do_not_change_when_a_cell_is_turned_mirrored_or_turned_inside_out() -> None:
    areas, corners = _areas((1.0, 1.0, 1.0)), list(itertools.product((0, 1), repeat=3))
    assert areas[0] == areas[255] == 0
    np.testing.assert_allclose(areas, areas[::-1], atol=1e-12)
    for order in itertools.permutations(range(3)):
        for flip in corners:
            moved = [corners.index(tuple(c[a] ^ f for a, f in zip(order, flip, strict=True))) for c in corners]
            code = [sum(1 << moved[bit] for bit in range(8) if value >> bit & 1) for value in range(256)]
            np.testing.assert_allclose(areas[code], areas, atol=1e-9)


def test_weighted_percentiles_are_reached_by_area() -> None:
    """Two parallel sheets 4 mm apart, one with a small far patch: its share of the area decides, not its voxels."""
    a, b = np.zeros((20, 30, 30), bool), np.zeros((20, 30, 30), bool)
    a[2:4, 2:28, 2:28] = True
    b[6:8, 2:28, 2:28] = True
    found = element_distances(a, b, (1.0, 1.0, 1.0))
    assert found.hausdorff(100) == pytest.approx(4)
    b[15:17, 2:4, 2:4] = True
    patched = element_distances(a, b, (1.0, 1.0, 1.0))
    assert patched.hausdorff(100) == pytest.approx(13)
    assert patched.hausdorff(95) == pytest.approx(4)
    assert patched.within(4.5) == pytest.approx(
        1 - patched.back_weight[patched.back > 4.5].sum() / (patched.there_weight.sum() + patched.back_weight.sum())
    )


def test_empty_masks_have_no_distances() -> None:
    mask = blob(0, (6, 6, 6))
    for distances in (voxel_distances, element_distances):
        for a, b in ((mask, mask & False), (mask & False, mask), (mask & False, mask & False)):
            found = distances(a, b, (1, 1, 1))
            assert not found.defined
            assert math.isnan(found.hausdorff())
            assert math.isnan(found.average())
            assert math.isnan(found.within(1))
    assert bounding_box(mask & False) is None
    same = voxel_distances(mask, mask, (1, 1, 1))
    assert same.hausdorff() == same.average() == 0
    assert same.within(0) == 1
