"""Sets of pairs: what is generated is exact, files are paired by name, windows are alike, and what differs is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.data import GeneratedMatches, MatchingFolders, PairSplit
from vistrain.data.correspondence.displacement_files import write_displacement
from vistrain.data.correspondence.generated import match
from vistrain.errors import ConfigError, DataError

KITTI = PairSplit("image_2/*_10.png", "image_2/*_11.png", "flow_occ/*_10.png")


def kitti(root: Path, numbers: tuple[int, ...] = (3, 12, 100), size: tuple[int, int] = (20, 30)) -> None:
    for folder in ("image_2", "flow_occ"):
        (root / folder).mkdir(exist_ok=True)
    for number in numbers:
        for frame in (10, 11):
            image = np.full((*size, 3), number + frame, np.uint8)
            Image.fromarray(image).save(root / f"image_2/{number:06d}_{frame}.png")
        write_displacement(root / f"flow_occ/{number:06d}_10.png", np.full((2, *size), float(number)))


def flows(root: Path, **more: Any) -> MatchingFolders:
    return MatchingFolders(**({"finds": "flow", "train": KITTI, "val": KITTI, "root": str(root), "workers": 0} | more))


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_image_is_the_second_one_where_the_field_says(axes: int, seed: int) -> None:
    first, second, field = match(np.random.default_rng(seed), axes, (48, 64), 5.0)
    again = match(np.random.default_rng(seed), axes, (48, 64), 5.0)
    assert all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip((first, second, field), again, strict=True)
    )
    known = np.isfinite(field).all(0)
    assert known.mean() > 0.8
    rows, columns = np.nonzero(known)
    for row, column in list(zip(rows, columns, strict=True))[::97]:
        x, y = (
            (column - field[0, row, column], row)
            if axes == 1
            else (column + field[0, row, column], row + field[1, row, column])
        )
        assert 0 <= x <= 63
        assert 0 <= y <= 47
        around = cv2.getRectSubPix(second.astype(np.float32)[..., 0], (1, 1), (float(x), float(y)))
        # Linear instead of cubic interpolation, and rounding: a few grey values of a texture whose deviation is 50
        assert abs(float(around[0, 0]) - float(first[row, column, 0])) < 40
    if axes == 1:
        assert np.nanmin(field) >= 0
    assert np.nanmax(np.abs(field)) <= 5


def test_a_generated_set_is_written_once_and_read(tmp_path: Path) -> None:
    made = {"root": str(tmp_path), "train_images": 3, "val_images": 2, "height": 32, "width": 48, "workers": 0}
    for finds, axes in (("disparity", 1), ("flow", 2)):
        data = GeneratedMatches(finds=finds, crop=(16, 24), batch_size=2, eval_batch_size=2, **made)
        assert data.unwritten
        data.prepare_data()
        data.setup("fit")
        assert not data.unwritten
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (2, 3, 16, 24)
        assert batch["views"].shape == (1, 2, 3, 16, 24)
        assert batch["target"][0][finds].shape == (axes, 16, 24)
        known = [int(target[finds].isfinite().all(0).sum()) for target in batch["target"]]
        assert batch["num_targets"] == sum(known)
        whole = next(iter(data.val_dataloader()))
        assert whole["image"].shape == (2, 3, 32, 48)
        assert whole["id"] == ["0000", "0001"]
        report = data.check(tmp_path / "check")
        assert report.ok
        assert report.splits["train"].pairs == 3
        assert 0.5 < report.splits["val"].known <= 1
        assert all(Path(picture).is_file() for picture in report.pictures)


def test_windows_of_images_and_displacements_are_alike(tmp_path: Path) -> None:
    (tmp_path / "image_2").mkdir()
    (tmp_path / "flow_occ").mkdir()
    y, x = np.mgrid[:20, :30]
    places = np.stack((x, y, x + y), 2).astype(np.uint8)
    for frame in (10, 11):
        Image.fromarray(places).save(tmp_path / f"image_2/0_{frame}.png")
    write_displacement(tmp_path / "flow_occ/0_10.png", np.stack((x, y)).astype(np.float32))
    samples = flows(tmp_path, crop=(8, 9)).dataset("train")
    seen = set()
    for seed in range(20):
        sample = samples.sample(0, seed)
        assert np.array_equal(sample.first, sample.second)
        assert np.array_equal(sample.first[..., :2].transpose(2, 0, 1), sample.field)
        assert sample.full == (20, 30)
        seen.add(tuple(sample.field[:, 0, 0]))
    assert len(seen) > 10
    assert np.array_equal(samples.sample(0, 5).field, samples.sample(0, 5).field)


def test_files_are_paired_by_what_the_star_stands_for_or_by_their_names(tmp_path: Path) -> None:
    kitti(tmp_path)
    data = flows(tmp_path)
    pairs = data.pairs("train")
    assert [pair.name for pair in pairs] == ["000003", "000012", "000100"]
    assert pairs[1].second.name == "000012_11.png"
    sample = data.dataset("val").sample(1)
    assert (sample.first[0, 0, 0], sample.second[0, 0, 0], sample.field[0, 0, 0]) == (22, 23, 12)
    for part in ("left", "right", "truth"):
        (tmp_path / part).mkdir()
    for part, name in (("left", "a.png"), ("right", "a.jpg"), ("left", "unlabelled.png")):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / part / name)
    write_displacement(tmp_path / "truth/a.pfm", np.ones((1, 4, 6)))
    split = PairSplit("left", "right", "truth")
    (pair,) = flows(tmp_path, finds="disparity", train=split, val=split).pairs("train")
    assert (pair.name, pair.second.name) == ("a", "a.jpg")
    assert data.image_path("val", "000012") == pairs[1].first


def test_pairs_of_several_sizes_are_padded_into_a_batch(tmp_path: Path) -> None:
    kitti(tmp_path, (1,), (20, 30))
    kitti(tmp_path, (2,), (24, 26))
    data = flows(tmp_path, eval_batch_size=2)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (2, 3, 24, 30)
    assert batch["size"].tolist() == [[20, 30], [24, 26]]
    assert [target["flow"].shape for target in batch["target"]] == [(2, 20, 30), (2, 24, 26)]
    assert torch.equal(batch["views"][0][1, :, :24, :26], torch.full((3, 24, 26), 13, dtype=torch.uint8))


def test_what_differs_or_is_missing_is_one_line(tmp_path: Path) -> None:
    kitti(tmp_path)
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(tmp_path / "image_2/000003_11.png")
    data = flows(tmp_path)
    with pytest.raises(DataError, match=r"000003_11\.png: is 31x20 pixels, the first image \(000003_10\.png\) 30x20"):
        data.dataset("val").sample(0)
    write_displacement(tmp_path / "flow_occ/000012_10.png", np.zeros((2, 21, 30)))
    with pytest.raises(DataError, match=r"flow_occ/000012_10\.png: is 30x21 pixels"):
        data.dataset("val").sample(1)
    report = data.check(tmp_path / "check")
    assert not report.ok
    assert len(report.splits["train"].bad_files) == 2
    with pytest.raises(DataError, match=r"is 30x20 pixels, smaller than windows of 64x16 - lower data\.crop"):
        flows(tmp_path, crop=(16, 64)).dataset("train").sample(2)
    (tmp_path / "image_2/000100_11.png").unlink()
    with pytest.raises(DataError, match=r"has no second image of 000100 - complete it, or correct data\.train"):
        flows(tmp_path).pairs("train")
    for split, said in (
        (PairSplit("image_3", "image_2/*_11.png", KITTI.truth), r"image_3: no such folder"),
        (
            PairSplit(KITTI.first, KITTI.second, "image_2/*.flo"),
            r"has no \.pfm, \.flo, \.png file - correct data\.val\.truth",
        ),
    ):
        with pytest.raises(DataError, match=said):
            flows(tmp_path, val=split).pairs("val")
    with pytest.raises(ConfigError, match=r"data\.val\.first: .* has not one \* in its last part"):
        flows(tmp_path, val=PairSplit("*/image_2/a_*.png", KITTI.second, KITTI.truth)).pairs("val")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "image_2/000003_10.jpg")
    whole = PairSplit("image_2", "image_2", "flow_occ")
    with pytest.raises(DataError, match=r"has 000003_10\.jpg and 000003_10\.png - keep one of them"):
        flows(tmp_path, val=whole).pairs("val")
