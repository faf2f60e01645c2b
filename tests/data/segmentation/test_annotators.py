"""Pictures that several people have drawn in: what is trained on, what evaluation has, what does not belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistrain.data import AffineAugment, Annotator, FieldOfViewFolders, ViewSplit
from vistrain.data.segmentation.annotators import combined
from vistrain.errors import ConfigError, DataError

MAPS = np.array([[[0, 0, 1, 1, 255]], [[0, 1, 1, 255, 255]], [[1, 0, 1, 0, 255]]], np.uint8)
STILL = AffineAugment(zoom=(1, 1), shift=0, rotation=0, jitter=0, hue=0, flip=0, vertical_flip=0)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("first", [0, 0, 1, 1, 255]),
        ("union", [1, 1, 1, 1, 255]),
        ("intersection", [0, 0, 1, 0, 255]),
        ("vote", [0, 0, 1, 0, 255]),  # of one voice for each of two classes the lower one counts
    ],
)
def test_rules_by_hand(rule: str, wanted: list[int]) -> None:
    assert combined(MAPS, rule, 255, 0)[0].tolist() == wanted


def test_vote_of_more_classes_and_random_by_seed() -> None:
    maps = np.array([[[2, 1]], [[2, 3]], [[0, 3]]], np.uint8)
    assert combined(maps, "vote", 255, 0)[0].tolist() == [2, 3]
    drawn = [combined(MAPS, "random", 255, seed) for seed in range(30)]
    assert {found.tobytes() for found in drawn} == {one.tobytes() for one in MAPS}
    np.testing.assert_array_equal(drawn[7], combined(MAPS, "random", 255, 7))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures, each drawn in by two people: a column, and the next one, too."""
    for folder in ("images", "masks", "second", "views"):
        (tmp_path / folder).mkdir()
    for name in ("1", "2"):
        one, other, view = (np.zeros((12, 16), np.uint8) for _ in range(3))
        one[:, 5], other[:, 5:7], view[2:10] = 255, 255, 255
        picture = np.random.default_rng(int(name)).integers(0, 256, (12, 16, 3), np.uint8)
        for folder, pixels in (("images", picture), ("masks", one), ("second", other), ("views", view)):
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}{'_b' if folder == 'second' else ''}.png")
    return tmp_path


def data_of(root: Path, **arguments: object) -> FieldOfViewFolders:
    split = ViewSplit("images", "masks", views="views", annotators=(Annotator("second", "_b"),))
    facts = {
        "classes": ("background", "vessel"),
        "values": (0, 255),
        "ignore": (),
        "size": (12, 16),
        "augment": STILL,
        "batch_size": 2,
    }
    return FieldOfViewFolders(root=str(root), train=split, val=split, **{**facts, **arguments})


def test_training_sees_one_map_and_evaluation_all(root: Path) -> None:
    widths = {}
    for rule in ("first", "union", "intersection", "random"):
        samples = data_of(root, trained_on=rule).dataset("train")
        widths[rule] = {int((samples.sample(0, seed).label_map == 1).any(0).sum()) for seed in range(8)}
        assert samples.sample(0, 0).annotations is None
    assert widths == {"first": {1}, "union": {2}, "intersection": {1}, "random": {1, 2}}
    data = data_of(root, trained_on="union")
    found = data.dataset("val").sample(0)
    assert found.annotations is not None
    assert found.annotations.shape == (2, 8, 16)  # of the view's box
    np.testing.assert_array_equal(found.annotations[0], found.label_map)
    assert [(one == 1).any(0).sum() for one in found.annotations] == [1, 2]
    (target,) = data.collate([found])["target"]
    assert target["annotations"].shape == (2, 8, 16)
    assert data_of(root, stretch_truth=True).dataset("val").sample(0).annotations.shape == (2, 12, 16)


def test_what_does_not_belong_together(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp("report")
    assert data_of(root).check(output).ok
    Image.fromarray(np.zeros((12, 15), np.uint8)).save(root / "second/2_b.png")
    report = data_of(root).check(output)
    assert {Path(name).name for name in report.splits["train"].bad_files} == {"2_b.png"}
    with pytest.raises(DataError, match=r"2_b\.png: is 15x12 pixels, the first annotator's 16x12"):
        data_of(root).dataset("val").sample(1)
    (root / "second/2_b.png").unlink()
    with pytest.raises(DataError, match="has no mask of 2"):
        data_of(root).dataset("val")
    assert "has no mask of 2" in data_of(root).check(output).splits["train"].refused[0]
    three = {"classes": ("a", "b", "c"), "values": (0, 1, 255)}
    with pytest.raises(ConfigError, match=r"data.trained_on: union of 3 classes"):
        data_of(root, trained_on="union", **three).dataset("train")
