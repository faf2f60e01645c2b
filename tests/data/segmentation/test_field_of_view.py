"""Pictures with fields of view, in DRIVE's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.data import DRIVE, AffineAugment
from vistrain.errors import ConfigError, DataError

HEIGHT, WIDTH = 30, 40
BOX = (slice(4, 27), slice(6, 35))  # of the field of view


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """40 small pictures as DRIVE has them: vessels are a cross, and one pixel of them lies outside the view."""
    draw = np.random.default_rng(0)
    view = np.zeros((HEIGHT, WIDTH), np.uint8)
    view[BOX] = 255
    view[4, 6] = 0  # a corner of the box is outside
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[15], drawn[:, 20], drawn[4, 6] = 255, 255, 255
    for split, numbers in (("training", range(21, 41)), ("test", range(1, 21))):
        for folder in ("images", "mask", "1st_manual", *(["2nd_manual"] if split == "test" else [])):
            (tmp_path / split / folder).mkdir(parents=True)
        for n in numbers:
            picture = draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(picture).save(tmp_path / split / "images" / f"{n:02}_{split}.tif")
            Image.fromarray(view).save(tmp_path / split / "mask" / f"{n:02}_{split}_mask.gif")
            Image.fromarray(drawn).save(tmp_path / split / "1st_manual" / f"{n:02}_manual1.gif")
            if split == "test":
                Image.fromarray(255 - drawn).save(tmp_path / split / "2nd_manual" / f"{n:02}_manual2.gif")
    return tmp_path


def test_splits_are_those_of_w_net(root: Path) -> None:
    data = DRIVE(root=str(root))
    names = {split: [pair.name for pair in data.pairs(split)] for split in ("train", "val", "test")}
    assert names["train"] == [str(n) for n in range(21, 37)]
    assert names["val"] == ["37", "38", "39", "40"]
    assert names["test"] == [f"{n:02}" for n in range(1, 21)]
    assert [pair.name for pair in DRIVE(root=str(root), test_on="val").pairs("test")] == names["val"]


def test_evaluation_sees_the_box_of_the_view(root: Path) -> None:
    data = DRIVE(root=str(root), size=(64, 48))
    found = data.dataset("test").sample(0)
    stored = np.asarray(Image.open(root / "test/images/01_test.tif"))
    expected = Image.fromarray(stored[BOX]).resize((48, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found.image, np.asarray(expected))
    assert found.label_map.shape == found.original_size == (23, 29)
    assert found.label_map[0, 0] == 255  # outside, although a vessel is drawn there
    assert (found.label_map == 1).sum() == 23 + 29 - 1
    batch = data.collate([found])
    assert batch["original_size"].tolist() == [[23, 29]]
    assert data.count_targets({"label_map": torch.from_numpy(found.label_map)}) == 23 * 29 - 1


def test_what_is_outside_may_be_background_and_the_truth_stretched(root: Path) -> None:
    data = DRIVE(root=str(root), size=(64, 48), outside="background", stretch_truth=True)
    found = data.dataset("val").sample(0)
    assert found.label_map.shape == found.original_size == (64, 48)
    assert set(np.unique(found.label_map)) == {0, 1}
    assert found.label_map[0, 0] == 0


def test_training_pictures_are_augmented_and_all_labelled(root: Path) -> None:
    data = DRIVE(root=str(root), size=(64, 48))
    samples = data.dataset("train")
    one, same, other = samples.sample(0, seed=1), samples.sample(0, seed=1), samples.sample(0, seed=2)
    np.testing.assert_array_equal(one.image, same.image)
    assert (one.image != other.image).any()
    assert one.image.shape == (64, 48, 3)
    assert set(np.unique(one.label_map)) <= {0, 1}


def test_the_second_observer_is_a_choice(root: Path) -> None:
    first, second = (DRIVE(root=str(root), observer=n).dataset("test").sample(0).label_map for n in (1, 2))
    inside = first != 255
    np.testing.assert_array_equal(second[inside], 1 - first[inside])


def test_augmentation_moves_picture_and_classes_alike() -> None:
    label_map = np.zeros((60, 80), np.uint8)
    label_map[20:40, 30:60] = 1
    image = np.repeat(label_map[..., None] * np.uint8(200), 3, 2)
    augment = AffineAugment(jitter=0.0, hue=0.0)
    for seed in range(6):
        moved, classes = augment(image, label_map, 255, seed)
        assert ((moved[..., 0] > 100) == (classes == 1)).mean() > 0.99
        assert 300 < (classes == 1).sum() < 1000


def test_check_opens_fields_of_view(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp("report")
    data = DRIVE(root=str(root))
    assert data.check(output).ok
    _, drawn = data.drawn("train", data.pairs("train")[0])
    assert (drawn[BOX][1:] != 255).all()
    drawn[BOX] = 255
    assert (drawn == 255).all()  # outside nothing is painted
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(root / "test/mask/03_test_mask.gif")
    (root / "test/mask/04_test_mask.gif").write_bytes(b"GI")
    report = DRIVE(root=str(root)).check(output)
    assert not report.ok
    bad = {Path(path).name for path in report.splits["test"].bad_files}
    assert bad == {"03_test_mask.gif", "04_test_mask.gif"}
    assert "03_test_mask.gif" in (output / "report.json").read_text()
    (root / "training/mask/21_training_mask.gif").unlink()
    report = DRIVE(root=str(root)).check(output)
    assert "21_training.tif has no field of view" in report.splits["train"].refused[0]


def test_refusals(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.val_images: \[37, 41\]"):
        DRIVE(root=str(root), val_images=(37, 41))
    with pytest.raises(ConfigError, match=r"data\.augment\.zoom"):
        AffineAugment(zoom=(1.2, 0.9))
    view = root / "test/mask/03_test_mask.gif"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(view)
    with pytest.raises(DataError, match="nothing is inside"):
        DRIVE(root=str(root)).dataset("test").sample(2)
    Image.fromarray(np.ones((HEIGHT, 9), np.uint8)).save(view)
    with pytest.raises(DataError, match=r"is 9x30 pixels, its picture 40x30"):
        DRIVE(root=str(root)).dataset("test").sample(2)
    view.unlink()
    with pytest.raises(DataError, match=r"03_test\.tif has no field of view"):
        DRIVE(root=str(root)).dataset("test")
    (root / "training/images/37_training.tif").unlink()
    with pytest.raises(DataError, match="has no picture '37'"):
        DRIVE(root=str(root)).pairs("val")
