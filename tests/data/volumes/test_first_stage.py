"""What the first stage of a cascade has found: one channel for each class, disturbed, and named where it is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vistrain.data.volumes.first_stage import disturbed, label_maps
from vistrain.data.volumes.nifti import Geometry, write_volume
from vistrain.data.volumes.preparation import VolumePreparation, one_hot
from vistrain.data.volumes.transforms import VolumeAugment
from vistrain.errors import DataError

GEOMETRY = Geometry((4, 4, 4), np.eye(4))


def maps() -> torch.Tensor:
    found = torch.zeros(2, 12, 12, 12)
    found[0, 3:9, 3:9, 3:9] = 1
    found[1, 9:11, 9:11, 9:11] = 1
    return found


def test_classes_become_channels_behind_the_images() -> None:
    classes = np.zeros((2, 4, 4), np.uint8)
    classes[:, :2] = 2
    np.testing.assert_array_equal(one_hot(classes, (2, 4, 4), 3).argmax(0) + 1, np.where(classes, classes, 1))
    preparation = VolumePreparation(("a",), spacing=(1.0, 2.0, 2.0), within="all", previous=2)
    images = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
    found, box = preparation.prepared(images, (1.0, 1.0, 1.0), None, classes)
    assert found.shape == (3, 2, 2, 2)
    assert box == ((0, 2), (0, 4), (0, 4))
    assert found[1].max() == 0
    np.testing.assert_array_equal(found[2, :, 0], 1)
    with pytest.raises(DataError, match="no label map of this case"):
        preparation.prepared(images, (1.0, 1.0, 1.0))


def test_disturbances_are_masks_that_exclude_one_another_and_follow_their_draw() -> None:
    assert torch.equal(disturbed(maps(), np.random.default_rng(0), 0.0, 0.0), maps())
    seen = set()
    for seed in range(12):
        found = disturbed(maps(), np.random.default_rng(seed), 1.0, 0.0)
        assert torch.equal(found, disturbed(maps(), np.random.default_rng(seed), 1.0, 0.0))
        assert set(found.unique().tolist()) <= {0.0, 1.0}
        seen.add(float(found[0].sum()))
    assert min(seen) < 216 < max(seen)


def test_small_components_are_lost_and_large_ones_are_not() -> None:
    small = disturbed(maps(), np.random.default_rng(0), 0.0, 1.0)
    assert small.sum() == 0  # 216 and 8 of 1728 voxels are less than 15 %
    large = torch.zeros(1, 4, 4, 4)
    large[0, :2] = 1
    assert torch.equal(disturbed(large, np.random.default_rng(0), 0.0, 1.0), large)


def test_intensities_of_a_first_stage_do_not_change() -> None:
    loud = VolumeAugment(noise=1, blur=1, brightness=1, contrast=1, low_resolution=1, gamma=1, inverted_gamma=1,
                         reshape=0, drop=0, mirror=(0,))  # fmt: skip
    image = torch.cat((torch.randn(1, 12, 12, 12, generator=torch.Generator().manual_seed(0)), maps()))
    for seed in range(4):
        found, label = loud.values(image.clone(), maps()[0].byte(), np.random.default_rng(seed), previous=2)
        assert not torch.equal(found[0], image[0])
        assert torch.equal(found[1], label.float())
        assert found[2].sum() == 8


def test_label_maps_are_found_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label maps"):
        label_maps(tmp_path)
    write_volume(tmp_path / "fold_0/labels/a.nii.gz", np.zeros((4, 4, 4), np.uint8), GEOMETRY)
    assert list(label_maps(tmp_path)) == ["a"]
    write_volume(tmp_path / "fold_1/labels/a.nii", np.zeros((4, 4, 4), np.uint8), GEOMETRY)
    with pytest.raises(DataError, match="is there twice"):
        label_maps(tmp_path)
