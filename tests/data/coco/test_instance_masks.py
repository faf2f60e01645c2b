"""Masks that stay run lengths: geometry is that of the pixels, and memory is bounded."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import torch

from vistrain.data.coco.instance_masks import InstanceMasks


def some(size: tuple[int, int] = (40, 60)) -> tuple[np.ndarray, InstanceMasks]:
    rng = np.random.default_rng(1)
    masks = np.stack([cv2.GaussianBlur(rng.random(size), (0, 0), 3) > 0.5 for _ in range(4)])
    masks[1] = False
    masks[2, :, 30:] = False
    return masks, InstanceMasks.encoded(masks, size)


def unpacked(masks: InstanceMasks) -> np.ndarray:
    return masks.packed().unpacked().numpy()


def test_geometry_is_that_of_the_pixels() -> None:
    masks, runs = some()
    np.testing.assert_array_equal(unpacked(runs), masks)
    np.testing.assert_array_equal(unpacked(runs.mirrored()), masks[:, :, ::-1])
    np.testing.assert_array_equal(unpacked(runs.window(5, 7, 20, 30)), masks[:, 5:25, 7:37])
    keep = np.array([True, False, False, True])
    np.testing.assert_array_equal(unpacked(runs.kept(keep)), masks[keep])
    for height, width in ((80, 120), (16, 16), (120, 200)):  # OpenCV decides ties otherwise
        nearest = [cv2.resize(m.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT) for m in masks]
        np.testing.assert_array_equal(unpacked(runs.resized(height, width)), np.stack(nearest).view(bool))
    chain = runs.mirrored().resized(90, 90).window(20, 40, 60, 80).resized(30, 40).mirrored()
    assert chain.size == (30, 40)
    whole = unpacked(InstanceMasks.encoded(unpacked(runs.mirrored().resized(90, 90)), (90, 90)).window(20, 40, 60, 80))
    np.testing.assert_array_equal(whole[:, :, 50:], False)  # the window reaches beyond the image
    expected = unpacked(InstanceMasks.encoded(whole, (60, 80)).resized(30, 40).mirrored())
    np.testing.assert_array_equal(unpacked(chain), expected)


def test_two_hundred_masks_of_a_large_image_fit() -> None:
    """Whole, they would be 839 MB; no more than a few of them are unpacked at a time."""
    side, count = 2048, 200
    y, x = np.ogrid[:side, :side]
    one = (x - 900) ** 2 + (y - 1100) ** 2 < 800**2
    runs = InstanceMasks.of(InstanceMasks.encoded([one], one.shape).runs * count, one.shape)
    tracemalloc.start()
    packed = runs.mirrored().resized(side, side).packed()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert packed.shape == (count, side, side)
    assert len(packed.bits) <= count * side * side / 8
    assert peak < 200e6
    assert torch.equal(packed[199], torch.from_numpy(one[:, ::-1].copy()))
