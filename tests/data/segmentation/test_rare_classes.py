"""Rare classes are seen as often as the formula says, from the draw of images to the crop."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistrain.data import MaskAugment, MaskFolders, MaskSplit, RareClasses
from vistrain.data.base.samplers import ResumableSampler
from vistrain.errors import ConfigError, DataError

SPLIT = MaskSplit("images", "masks")


def folder(root: Path) -> None:
    """Ten images of 0 and 1, of which the first two have a corner of 2."""
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for number in range(10):
        mask = np.zeros((40, 60), np.uint8)
        mask[:, 30:] = 1
        if number < 2:
            mask[:5, :5] = 2
        Image.fromarray(mask).save(root / f"masks/{number}.png")
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / f"images/{number}.png")


def data(root: Path, **rare: float) -> MaskFolders:
    augment = MaskAugment(crop=(16, 16), scale=None, ratio=(1, 1), category_ratio=1.0, flip=0.0, color=False)
    choice = RareClasses(**{"least_pixels": 20, "temperature": 0.5, **rare})
    more = {"rare_classes": choice, "augment": augment, "batch_size": 2, "workers": 0}
    return MaskFolders(SPLIT, SPLIT, ("a", "b", "c"), root=str(root), **more)


def test_images_are_drawn_by_the_formula(tmp_path):
    folder(tmp_path)
    module = data(tmp_path)
    pixels = np.array([10 * 1200 - 2 * 25, 10 * 1200, 2 * 25])
    share = np.exp((1 - pixels / pixels.sum()) / 0.5)
    share /= share.sum()
    expected = np.full(10, (share[0] + share[1]) / 10)
    expected[:2] += share[2] / 2
    drawn = Counter[int]()
    for epoch in range(300):
        sampler = module.training_sampler(10)
        sampler.set_epoch(epoch)
        drawn.update(index for index, _ in sampler)
    assert [drawn[i] / 3000 for i in range(10)] == pytest.approx(expected, abs=0.03)
    assert len({seed for _, seed in module.training_sampler(10)}) == 10  # each time in another way


def test_a_resumed_epoch_goes_on_with_the_same_images():
    weights = [1.0, 5.0, 2.0, 0.0, 1.0]
    whole = list(ResumableSampler(5, 2, seed=3, weights=weights))
    assert whole == list(ResumableSampler(5, 2, seed=3, weights=weights))
    assert list(ResumableSampler(5, 2, seed=3, resume=(0, 2), weights=weights)) == whole[2:]
    ranks = [list(ResumableSampler(5, 2, seed=3, rank=r, world=2, weights=weights)) for r in (0, 1)]
    assert [x for pair in zip(*ranks, strict=True) for x in pair] == whole
    assert 3 not in {index for index, _ in whole}


def test_crops_have_the_class_that_the_image_was_drawn_for(tmp_path):
    folder(tmp_path)
    rare = data(tmp_path, temperature=0.001).dataset("train")  # class c alone
    plain = data(tmp_path).dataset("train")
    plain.rare = None
    found = {
        name: sum((s[0, seed].label_map == 2).any() for seed in range(200))
        for name, s in (("rare", rare), ("plain", plain))
    }
    assert found["plain"] < 60
    assert found["rare"] > 1.5 * found["plain"]


def test_what_cannot_be_is_named(tmp_path):
    folder(tmp_path)
    with pytest.raises(DataError, match=r"lower data\.rare_classes\.least_pixels"):
        data(tmp_path, least_pixels=100000).training_sampler(10)
    with pytest.raises(ConfigError, match=r"data\.rare_classes\.temperature"):
        RareClasses(temperature=0)
