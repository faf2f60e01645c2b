"""`vistrain check`: every file opened, everything counted, what is wrong listed."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vistrain.data import CocoDetection, CocoSplit, GeneratedShapes
from vistrain.data.detection import check
from vistrain.data.detection.check import Report, check_boxes
from vistrain.errors import ConfigError, DataError


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


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take a second each, and are looked at elsewhere."""
    monkeypatch.setattr(check, "bars", lambda values, path, *_: path)
    monkeypatch.setattr(check, "histogram", lambda values, path, *_: path)


def tiny(root: Path, **sections) -> CocoDetection:
    """Two images for training, one for validation, of one object each; sections of the training file are replaced."""
    for split, count in (("train", 2), ("val", 1)):
        images = [{"id": i + 1, "file_name": f"{split}{i}.png", "width": 24, "height": 16} for i in range(count)]
        for seed, image in enumerate(images):
            pixels = np.random.default_rng([seed, count]).integers(0, 256, (16, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / image["file_name"])
        objects = [{"id": i["id"], "image_id": i["id"], "category_id": 1, "bbox": [2, 3, 10, 8]} for i in images]
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "[/red]"}]}
        content |= sections.get(split, {})
        (root / f"{split}.json").write_text(json.dumps(content))
    splits = (CocoSplit(".", f"{split}.json") for split in ("train", "val"))
    return CocoDetection(*splits, root=str(root), workers=0, batch_size=2)


@pytest.mark.usefixtures("without_charts")
def test_names_like_markup_are_names(tmp_path: Path) -> None:
    report = tiny(tmp_path).check(tmp_path / "out")
    assert report.ok
    assert "[/red]" in text(report)


@pytest.mark.usefixtures("without_charts")
def test_all_that_a_run_refuses_is_said_at_once(tmp_path: Path) -> None:
    images = [
        {"id": "1", "file_name": "train0.png", "width": 24, "height": 16},
        {"id": 2.0, "file_name": "train1.png", "height": 16},
    ]
    objects = [
        {"id": 1, "image_id": "1", "category_id": 1, "bbox": [2, 3, 10, 8], "iscrowd": "0"},
        {"id": 1, "image_id": 2.0, "category_id": 1, "bbox": [2, 3, 10, 8]},
    ]
    broken = tiny(tmp_path, train={"images": images, "annotations": objects}, val={"images": [], "annotations": []})
    report = broken.check(tmp_path / "out")
    assert not report.ok
    said = "\n".join(report.splits["train"].refused)
    assert "images[0]: 'id' is '1', not an integer - `vistrain check --repair FILE`" in said
    assert "images[1]: has no 'width'" in said
    assert "annotations[1]: 'image_id' is 2.0" in said
    assert "has no image to evaluate on" in report.splits["val"].refused[0]
    assert "refused train" in text(report)
    with pytest.raises(DataError, match="more faults; `vistrain check` lists all"):
        broken.find("train")

    (line,) = broken.repair(tmp_path / "mended.json")
    assert "repaired copy of train" in line
    assert "set data.train.annotations to it" in line
    mended = CocoDetection(
        CocoSplit(".", "mended.json"), CocoSplit(".", "mended.json"), root=str(tmp_path), workers=0, batch_size=2
    )
    assert mended.check(tmp_path / "again").ok
    assert [i["id"] for i in mended.ground_truth("train")["images"]] == [1, 2]
    assert mended.repair(tmp_path / "none.json") == ["nothing to repair: what is refused is for you to decide"]
    assert not (tmp_path / "none.json").exists()


@pytest.mark.usefixtures("without_charts")
def test_sets_that_no_run_takes(tmp_path: Path) -> None:
    nothing = tiny(tmp_path, train={"annotations": []}).check(tmp_path / "out")
    assert "has no object to train on" in nothing.splits["train"].refused[0]
    blind = tiny(tmp_path, val={"annotations": []}).check(tmp_path / "out")
    assert "every number of an evaluation would be -1" in blind.splits["val"].refused[0]
    few = tiny(tmp_path)
    few.batch_size = 3
    (said,) = few.check(tmp_path / "out").splits["train"].refused
    assert "2 images to train on are fewer than the global batch of 3" in said
    other = tiny(tmp_path, val={"categories": [{"id": 1, "name": "cat"}]}).check(tmp_path / "out")
    assert "category 1 is 'cat' here and '[/red]'" in other.splits["val"].refused[0]
    (tmp_path / "val.json").unlink()
    gone = few.check(tmp_path / "out")
    assert "no such annotation file" in gone.splits["val"].problem
    assert gone.splits["train"].images == 2


@pytest.mark.usefixtures("without_charts")
def test_pages_and_turned_photographs_are_named(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / "train0.png") as image:
        image.save(tmp_path / "train0.png", exif=exif)
        image.save(tmp_path / "val0.png", save_all=True, append_images=[image.rotate(180)])
    report = data.check(tmp_path / "out")
    assert not report.ok
    assert report.splits["val"].several == ["val0.png"]
    assert report.splits["train"].turned == ["train0.png"]
    assert str(tmp_path / "out" / "turned-train.png") in report.pictures
    shown = text(report)
    assert "only the first page is read (val0.png)" in shown
    assert "compare turned-train.png; data.exif=apply reads them upright" in shown


def write_set(root: Path, categories: list[dict[str, Any]]) -> CocoDetection:
    """Two splits of one picture each, with an object of category 1 and two of category 2."""
    images = [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}]
    boxes = [(1, [5, 5, 20, 20]), (2, [30, 5, 20, 20]), (2, [2, 28, 10, 10])]
    annotations = [
        {"id": i, "image_id": 7, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (c, box) in enumerate(boxes)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        Image.fromarray(np.full((40, 60, 3), len(split) * 20, np.uint8)).save(root / split / "a.png")
        (root / f"{split}.json").write_text(json.dumps(content))
    return CocoDetection(CocoSplit("train", "train.json"), CocoSplit("val", "val.json"), root=str(root))


def test_two_categories_of_one_name_are_counted_by_id(tmp_path: Path) -> None:
    names = [{"id": 0, "name": "hat"}, {"id": 1, "name": "hat"}, {"id": 2, "name": "vest"}, {"id": 3, "name": "hat"}]
    data = write_set(tmp_path / "set", names)
    report = check_boxes(data, tmp_path / "out")
    for split in report.splits.values():
        assert split.classes == {"hat (id 0)": 0, "hat": 1, "vest": 2, "hat (id 3)": 0}
        assert split.category_ids == {"hat (id 0)": 0, "hat": 1, "vest": 2, "hat (id 3)": 3}
    said = text(report)
    assert "categories that share their name with another one: 'hat' (0), 'hat' (3)" in said
    assert "classes without objects: hat (id 0), hat (id 3)" in said
    assert "data.leave_out=[0,3]" in said
    assert "2 classes without objects are left out" in said
    assert "│ hat (id 0)" not in said


def test_categories_are_left_out_by_id(tmp_path: Path) -> None:
    write_set(tmp_path, [{"id": 0, "name": "hat"}, {"id": 1, "name": "hat"}, {"id": 2, "name": "vest"}])
    splits = CocoSplit("train", "train.json"), CocoSplit("val", "val.json")
    data = CocoDetection(*splits, root=str(tmp_path), leave_out=(0, 2))
    assert (data.labels.names, data.labels.ids) == (("hat",), (1,))
    assert data.dataset("train").read(0).labels.tolist() == [0]
    assert [a["category_id"] for a in data.ground_truth("val")["annotations"]] == [1]
    for wrong, message in (((9,), "no category 9"), ((0, 1, 2), "leaves no category")):
        with pytest.raises(ConfigError, match=message):
            CocoDetection(*splits, root=str(tmp_path), leave_out=wrong).find("train")
