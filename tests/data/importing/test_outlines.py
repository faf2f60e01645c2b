"""Outlines become label files, and which object has a pixel is as stated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as mask_tools

from vistrain.cli import main
from vistrain.data import MaskFolders, MaskSplit
from vistrain.data.segmentation.label_files import read_label_file
from vistrain.metrics.coco_masks import encode_mask

LARGE, SMALL = [[2, 2], [17, 2], [17, 12], [2, 12]], [[5, 5], [9, 5], [9, 8], [5, 8]]


def picture(path: Path, size: tuple[int, int] = (16, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), np.uint8)).save(path)


def labelme(folder: Path, *names: str, order: tuple[str, ...] = ("wheel", "car")) -> None:
    for name in names:
        picture(folder / f"{name}.png")
        points: dict[str, Any] = {"car": LARGE, "wheel": SMALL}
        shapes = [{"label": label, "points": points[label], "shape_type": "polygon"} for label in order]
        content = {"imagePath": f"{name}.png", "imageHeight": 16, "imageWidth": 20, "shapes": shapes}
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_labelme_draws_the_last_on_top_unless_it_is_told_otherwise(tmp_path, capsys):
    labelme(tmp_path / "set", "a", "b", "c")
    words = ["import-data", "labelme", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    assert main([*words, "--masks"]) == 0
    said = capsys.readouterr().out
    assert "the last of the export has them" in said
    assert (tmp_path / "out/classes.txt").read_text() == "0\tbackground\n1\tcar\n2\twheel\n"
    mask = read_label_file(tmp_path / "out/masks/a.png")
    assert (mask[6, 6], mask[3, 3], mask[0, 0], mask.shape) == (1, 1, 0, (16, 20))
    assert main([*words, "--masks", "smallest"]) == 0
    said = capsys.readouterr().out
    assert "the smallest has them" in said
    assert f"{100 * 5 * 4 / 320:.2f} % of the pixels lie in several objects" in said
    mask = read_label_file(tmp_path / "out/masks/a.png")
    assert (mask[6, 6], mask[3, 3], (mask == 2).sum()) == (2, 1, 20)  # edges belong to the object, 5 x 4 pixels
    config = yaml.safe_load(said.split("use it with\n")[1])["data"]
    splits = {split: MaskSplit(**config[split]) for split in ("train", "val")}
    data = MaskFolders(root=config["root"], classes=config["classes"], **splits)
    assert [len(data.pairs(split)) for split in ("train", "val")] == [2, 1]
    assert data.labels.names == ("background", "car", "wheel")
    assert set(data.dataset("val")[0].label_map.flat) == {0, 1, 2}


def test_yolo_rows_of_any_order_put_the_smallest_on_top(tmp_path, capsys):
    root = tmp_path / "set"
    for split, name in (("train", "a"), ("val", "b")):
        picture(root / f"images/{split}/{name}.png")
        rows = [(1, SMALL), (0, LARGE)]
        lines = (f"{n} " + " ".join(f"{x / 20} {y / 16}" for x, y in points) for n, points in rows)
        (root / f"labels/{split}").mkdir(parents=True)
        (root / f"labels/{split}/{name}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car, wheel]\n")
    assert main(["import-data", "yolo", str(root), "--masks", "--output", str(tmp_path / "out")]) == 0
    mask = read_label_file(tmp_path / "out/masks/val/b.png")
    assert (mask[6, 6], mask[3, 3]) == (2, 1)
    assert "val/b\n" in (tmp_path / "out/val.txt").read_text()


def test_cvat_obeys_the_order_in_depth(tmp_path, capsys):
    picture(tmp_path / "set/a.png")
    picture(tmp_path / "set/b.png")
    points = {name: ";".join(f"{x},{y}" for x, y in where) for name, where in (("car", LARGE), ("wheel", SMALL))}
    shapes = f"""<polygon label="wheel" points="{points["wheel"]}" z_order="1"/>
    <polygon label="car" points="{points["car"]}" z_order="0"/>"""
    images = "".join(f'<image name="{n}.png" width="20" height="16">{shapes}</image>' for n in "ab")
    (tmp_path / "set/annotations.xml").write_text(f"<annotations>{images}</annotations>")
    assert main(["import-data", "cvat", str(tmp_path / "set"), "--masks", "--output", str(tmp_path / "out")]) == 0
    assert read_label_file(tmp_path / "out/masks/a.png")[6, 6] == 2


def cvat_masks(folder: Path, **runs: str) -> Path:
    images = ""
    for name, rle in runs.items():
        picture(folder / f"{name}.png")
        mask = f'<mask label="car" rle="{rle}" left="3" top="2" width="4" height="3"/>'
        images += f'<image name="{name}.png" width="20" height="16">{mask}</image>'
    (folder / "annotations.xml").write_text(f"<annotations>{images}</annotations>")
    return folder


def test_masks_of_cvat_are_pixels_row_by_row(tmp_path, capsys):
    expected = np.zeros((16, 20), bool)
    expected[2, 4:6], expected[3, 3:7] = True, True  # the box's rows: 0110, 1111, 0000
    source = cvat_masks(tmp_path / "set", a="1, 2, 1, 4, 4", b="0, 1, 11")
    words = ["import-data", "cvat", str(source), "--val", "0", "--output"]
    assert main([*words, str(tmp_path / "drawn"), "--masks"]) == 0
    assert "without an outline" not in capsys.readouterr().out
    np.testing.assert_array_equal(read_label_file(tmp_path / "drawn/masks/a.png") == 1, expected)
    assert main([*words, str(tmp_path / "out")]) == 0
    assert "det/custom_instances" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "out/train.json").read_text())["annotations"]
    runs = encode_mask("a", first["segmentation"], 16, 20)
    np.testing.assert_array_equal(mask_tools.decode(runs).astype(bool), expected)
    assert (first["area"], first["bbox"], second["area"]) == (6, [3, 2, 4, 3], 1)


@pytest.mark.parametrize("rle", ["1, 2, 1, 4, 3", "1, 2, 1, 4, 5", "-1, 13", "1.5, 10.5", "a, b", ""])
def test_damaged_masks_of_cvat_are_named(tmp_path, capsys, rle: str):
    source = cvat_masks(tmp_path / "set", a="1, 2, 1, 4, 4", b=rle)
    assert main(["import-data", "cvat", str(source), "--masks", "--output", str(tmp_path / "out")]) == 0
    assert "1 x mask whose numbers cannot be read: car in b.png" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out/masks").iterdir()) == ["a.png"]
    cvat_masks(tmp_path / "set", a=rle, b=rle)
    assert main(["import-data", "cvat", str(source), "--output", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mask whose numbers cannot be read" in line


def test_coco_crowds_are_ignored_and_boxes_are_filled_and_told(tmp_path, capsys):
    for name in ("a", "b"):
        picture(tmp_path / f"set/{name}.png")
    flat = [float(v) for point in LARGE for v in point]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 15, 10], "segmentation": [flat], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 14, 4, 2], "segmentation": [], "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [3, 4, 2, 5], "iscrowd": 0},
    ]
    images = [{"id": i, "file_name": f"{n}.png", "width": 20, "height": 16} for i, n in ((1, "a"), (2, "b"))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "set/train.json").write_text(json.dumps(content))
    words = ["import-data", "coco", str(tmp_path / "set"), "--masks", "--val", "0", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert "2 x object without an outline: its box was filled" in capsys.readouterr().out
    first, second = (read_label_file(tmp_path / f"out/masks/{n}.png") for n in "ab")
    assert (first == 255).sum() == 8
    assert ((second == 1).sum(), second[4, 3], second[8, 4], second[9, 4]) == (10, 1, 1, 0)


def test_two_pictures_of_one_mask_are_refused(tmp_path, capsys):
    labelme(tmp_path / "set", "a", "b")
    picture(tmp_path / "set/a.jpg")
    shapes = [{"label": "car", "points": LARGE, "shape_type": "polygon"}]
    (tmp_path / "set/z.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": shapes}))
    words = [
        "import-data",
        "labelme",
        str(tmp_path / "set"),
        "--masks",
        "--val",
        "0",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    assert "rename one of them" in capsys.readouterr().err


def test_names_that_are_no_text_are_refused(tmp_path, capsys):
    labelme(tmp_path / "in", "a")
    shapes = json.loads((tmp_path / "in/a.json").read_text())
    shapes["shapes"][0]["label"] = "\ud800"
    (tmp_path / "in/a.json").write_text(json.dumps(shapes))
    command = ["import-data", "labelme", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--masks"]
    assert main(command) == 2
    assert "has a name that is no text" in capsys.readouterr().err
    labelme(tmp_path / "in", "a")
    odd = os.fsdecode(b"\xff")
    for suffix in ("json", "png"):
        try:
            (tmp_path / f"in/a.{suffix}").rename(tmp_path / f"in/{odd}.{suffix}")
        except OSError:
            pytest.skip("this file system takes no such names")
    assert main(command) == 2
    assert "the picture '\\\\udcff' has a name that is no text" in capsys.readouterr().err


def test_unknown_rules_are_refused(tmp_path, capsys):
    assert main(["import-data", "labelme", str(tmp_path), "--output", str(tmp_path / "out"), "--masks", "first"]) == 2
    assert "choose from" in capsys.readouterr().err
