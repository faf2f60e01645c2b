"""Exports of other tools, as a user imports them: the same set in every layout, and what layouts may hold besides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import export_layouts as layouts
import pytest
import yaml
from PIL import Image

from vistrain.cli import main
from vistrain.commands.import_data import LAYOUTS
from vistrain.data import CocoDetection, CocoSplit, DetrAugment
from vistrain.data.coco.reader import read_coco
from vistrain.data.importing.convert import READERS
from vistrain.data.importing.files import Pictures
from vistrain.errors import DataError

BCCD = Path(__file__).parents[4] / "shared" / "samples" / "bccd"
EVERYTHING = {**layouts.TRAIN, **layouts.VAL}


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def imported(reader: str, source: Path, out: Path, *words: str) -> dict[str, dict[str, list[layouts.Box]]]:
    """Split -> stem of a picture -> its boxes, after a run of the command that ends well."""
    assert main(["import-data", reader, str(source), "--output", str(out), *words]) == 0
    found: dict[str, dict[str, list[layouts.Box]]] = {}
    for file in sorted(out.glob("*.json")):
        listing = read_coco(file)
        assert not listing.problems, "what is written needs no mending"
        found[file.stem] = {
            Path(image["file_name"]).stem: [
                (listing.categories[a["category_id"]], *a["bbox"]) for a in listing.annotations.get(image["id"], ())
            ]
            for image in listing.images
        }
    return found


def test_the_command_knows_the_readers() -> None:
    assert sorted(LAYOUTS) == sorted(READERS)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_the_same_set_in_every_layout(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made(layout, tmp_path)
    found = imported(reader, source, tmp_path / "out")
    if layouts.LAYOUTS[layout][2]:
        assert found == layouts.SPLITS
    else:
        assert sorted(found) == ["train", "val"]
        assert {**found["train"], **found["val"]} == EVERYTHING
        assert len(found["val"]) == 1
    assert load(tmp_path / "out" / "train.json")["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    # The section that is printed is one that works.
    config = yaml.safe_load(capsys.readouterr().out.partition("use it with\n")[2])
    data, objects = (
        config["data"],
        [o for s in ("train", "val") for o in load(tmp_path / f"out/{s}.json")["annotations"]],
    )
    outlined = all(o.get("segmentation") for o in objects)
    assert config["base"] == f"vistrain:det/{'custom_instances' if outlined else 'custom_coco'}"
    assert data.pop("type") == "data.CocoDetection"
    splits = {key: CocoSplit(**data[key]) for key in ("train", "val")}
    assert CocoDetection(**splits, root=data["root"]).dataset("train").read(0).image.shape == (40, 50, 3)


def test_ids_do_not_depend_on_where_a_picture_stands(tmp_path: Path) -> None:
    reader, source = layouts.made("voc", tmp_path)
    main(["import-data", reader, str(source), "--output", str(tmp_path / "out")])
    train, val = (load(tmp_path / "out" / f"{name}.json") for name in ("train", "val"))
    assert [(i["id"], i["file_name"]) for i in train["images"]] == [(1, "a.jpg"), (4, "my photo.jpg")]
    assert [(i["id"], i["file_name"]) for i in val["images"]] == [(2, "b.jpg"), (3, "c.jpg")]
    assert [(a["id"], a["image_id"], a["area"], a["iscrowd"]) for a in train["annotations"]] == [
        (1, 1, 400, 0), (2, 1, 1200, 0), (3, 4, 80, 0),
    ]  # fmt: skip


# -------------------------------------------------------------------- Pascal VOC


def test_voc_difficult_objects_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("voc", tmp_path)
    xml = source / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>", 1))
    out = tmp_path / "out"
    imported(reader, source, out, "--splits", "train")
    assert not (out / "val.json").exists()
    assert [a["iscrowd"] for a in load(out / "train.json")["annotations"]] == [1, 0, 0]
    assert "3 objects (1 to be ignored): cat 1, dog 2" in capsys.readouterr().out
    imported(reader, source, out, "--difficult", "keep")
    assert [a["iscrowd"] for a in load(out / "train.json")["annotations"]] == [0, 0, 0]
    imported(reader, source, out, "--difficult", "drop")
    assert len(load(out / "train.json")["annotations"]) == 2


def test_voc_coordinates_from_0_are_recognised_and_can_be_said(tmp_path: Path) -> None:
    reader, source = layouts.made("voc", tmp_path)
    assert imported(reader, source, tmp_path / "a", "--count-from", "0")["val"]["b"] == [("cat", 2, 3, 29, 19)]
    layouts.write(source / "Annotations" / "c.xml", layouts.voc_xml("c", [("dog", 0, 0, 50, 40)], first=0))
    found = imported(reader, source, tmp_path / "b")  # one xmin of 0 says it of all
    assert found["val"] == {"b": [("cat", 2, 3, 29, 19)], "c": [("dog", 0, 0, 50, 40)]}
    assert "below 1" in (tmp_path / "b" / "skipped.txt").read_text()
    assert imported(reader, source, tmp_path / "c", "--count-from", "1")["val"]["c"] == [("dog", 0, 0, 50, 40)]


def test_which_counting_was_taken_is_said_either_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("voc", tmp_path)
    layouts.write(source / "ImageSets" / "Main" / "test.txt", "\n")
    imported(reader, source, tmp_path / "a")
    told = capsys.readouterr().out
    assert "coordinates are read as VOC's, pixels from 1 (--count-from 0 where they are edges from 0): all " in told
    assert "1 x list that names no picture: test.txt" in told
    imported(reader, source, tmp_path / "b", "--count-from", "1")
    assert "pixels from 1" not in capsys.readouterr().out


def test_pictures_of_both_splits_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("voc", tmp_path)
    layouts.write(source / "ImageSets" / "Main" / "val.txt", "a\nb\n")
    imported(reader, source, tmp_path / "out")
    assert "  # 1 pictures of val are in train, too" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["yolo", "coco_roboflow"])
def test_a_set_without_its_training_pictures_is_refused(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, source = layouts.made(layout, tmp_path)
    for path in sorted((source if source.is_dir() else source.parent).rglob("train")):
        path.rename(path.with_name("elsewhere"))
    if reader == "coco":
        for path in (source / "elsewhere").glob("*.json"):
            path.write_text("{}")
    assert main(["import-data", reader, str(source), "--output", str(tmp_path / "out")]) == 2
    assert "nothing is there of train" in capsys.readouterr().err


def test_an_archive_is_to_be_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "export.zip").write_bytes(b"PK\x03\x04")
    assert main(["import-data", "cvat", str(tmp_path / "export.zip"), "--output", str(tmp_path / "out")]) == 2
    assert "export.zip: is an archive - unpack it, and give the folder" in capsys.readouterr().err


def test_voc_annotated_on_the_turned_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    layouts.save(tmp_path / "a.jpg", exif=exif)
    layouts.save(tmp_path / "b.jpg", exif=exif)
    layouts.write(tmp_path / "a.xml", layouts.voc_xml("a", [("cat", 1, 1, 30, 45)], size=(40, 50)))
    layouts.write(tmp_path / "b.xml", layouts.voc_xml("b", [("cat", 1, 1, 45, 30)]))
    imported("voc", tmp_path, tmp_path / "out", "--val", "0")
    assert [(i["width"], i["height"]) for i in load(tmp_path / "out" / "train.json")["images"]] == [(40, 50), (50, 40)]


def test_voc_in_a_folder_around_it_and_in_another_encoding(tmp_path: Path) -> None:
    reader, source = layouts.made("voc", tmp_path)
    head = '<?xml version="1.0" encoding="gbk"?>'
    layouts.write(source / "Annotations" / "b.xml", head + layouts.voc_xml("b", [("猫", 1, 2, 30, 20)]), "gbk")
    assert imported(reader, tmp_path, tmp_path / "out")["val"]["b"] == [("猫", 1, 2, 30, 20)]


# -------------------------------------------------------------------- YOLO


def test_yolo_rows_of_masks_key_points_and_confidences(tmp_path: Path) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    rows = [
        "0 0 0 1 0 1 0.5 0 0.5",  # a polygon
        "1 0.5 0.5 0.2 0.5 0.4 0.4 2 0.6 0.6 0",  # key points with flags, as many numbers as a polygon has
        "0 0.5 0.5 0.2 0.25 0.4 0.4 1",  # one of them
        "1 0.5 0.5 0.4 0.25 0.93",  # a confidence
    ]
    layouts.write(source / "labels" / "val" / "b.txt", "\n".join(rows))
    found = imported(reader, source / "data.yaml", tmp_path / "out")["val"]["b"]
    assert found == [("cat", 0, 0, 50, 20), ("dog", 20, 10, 10, 20), ("cat", 20, 15, 10, 10), ("dog", 15, 15, 20, 10)]
    mask = load(tmp_path / "out" / "val.json")["annotations"][0]
    assert mask["segmentation"] == [[0, 0, 50, 0, 50, 20, 0, 20]]
    assert mask["area"] == 1000
    names = "kpt_shape: [2, 2]\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n"
    layouts.write(source / "data.yaml", names)  # then nine numbers are no polygon
    layouts.write(source / "labels" / "val" / "b.txt", "0 0.5 0.5 0.2 0.5 0.45 0.5 0.5 0.55")
    assert imported(reader, source, tmp_path / "out")["val"]["b"] == [("cat", 20, 10, 10, 20)]


@pytest.mark.parametrize("names", ["[no, on]", "{0: no, 1: on}", "\n  - no\n  - on", "\n  1: on\n  0: no"])
def test_yolo_class_names_are_the_words_that_are_written(names: str, tmp_path: Path) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    layouts.write(source / "data.yaml", f"train: images/train\nval: images/val\nnames: {names}\n")
    found = imported(reader, source, tmp_path / "out")
    assert found["val"]["b"] == [("no", 1, 2, 30, 20)]


def test_yolo_two_classes_of_one_name_stay_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    layouts.write(source / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, cat, '']\n")
    found = imported(reader, source, tmp_path / "out")["train"]["a"]
    assert found == [("cat", 5, 10, 20, 20), ("cat (1)", 20, 0, 30, 40)]
    assert "name of two classes: class 1, now 'cat (1)'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "said"), [(("", "b"), "number 0 has no name"), (("a", "a"), "'a' stands there twice")]
)
def test_yolo_names_that_the_user_gives_are_names(
    names: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    assert main(["import-data", reader, str(source), "--output", str(tmp_path / "out"), "--names", *names]) == 2
    assert "--names: the class " in (errors := capsys.readouterr().err)
    assert said in errors


def test_a_picture_is_found_under_any_spelling_of_its_name(tmp_path: Path) -> None:
    for name in ("my photo.jpg", "50%.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    pictures = Pictures(tmp_path)
    for name in ("my%20photo.jpg", "my%2520photo.png", "0A1B2C3D-my%20photo.jpg", "upload/1/0a1b2c3d-my photo.jpg"):
        assert pictures.find(name).name == "my photo.jpg"
    assert pictures.find("50%.jpg").name == "50%.jpg"
    for name in ("70%.jpg", "%zz.jpg", "0a1b2c3d-" * 3_000, "%" + "25" * 3_000):
        with pytest.raises(DataError, match="no such picture"):
            pictures.find(name)


def test_yolo_pixels_are_refused_unless_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    for split, pictures in layouts.SPLITS.items():
        for name, boxes in pictures.items():
            rows = [f"{layouts.NAMES.index(n)} {x + w / 2} {y + h / 2} {w} {h}\n" for n, x, y, w, h in boxes]
            layouts.write(source / "labels" / split / f"{name}.txt", "".join(rows))
    assert main(["import-data", reader, str(source), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "4 of 4 objects have coordinates such as" in message
    assert "add --pixels" in message
    assert imported(reader, source, tmp_path / "out", "--pixels") == layouts.SPLITS


def test_yolo_photographs_are_annotated_as_viewers_show_them(tmp_path: Path) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    layouts.save(source / "images" / "val" / "b.jpg", exif=exif)
    imported(reader, source, tmp_path / "out")
    image = load(tmp_path / "out" / "val.json")["images"][0]
    assert (image["width"], image["height"]) == (40, 50)


def test_yolo_folder_with_names(tmp_path: Path) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    (source / "data.yaml").unlink()
    assert imported(reader, source, tmp_path / "out", "--names", "cat", "dog") == layouts.SPLITS


def test_yolo_paths_of_another_computer(tmp_path: Path) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    text = "path: /content/somewhere\ntrain: /content/somewhere/images/train\nval: D:\\set\\images\\val\n"
    layouts.write(source / "data.yaml", text + "names: [cat, dog]\n")
    assert imported(reader, source, tmp_path / "out") == layouts.SPLITS


def test_windows_text_files(tmp_path: Path) -> None:
    reader, source = layouts.made("yolo", tmp_path)
    for path in source.rglob("*.txt"):
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-16"))
    data = (source / "data.yaml").read_text()
    layouts.write(source / "data.yaml", data.replace("\n", "\r\n"), "utf-8-sig")
    assert imported(reader, source, tmp_path / "out") == layouts.SPLITS


# -------------------------------------------------------------------- LabelMe, CVAT, Label Studio, COCO


def test_labelme_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("labelme", tmp_path)
    shapes = [
        layouts.labelme_shape("cat", (10, 10), (20, 10), (20, 20), kind="polygon"),
        layouts.labelme_shape("dog", (25, 20), (25, 25), kind="circle"),
        layouts.labelme_shape("dog", (1, 1), (3, 1), (3, 3), kind="polygon", group_id=1),
        layouts.labelme_shape("dog", (7, 7), (9, 7), (9, 9), kind="polygon", group_id=1),
        layouts.labelme_shape("cat", (5, 5), kind="point"),
    ]
    layouts.write(source / "val" / "b.json", layouts.labelme_json("b", shapes, imagePath="..\\x\\b.jpg"))
    found = imported(reader, source, tmp_path / "out")["val"]["b"]
    assert found == [("cat", 10, 10, 10, 10), ("dog", 20, 15, 10, 10), ("dog", 1, 1, 8, 8)]
    triangle, circle, pair = load(tmp_path / "out" / "val.json")["annotations"]
    assert triangle["area"] == 50
    assert circle["area"] == pytest.approx(math.pi * 25, rel=0.02)
    assert pair["segmentation"] == [[1, 1, 3, 1, 3, 3], [7, 7, 9, 7, 9, 9]]
    assert "1 x point, which has no area" in capsys.readouterr().out


def test_cvat_shapes(tmp_path: Path) -> None:
    reader, source = layouts.made("cvat", tmp_path)
    items = (
        layouts.cvat_box("cat", 10, 15, 20, 10, 'rotation="90.00"')
        + '<polygon label="dog" points="1.0,1.0;9.0,1.0;9.0,5.0"></polygon>'
        + '<ellipse label="cat" cx="25" cy="20" rx="10" ry="5"></ellipse>'
        + '<mask label="dog" rle="1, 29" left="3" top="4" width="5" height="6"></mask>'
        + '<points label="cat" points="1,1"></points><tag label="dog"></tag>'
    )
    layouts.write(source / "annotations.xml", layouts.cvat_xml(layouts.cvat_image("a", items)))
    found = imported(reader, source / "annotations.xml", tmp_path / "out", "--val", "0")["train"]["a"]
    assert found == [("cat", 15, 10, 10, 20), ("dog", 1, 1, 8, 4), ("cat", 15, 15, 20, 10), ("dog", 3, 4, 5, 6)]


def test_label_studio_shapes(tmp_path: Path) -> None:
    reader, source = layouts.made("label_studio", tmp_path)
    size = {"original_width": 50, "original_height": 40}
    turned = layouts.studio_result("cat", 20, 10, 20, 10)
    turned["value"]["rotation"] = 90  # about its first corner
    points = {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["dog"]}
    ellipse = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 25, "ellipselabels": ["cat"]}
    box = {"x": 0, "y": 0, "width": 10, "height": 10}
    results = [
        turned,
        {"id": "p", "type": "polygonlabels", "value": points, **size},
        {"id": "e", "type": "ellipselabels", "value": ellipse, **size},
        {"id": "r", "type": "rectangle", "value": box, **size},  # shape and label apart
        {"id": "r", "type": "labels", "value": {**box, "labels": ["dog"]}, **size},
        {"id": "k", "type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["cat"]}, **size},
    ]
    tasks = [layouts.studio_task("a", results), layouts.studio_task("b", [], 2, data={"image": "s3://x/b.jpg"})]
    layouts.write(source / "project.json", json.dumps(tasks))
    found = imported(reader, source / "project.json", tmp_path / "out", "--val", "0")["train"]
    assert found["a"] == [("cat", 10, 10, 10, 20), ("dog", 5, 4, 20, 16), ("cat", 20, 10, 10, 20), ("dog", 0, 0, 5, 4)]
    assert found["b"] == []


def test_label_studio_results_of_one_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("label_studio", tmp_path)
    three = [layouts.studio_result(name, x, 0, 5, 8, id="1") for name, x in (("cat", 0), ("dog", 10), ("cat", 20))]
    bare = {"id": "2", "type": "rectanglelabels", "value": {"rectanglelabels": ["dog"]}}  # the label of a box apart
    place = {"x": 0, "y": 0, "width": 10, "height": 10}
    box = {"id": "2", "type": "rectangle", "value": place}
    words = {"id": "2", "type": "textarea", "value": {**place, "text": ["an object"]}}
    tasks = [layouts.studio_task("a", three), layouts.studio_task("b", [bare, box, words], 2)]
    layouts.write(source / "project.json", json.dumps(tasks))
    found = imported(reader, source, tmp_path / "out", "--val", "0")["train"]
    assert found["a"] == [("cat", 0, 0, 5, 8), ("dog", 10, 0, 5, 8), ("cat", 20, 0, 5, 8)]
    assert found["b"] == [("dog", 0, 0, 5, 4)]
    assert "1 x id of several objects, all of which are taken: 1 of task 1 (3 objects)" in capsys.readouterr().out


def test_label_studio_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("label_studio", tmp_path)
    broken = layouts.studio_result("cat", 1, 1, 5, 5)
    del broken["value"]["width"]
    bare = {"id": "x", "type": "polygonlabels", "value": {"polygonlabels": ["dog"]}}
    tasks = [layouts.studio_task("a", [layouts.studio_result("cat", 1, 1, 5, 5)])]
    tasks += [layouts.studio_task("b", [broken], 2), layouts.studio_task("c", [bare], 3)]
    layouts.write(source / "project.json", json.dumps(tasks))
    assert list(imported(reader, source, tmp_path / "out", "--val", "0")["train"]) == ["a"]
    told = capsys.readouterr().out
    assert "1 x rectangle without `width`: " in told
    assert "1 x polygon without `points`: x of task 3" in told


def test_label_studio_says_what_it_chose_and_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, source = layouts.made("label_studio", tmp_path)
    two = layouts.studio_result("cat", 1, 1, 5, 5)
    two["value"]["rectanglelabels"] = ["cat", "dog"]
    brush = {"id": "m", "type": "brushlabels", "value": {"rle": [0], "brushlabels": ["dog"]}}
    tasks = [layouts.studio_task("a", [two]), layouts.studio_task("b", [two, brush], 2)]
    layouts.write(source / "project.json", json.dumps(tasks))
    assert list(imported(reader, source, tmp_path / "out", "--val", "0")["train"]) == ["a"]
    told = capsys.readouterr().out
    assert "2 x object with several labels, the first counts" in told
    assert "1 x brushlabels: a mask that is not read" in told


def test_label_studio_pictures_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "two"):
        for name in "abc":
            layouts.save(tmp_path / "twins" / folder / f"{name}.jpg")
    tasks = [layouts.studio_task(name, [layouts.studio_result("cat", 1, 1, 5, 5)], i) for i, name in enumerate("abc")]
    file = tmp_path / "twins" / "project.json"
    layouts.write(file, json.dumps(tasks))
    assert main(["import-data", "labelstudio", str(file), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.count("are called so") == 1
    assert "3 x task left out: several pictures below" in message
    assert "--images" in message
    assert imported("labelstudio", file, tmp_path / "out", "--val", "0", "--images", str(tmp_path / "twins" / "one"))


def test_label_studio_annotation_that_counts(tmp_path: Path) -> None:
    reader, source = layouts.made("label_studio", tmp_path)
    first, second, truth = ([layouts.studio_result("cat", x, 1, 5, 5)] for x in (1, 2, 3))
    several = layouts.studio_task("a", first)
    several["annotations"].append({"id": 9, "was_cancelled": False, "result": second})
    chosen = layouts.studio_task("b", first, 2)
    chosen["annotations"].insert(0, {"id": 8, "was_cancelled": False, "ground_truth": True, "result": truth})
    open_ = layouts.studio_task("c", [], 3, annotations=[])
    layouts.write(source / "project.json", json.dumps([several, chosen, open_]))
    found = imported(reader, source, tmp_path / "out", "--val", "0")["train"]
    assert found == {"a": [("cat", 2, 1, 5, 5)], "b": [("cat", 3, 1, 5, 5)]}  # `c` is unknown, not empty


def test_coco_categories_are_those_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, source = layouts.made("coco_cvat", tmp_path)
    file = source / "annotations" / "instances_val.json"
    content = load(file)
    content["categories"] = [{"id": "7", "name": "dog"}, {"id": 5, "name": "cat"}, {"id": 9, "name": "bird"}]
    for entry in content["annotations"]:
        entry["category_id"] = 5
    file.write_text(json.dumps(content))
    assert imported(reader, source, tmp_path / "out") == layouts.SPLITS
    assert "classes without objects: bird" in capsys.readouterr().out


VOC_A = "<annotation><object><name>cat</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
GOOD = layouts.labelme_shape("cat", (1, 1), (9, 9))
DAMAGED = {
    "voc": ("Annotations/a.xml", VOC_A.format("x12") + "</object></annotation>"),
    "yolo": ("labels/train/a.txt", "0 0.5 0.5 0.2"),
    "labelme": ("train/a.json", layouts.labelme_json("a", [GOOD, {**GOOD, "points": [["x", 1], [9, 9]]}])),
}


@pytest.mark.parametrize("layout", DAMAGED)
def test_a_picture_with_a_damaged_object_is_left_out(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, source = layouts.made(layout, tmp_path)
    file, content = DAMAGED[layout]
    assert (source / file).exists()
    layouts.write(source / file, content)
    found = imported(reader, source, tmp_path / "out")
    assert found == {**layouts.SPLITS, "train": {k: v for k, v in layouts.SPLITS["train"].items() if k != "a"}}
    told = capsys.readouterr().out
    assert "1 x picture left out: not all of its objects can be read: " in told
    assert "a.jpg" in (tmp_path / "out" / "skipped.txt").read_text()


def test_a_damaged_object_in_cvat_and_coco(tmp_path: Path) -> None:
    (tmp_path / "cvat").mkdir()
    (tmp_path / "coco").mkdir()
    reader, source = layouts.made("cvat", tmp_path / "cvat")
    bad = layouts.cvat_image("a", layouts.cvat_box("cat", 1, 1, 5, 5) + '<box label="cat" xtl="1"/>')
    good = layouts.cvat_image("my photo", layouts.cvat_box("dog", 1, 1, 5, 5))
    layouts.write(source / "annotations.xml", layouts.cvat_xml(bad + good))
    assert list(imported(reader, source, tmp_path / "a", "--val", "0")["train"]) == ["my photo"]
    reader, source = layouts.made("coco_cvat", tmp_path / "coco")
    file = source / "annotations" / "instances_train.json"
    content = load(file)
    first = next(image["id"] for image in content["images"] if image["file_name"].endswith("a.jpg"))
    next(a for a in content["annotations"] if a["image_id"] == first)["bbox"] = [1, 2, 3]
    file.write_text(json.dumps(content))
    assert list(imported(reader, source, tmp_path / "b")["train"]) == ["my photo"]


def test_another_size_leaves_the_picture_out_even_if_its_boxes_lie_in_it(tmp_path: Path) -> None:
    reader, source = layouts.made("voc", tmp_path)
    layouts.write(source / "Annotations" / "a.xml", layouts.voc_xml("a", [("cat", 1, 2, 9, 9)], size=(250, 40)))
    assert list(imported(reader, source, tmp_path / "out")["train"]) == ["my photo"]
    assert "a.jpg (250x40 stated, 50x40 there)" in (tmp_path / "out" / "skipped.txt").read_text()


def test_options_of_another_layout_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import-data", "labelme", str(tmp_path), "--output", str(tmp_path)]
    assert main([*words, "--count-from", "0"]) == 2
    assert "--count-from: is for voc alone" in capsys.readouterr().err
    assert main([*words, "--val", "1.5"]) == 2


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is not there")
def test_real_blood_cells(tmp_path: Path) -> None:
    assert main(["import-data", "voc", str(BCCD), "--output", str(tmp_path)]) == 0
    splits = {name: CocoSplit(str(BCCD / "JPEGImages"), f"{name}.json") for name in ("train", "val", "test")}
    small = DetrAugment(scales=(120,), long_side=160, crop_resize=(100,), crop_range=(80, 100))
    data = CocoDetection(**splits, root=str(tmp_path), batch_size=4, workers=0, augment=small, eval_short_side=120)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == ("Platelets", "RBC", "WBC")
    assert [len(data.dataset(name)) for name in ("train", "val", "test")] == [205, 87, 72]
    assert len(data.ground_truth("test")["annotations"]) == 945
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape[:2] == (4, 3)
    assert batch["num_targets"] > 4
