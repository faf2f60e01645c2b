"""Stacking of images of any sides, channels and type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vistrain.data.base.collate import batch_of, batch_or_error, stack_padded
from vistrain.errors import DataError

SIZES = {2: [(5, 7), (6, 3), (6, 7)], 3: [(2, 5, 7), (4, 6, 3), (3, 1, 1)]}


@pytest.mark.parametrize("sides", [2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("divisor", [1, 4])
def test_images_lie_at_the_beginning_of_their_place_and_zeros_around(
    sides: int, channels: int, dtype: type, divisor: int
) -> None:
    draw = np.random.default_rng(0)
    images = [(draw.random((*size, channels)) * 200 + 1).astype(dtype) for size in SIZES[sides]]
    stacked, found = stack_padded(images, divisor)
    largest = np.max(SIZES[sides], 0)
    assert stacked.shape == (3, channels, *(-(-largest // divisor) * divisor))
    assert found.tolist() == [list(size) for size in SIZES[sides]]
    assert found.dtype == torch.int64
    for image, planes in zip(images, stacked.numpy(), strict=True):
        assert planes.dtype == dtype
        inside = (slice(None), *map(slice, image.shape[:-1]))
        np.testing.assert_array_equal(planes[inside], np.moveaxis(image, -1, 0))
        assert np.count_nonzero(planes) == image.size


def test_views_and_read_only_images_are_taken() -> None:
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    image.flags.writeable = False
    turned = np.rot90(image[:, ::-1])
    stacked, _ = stack_padded([image, turned])
    np.testing.assert_array_equal(stacked[1, :, :4, :5].numpy(), turned.transpose(2, 0, 1))
    np.testing.assert_array_equal(stacked[0, :, :5, :4].numpy(), image.transpose(2, 0, 1))


def test_images_of_different_kinds_are_refused() -> None:
    plain = np.zeros((2, 2, 3), np.uint8)
    for other in (np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match="cannot be stacked"):
            stack_padded([plain, other])


def test_a_batch_has_the_keys_that_networks_take() -> None:
    batch = batch_of([np.ones((2, 3, 4, 1), np.int16)], [(9, 9, 9)], ["scan"], [{"labels": 1}], 2)
    assert batch["image"].shape == (1, 1, 2, 4, 4)
    assert batch["size"].tolist() == [[2, 3, 4]]
    assert batch["host_size"] == [(2, 3, 4)]
    assert batch["original_size"].tolist() == [[9, 9, 9]]
    assert (batch["id"], batch["target"]) == (["scan"], [{"labels": 1}])


def test_of_errors_the_first_takes_the_batchs_place() -> None:
    first, second = DataError("a", "is damaged"), DataError("b", "is damaged")
    assert batch_or_error([1, first, second], lambda samples: {}) is first
    assert batch_or_error([1, 2], lambda samples: {"samples": samples}) == {"samples": [1, 2]}
