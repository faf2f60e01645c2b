"""`vistrain check`: every file opened, everything counted, what is wrong listed."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vistrain.data import CocoDetection, CocoSplit, GeneratedShapes
from vistrain.data.detection.check import Report
from vistrain.errors import DataError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> GeneratedShapes:
    data = GeneratedShapes(root=str(tmp_path_factory.mktemp("data")), train_images=30, val_images=20, workers=0)
    data.prepare_data()
    return data


def text(report: Report) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(report.table())
    return captured.get()


def test_a_clean_set(shapes: GeneratedShapes, tmp_path: Path) -> None:
    report = shapes.check(tmp_path / "out")
    assert report.ok
    assert list(report.splits) == ["train", "val"]
    train = report.splits["train"]
    assert train.images == 30
    truth = shapes.ground_truth("train")["annotations"]
    objects = [a for a in truth if not a["iscrowd"]]
    assert train.objects == len(objects) == sum(train.classes.values()) == sum(train.sizes.values())
    assert train.crowds == len(truth) - len(objects)
    assert train.empty_images == 30 - len({a["image_id"] for a in objects})
    sides = [np.sqrt(a["bbox"][2] * a["bbox"][3]) for a in objects]
    assert train.box_side["50%"] == pytest.approx(np.median(sides), abs=0.06)
    assert train.box_side["100%"] == pytest.approx(max(sides), abs=0.06)
    assert train.sizes["small"] == sum(a["area"] < 32**2 for a in objects)
    assert report.leaks == []
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    assert len(report.pictures) == 6
    for path in report.pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    shown = text(report)
    assert "crescent" in shown
    assert "small / medium / large" in shown


def test_a_broken_set(shapes: GeneratedShapes, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(shapes.root, root)
    (root / "train" / "000000.jpg").write_bytes(b"")
    (root / "train" / "000001.jpg").unlink()
    (root / "val" / "000003.jpg").write_bytes((root / "val" / "000003.jpg").read_bytes()[:900])
    Image.new("RGB", (7, 7)).save(root / "val" / "000005.jpg")
    truth = json.loads((root / "annotations" / "train.json").read_text())
    truth["annotations"][0]["bbox"][2] = 0
    sizes = {i["id"]: (i["width"], i["height"]) for i in truth["images"]}
    truth["images"].append({**truth["images"][5], "id": 9999, "file_name": "again.jpg"})
    shutil.copy(root / "train" / "000005.jpg", root / "train" / "again.jpg")
    (root / "annotations" / "train.json").write_text(json.dumps(truth))
    val = json.loads((root / "annotations" / "val.json").read_text())
    width, height = sizes[truth["images"][8]["id"]]
    val["images"].append({"id": 9999, "file_name": "leak.jpg", "width": width, "height": height})
    shutil.copy(root / "train" / "000008.jpg", root / "val" / "leak.jpg")
    (root / "annotations" / "val.json").write_text(json.dumps(val))
    data = CocoDetection(
        CocoSplit("train", "annotations/train.json"),
        CocoSplit("val", "annotations/val.json"),
        root=str(root),
        workers=0,
    )
    report = data.check(tmp_path / "out")
    assert not report.ok
    assert report.splits["train"].bad_files == {
        "000000.jpg": "empty file (0 bytes)",
        "000001.jpg": "no such image file",
    }
    assert set(report.splits["val"].bad_files) == {"000003.jpg", "000005.jpg"}
    assert "7x7 pixels, its annotations are for" in report.splits["val"].bad_files["000005.jpg"]
    assert report.splits["train"].problems.counts == {"box without area, dropped": 1}
    assert report.splits["train"].repeated == [["000005.jpg", "again.jpg"]]
    assert report.leaks == [["train: 000008.jpg", "val: leak.jpg"]]
    shown = text(report)
    for part in ("000001.jpg: no such image file", "1 x box without area", "train: 000008.jpg = val: leak.jpg"):
        assert part in shown


def test_a_folder_that_cannot_be_made(shapes: GeneratedShapes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        shapes.check(tmp_path / "file" / "out")
