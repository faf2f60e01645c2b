"""Sets of roads with lanes: their files, their samples, and what `check` finds in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.data import CULane, GeneratedLanes, TuSimple
from vistrain.data.segmentation.lane_files import (
    json_line_of,
    lane_mask,
    lines_text,
    place_lanes,
    read_json_lines,
    read_lines,
    read_list,
)  # fmt: skip
from vistrain.data.segmentation.transforms import EvalStretch
from vistrain.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> GeneratedLanes:
    data = GeneratedLanes(str(tmp_path_factory.mktemp("lanes")), 6, 6, scale=0.15, size=(32, 96), batch_size=2)
    data.prepare_data()
    return data


def test_lines_there_and_back(tmp_path):
    path = tmp_path / "a.lines.txt"
    path.write_text("10 20.5 30 40 \n\n1.25 -2 3 4\n")
    lanes = read_lines(path)
    assert [lane.tolist() for lane in lanes] == [[[10, 20.5], [30, 40]], [[1.25, -2], [3, 4]]]
    path.write_text(lines_text(lanes))
    assert path.read_text().splitlines()[0] == "10 20.5 30 40"
    assert [lane.tolist() for lane in read_lines(path)] == [lane.tolist() for lane in lanes]
    for wrong, message in (
        ("1 2 3", "3 numbers, no pairs"),
        ("1 x", "not made of numbers"),
        ("1 nan", "no pairs"),
        ("1 1e300", "no pairs"),
    ):
        path.write_text(wrong)
        with pytest.raises(DataError, match=message):
            read_lines(path)


def test_json_lines_there_and_back(tmp_path):
    path, rows = tmp_path / "labels.json", [160, 170, 180]
    row = {"lanes": [[-2, 5, 7], [-2, -2, -2]], "h_samples": rows, "raw_file": "clips/1/20.jpg"}
    path.write_text(json.dumps(row) + "\n\n")
    (entry,) = read_json_lines(path)
    assert (entry.image, entry.rows) == (tmp_path / "clips/1/20.jpg", (160, 170, 180))
    assert [lane.tolist() for lane in entry.points()] == [[[5, 170], [7, 180]]]
    again = json.loads(json_line_of(entry.name, entry.points(), rows))
    assert again == {**row, "lanes": row["lanes"][:1], "run_time": 0}
    for wrong, message in (
        ('{"raw_file": "a"}', "KeyError"),
        ("{", "line 1 is no JSON object"),
        ('{"raw_file": "a", "h_samples": [1, 2], "lanes": [[1]]}', "an x for each of its 2"),
        ('{"raw_file": "a", "h_samples": [1e999], "lanes": [[1]]}', "line 1 has a number that is infinite"),
        ('{"raw_file": "a", "h_samples": [1e300], "lanes": [[1]]}', "line 1 has a number that is infinite"),
        ('{"raw_file": "a", "h_samples": [NaN], "lanes": [[1]]}', "line 1 has a number that is infinite or NaN"),
        ('{"raw_file": "a", "h_samples": [1], "lanes": [[Infinity]]}', "line 1 has a number that is infinite"),
        ('{"raw_file": "a", "h_samples": [' + "1" * 400 + '], "lanes": [[1]]}', "line 1 is no JSON object"),
        ("", "labels no image"),
    ):
        path.write_text(wrong)
        with pytest.raises(DataError, match=message):
            read_json_lines(path)


def test_lanes_have_places_from_the_middle():
    def line(bottom: float, top: float) -> np.ndarray:
        return np.array([[bottom, 99], [top, 50]], np.float32)

    lanes = [line(120, 80), line(90, 75), line(10, 60), line(-40, 50), line(190, 90)]
    middle = place_lanes(lanes, 200, 100, 4)
    assert [None if lane is None else float(lane[0, 0]) for lane in middle] == [10, 90, 120, 190]
    assert place_lanes(lanes[:1], 200, 100, 4)[2] is lanes[0]
    mask = lane_mask(middle, 100, 200, 3)
    assert [int(mask[99, x]) for x in (10, 90, 120, 190, 60)] == [1, 2, 3, 4, 0]


def test_the_generated_set_is_culanes(generated):
    train, val, test = (generated.dataset(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (6, 6, 6)
    batch = generated.collate([train[(0, 1)], train[(1, 1)]])
    assert batch["image"].shape == (2, 3, 32, 96)
    for target in batch["target"]:
        assert target["label_map"].shape == (32, 96)
        seen = torch.isin(torch.arange(1, 5), target["label_map"]).float()
        assert (seen <= target["exist"]).all()
    assert {entry.category for entry in generated.entries("test")} == {"normal", "night", "cross"}
    sample = val[0]
    height, width = sample.original_size
    assert (height, width, sample.image.shape) == (88, 246, (32, 96, 3))
    assert sample.label_map is None
    assert all((lane[:, 0] < width).all() and (lane[:, 1] < height).all() for lane in sample.lanes)
    crossing = next(i for i, e in enumerate(test.entries) if e.category == "cross")
    assert test[crossing].lanes == ()
    assert generated.image_path("val", val.entries[0].name).is_file()
    assert EvalStretch((32, 96))(np.zeros((10, 20, 3), np.uint8)).shape == (32, 96, 3)
    with pytest.raises(DataError, match="no image called"):
        generated.image_path("val", "x")


def test_masks_agree_with_points(generated):
    """The mask of a validation image, which the list names too, covers its points."""
    entries = read_list(generated.root / "list/val_gt.txt", generated.root, 4, points=True)
    for entry in entries:
        stored, lanes = np.array(Image.open(entry.mask)), entry.points()
        assert len(lanes) == sum(entry.exist)
        for lane in lanes:
            x, y = np.rint(lane).astype(int).T
            assert (stored[y.clip(max=87), x.clip(max=245)] > 0).all()


def test_check(generated, tmp_path):
    report = generated.check(tmp_path)
    assert report.ok
    assert report.splits["train"].images == 6
    assert sum(report.splits["test"].categories.values()) == 6
    assert {p.rsplit("/", 1)[1] for p in report.pictures} == {f"samples-{s}.png" for s in ("train", "val", "test")}
    assert json.loads((tmp_path / "report.json").read_text())["ok"]


def culane(root) -> CULane:
    return CULane(root=str(root), size=(16, 32), batch_size=1)


def write_culane(root, mask: np.ndarray, row: str = "/a.jpg /a.png 1 0 0 0\n") -> None:
    (root / "list").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(root / "a.jpg")
    Image.fromarray(mask).save(root / "a.png")
    (root / "a.lines.txt").write_text("1 9 5 2\n")
    for name in ("train_gt", "val_gt", "test"):
        (root / f"list/{name}.txt").write_text(row)


def test_what_does_not_fit_is_said(tmp_path):
    write_culane(tmp_path, np.ones((10, 20), np.uint8))
    assert culane(tmp_path).dataset("train")[0].exist.tolist() == [1, 0, 0, 0]
    for mask, message in (
        (np.ones((9, 20), np.uint8), "the mask is 20x9 pixels, its image 20x10"),
        (np.full((10, 20), 5, np.uint8), "the value 5, lanes have 1 to 4"),
        (np.arange(600, dtype=np.uint8).reshape(10, 20, 3), "colours"),
    ):
        write_culane(tmp_path, mask)
        assert message in str(culane(tmp_path).dataset("train")[0])
    write_culane(tmp_path, np.full((10, 20), 2, np.uint8))
    report = culane(tmp_path).check(tmp_path / "out")
    assert not report.ok
    assert "lane 2, and the list says that it is not there" in report.splits["train"].bad_files[str(tmp_path / "a.png")]
    for row, message in (
        ("/a.jpg /a.png 1 0\n", "says of 2 lanes"),
        ("/a.jpg\n", "has no mask behind it"),
        ("/b.jpg /a.png 1 0 0 0\n", "1 of 1 listed images are not in"),
        ("\n", "lists no image"),
    ):
        write_culane(tmp_path, np.ones((10, 20), np.uint8), row)
        with pytest.raises(DataError, match=message):
            culane(tmp_path).find("train")
    (tmp_path / "list/test.txt").unlink()
    with pytest.raises(DataError, match="no such list of images"):
        culane(tmp_path).find("test")
    with pytest.raises(ConfigError, match="num_lanes"):
        CULane(root=str(tmp_path), num_lanes=0)


def test_tusimple_draws_masks_of_points(tmp_path):
    (tmp_path / "clips").mkdir()
    Image.fromarray(np.zeros((72, 128, 3), np.uint8)).save(tmp_path / "clips/1.jpg")
    rows = list(range(30, 72, 2))
    lanes = [[40 + 0.2 * (y - 30) for y in rows], [100 - (y < 40) * 200 for y in rows]]
    text = json.dumps({"lanes": lanes, "h_samples": rows, "raw_file": "clips/1.jpg"})
    for name in ("label_data_0313.json", "label_data_0601.json", "label_data_0531.json", "test_label.json"):
        (tmp_path / name).write_text(text)
    data = TuSimple(root=str(tmp_path), size=(36, 64), thickness=3)
    train, test = data.dataset("train"), data.dataset("test")
    assert (len(train), len(test)) == (2, 1)
    sample = train[0]
    assert sample.exist.tolist() == [0, 1, 1, 0]
    assert set(np.unique(sample.label_map)) == {0, 2, 3}
    assert test[0].rows == tuple(rows)
    assert test[0].lanes[1][:, 1].min() == 40
    assert data.check(tmp_path / "out").splits["test"].lanes == {2: 1}
