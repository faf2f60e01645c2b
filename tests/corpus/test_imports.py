"""Damaged exports: each is read as far as it can be, with a word on the rest, or refused in one line."""

# ruff: noqa: E501  a table is read by its columns

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_layouts as layouts
import pytest
from export_layouts import (
    cvat_box,
    cvat_image,
    cvat_xml,
    labelme_json,
    labelme_shape,
    save,
    studio_result,
    studio_task,
    voc_xml,
    write,
)

from vistrain.cli import main
from vistrain.data.coco.reader import read_coco

Change = Callable[[Path], Any]
DEEP = "[" * 5_000
BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


def text(name: str, content: str, encoding: str = "utf-8") -> Change:
    """Another content of a file."""
    return lambda root: write(root / name, content, encoding)


def raw(name: str, content: bytes) -> Change:
    """Other bytes of a file."""
    return lambda root: (root / name).write_bytes(content)


def gone(name: str) -> Change:
    """Without a file or folder."""
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def swapped(name: str, old: str, new: str) -> Change:
    """Other words in a file."""

    def change(root: Path) -> None:
        content = (root / name).read_text()
        assert old in content
        write(root / name, content.replace(old, new))

    return change


def rows(*lines: str) -> Change:
    """Other labels of the picture `b` of Ultralytics' layout."""
    return text("labels/val/b.txt", "\n".join(lines))


def tasks(*content: Any) -> Change:
    """Another project of Label Studio's."""
    return text("project.json", json.dumps([studio_task("a", [studio_result("dog", 1, 1, 9, 9)]), *content]))


def shapes(*content: Any, **changes: Any) -> Change:
    """Other shapes of the picture `b` of LabelMe's layout."""
    return text("val/b.json", labelme_json("b", list(content), **changes))


def items(*content: str, **changes: Any) -> Change:
    """A CVAT file of `a` with a good box and others."""
    return text("annotations.xml", cvat_xml(cvat_image("a", cvat_box("dog", 1, 1, 9, 9) + "".join(content), **changes)))


def coco(change: Callable[[dict[str, Any]], Any]) -> Change:
    """A changed file of Roboflow's COCO layout."""

    def apply(root: Path) -> None:
        content = json.loads((root / "valid" / "_annotations.coco.json").read_text())
        change(content)
        (root / "valid" / "_annotations.coco.json").write_text(json.dumps(content))

    return apply


def pipe(name: str) -> Change:
    """A pipe in place of a file: who opens it as a file waits for ever."""

    def apply(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return apply


def circle(root: Path) -> None:
    """A link that leads back."""
    (root / "images" / "again").symlink_to(root, target_is_directory=True)


def split_in_two(root: Path) -> None:
    """Two sets in one folder."""
    shutil.copytree(root, root / "VOC2007")
    shutil.copytree(root / "VOC2007", root / "VOC2012")
    shutil.rmtree(root / "Annotations")


# layout, what is done to it, what is said; exit code 0 unless the words begin with `error:`
CASES: dict[str, tuple[str, Change, str]] = {
    # Pascal VOC
    "voc: list with flags": ("voc", text("ImageSets/Main/train.txt", "a  1\nmy photo -1\n"), "train.json: 2 images, 3 objects"),
    "voc: list with folders": ("voc", text("ImageSets/Main/train.txt", "JPEGImages/a.jpg\n.\\JPEGImages\\my photo.jpg\n"), "train.json: 2 images, 3 objects"),
    "voc: list of a class": ("voc", text("ImageSets/Main/cat_train.txt", "b 1\n"), "train.json: 2 images, 3 objects"),
    "voc: number too large": ("voc", swapped("Annotations/b.xml", "<xmax>31<", "<xmax>1e300<"), "reaches outside its picture, cut"),
    "voc: comma in a number": ("voc", swapped("Annotations/b.xml", "<xmax>31<", "<xmax>30,5<"), "bndbox is not four numbers"),
    "voc: picture gone": ("voc", gone("JPEGImages/b.jpg"), "annotation left out: no such picture"),
    "voc: pictures gone": ("voc", lambda r: [p.unlink() for p in (r / "JPEGImages").iterdir()], "error: holds no pictures"),
    "voc: xml gone": ("voc", gone("Annotations/b.xml"), "left out with its picture: no such annotation file: b.xml"),
    "voc: xml cut off": ("voc", text("Annotations/b.xml", "<annotation><obj"), "not valid XML"),
    "voc: xml empty": ("voc", text("Annotations/b.xml", ""), "not valid XML"),
    "voc: xml of zeros": ("voc", raw("Annotations/b.xml", bytes(99)), "not valid XML"),
    "voc: xml of another kind": ("voc", text("Annotations/b.xml", "<a/>"), "its root is <a>, not <annotation>"),
    "voc: entities": ("voc", text("Annotations/b.xml", BOMB), "declares a document type"),
    "voc: unknown encoding": ("voc", text("Annotations/b.xml", '<?xml version="1.0" encoding="x"?><a/>'), "unknown encoding"),
    "voc: encoding of bytes": ("voc", text("Annotations/b.xml", '<?xml version="1.0" encoding="hex"?><a/>'), "not readable as hex"),
    "voc: encoding that refuses all": ("voc", text("Annotations/b.xml", '<?xml version="1.0" encoding="undefined"?><a/>'), "not readable as undefined"),
    "voc: encoding of addresses": ("voc", text("Annotations/b.xml", '<?xml version="1.0" encoding="punycode"?><a/>'), "punycode"),
    "voc: wrong encoding": ("voc", raw("Annotations/b.xml", voc_xml("é", []).encode("latin-1")), "not a text file"),
    "voc: mark before the XML": ("voc", text("Annotations/b.xml", voc_xml("b", [("cat", 1, 2, 30, 20)]), "utf-8-sig"), "cat 1"),
    "voc: UTF-16": ("voc", text("Annotations/b.xml", voc_xml("b", [("cat", 1, 2, 30, 20)]), "utf-16"), "cat 1"),
    "voc: xmin is text": ("voc", swapped("Annotations/a.xml", "<xmin>6", "<xmin>?"), "not four numbers: cat in a.xml"),
    "voc: xmin is infinite": ("voc", swapped("Annotations/a.xml", "<xmin>6", "<xmin>inf"), "not four numbers"),
    "voc: xmin of 400 digits": ("voc", swapped("Annotations/a.xml", "<xmin>6", "<xmin>" + "9" * 400), "not four numbers"),
    "voc: no xmin": ("voc", swapped("Annotations/a.xml", "<xmin>6</xmin>", ""), "not four numbers"),
    "voc: no bndbox": ("voc", swapped("Annotations/a.xml", "bndbox", "robndbox"), "2 x object whose bndbox"),
    "voc: no class": ("voc", swapped("Annotations/a.xml", "<name>cat</name>", ""), "without a class name"),
    "voc: corners swapped": ("voc", swapped("Annotations/a.xml", "<xmax>25", "<xmax>2"), "object that ends before it begins: cat in a.jpg"),
    "voc: box outside": ("voc", swapped("Annotations/a.xml", "<ymax>40", "<ymax>4000"), "reaches outside its picture, cut"),
    "voc: far outside": ("voc", swapped("Annotations/a.xml", "<ymax>40", "<ymax>1e300"), "cut: dog in a.jpg"),
    "voc: same object twice": ("voc", text("Annotations/b.xml", voc_xml("b", [("cat", 1, 2, 9, 9)] * 2)), "there twice, taken once"),
    "voc: listed twice": ("voc", text("ImageSets/Main/val.txt", "b\nb\n"), "listed more than once in val.txt"),
    "voc: names with suffixes in the lists": ("voc", text("ImageSets/Main/val.txt", "b.jpg\n"), "cat 1"),
    "voc: no lists": ("voc", lambda r: [p.unlink() for p in (r / "ImageSets" / "Main").iterdir()], "error: holds no lists"),
    "voc: two sets": ("voc", split_in_two, "error: holds 2 sets"),
    "voc: picture damaged": ("voc", raw("JPEGImages/b.jpg", b"\xff\xd8\xff"), "picture left out: not an image"),
    "voc: picture empty": ("voc", raw("JPEGImages/b.jpg", b""), "picture left out"),
    "voc: picture is a pipe": ("voc", pipe("JPEGImages/b.jpg"), "picture left out"),
    "voc: xml is a pipe": ("voc", pipe("Annotations/b.xml"), "no such annotation file"),
    "voc: stated size wrong": ("voc", text("Annotations/b.xml", voc_xml("b", [("cat", 1, 2, 9, 9)], size=(0, 0))), "cat 1"),
    "voc: half of what it was": ("voc", text("Annotations/b.xml", voc_xml("b", [("cat", 1, 2, 9, 9)], size=(100, 80))), "another size than when"),
    "voc: another size": ("voc", text("Annotations/b.xml", voc_xml("b", [("cat", 1, 2, 9, 9)], size=(500, 400))), "(500x400 stated, 50x40 there)"),
    "voc: shrunk since": ("voc", text("Annotations/b.xml", voc_xml("b", [("cat", 90, 90, 90, 90)], size=(500, 400))), "another size than when"),
    "voc: classes that differ in case": ("voc", swapped("Annotations/a.xml", "cat", "Cat"), "classes of nearly one name"),
    "voc: unlabelled picture": ("voc_labelimg", lambda r: save(r / "x.jpg"), "picture without an annotation file, left out: x.jpg"),
    "voc: no XML": ("voc_labelimg", lambda r: [p.unlink() for p in r.glob("*.xml")], "error: holds no XML files"),
    "voc: no objects": ("voc_labelimg", lambda r: [write(p, voc_xml(p.stem, [])) for p in r.glob("*.xml")], "error: not one object"),
    "voc: not there": ("voc", lambda r: shutil.rmtree(r), "error: no such folder"),
    # YOLO
    "yolo: class out of range": ("yolo", rows("0 0.5 0.5 0.2 0.2", "2 0.5 0.5 0.1 0.1"), "class 2, but there is no name for it"),
    "yolo: negative class": ("yolo", rows("0 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.1 0.1"), "class -1, but there is no name for it"),
    "yolo: class of 0.5": ("yolo", rows("0 0.5 0.5 0.2 0.2", "0.5 0.5 0.5 0.1 0.1"), "class 0.5, but"),
    "yolo: four numbers": ("yolo", rows("0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.1"), "row of 4 numbers"),
    "yolo: eight numbers": ("yolo", rows("0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.1 0.1 0.1 0.1 0.7"), "row of 8 numbers"),
    "yolo: a word": ("yolo", rows("0 0.5 0.5 0.2 0.2", "cat 0.5 0.5 0.1 0.1"), "not of finite numbers: labels/val/b.txt, line 2"),
    "yolo: nan": ("yolo", rows("0 0.5 0.5 0.2 0.2", "0 0.5 nan 0.1 0.1"), "not of finite numbers"),
    "yolo: commas": ("yolo", rows("0,0.5,0.5,0.2,0.2"), "not of finite numbers"),
    "yolo: some pixels": ("yolo", rows("0 0.5 0.5 0.2 0.2", "0 300 200 40 40"), "far outside 0..1"),
    "yolo: no width": ("yolo", rows("0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0 0.1"), "without area in its picture"),
    "yolo: same row twice": ("yolo", rows("0 0.5 0.5 0.2 0.2", "0 0.5  0.5 0.2 0.2"), "row that is there twice"),
    "yolo: not text": ("yolo", raw("labels/val/b.txt", b"\x80\x81"), "label file is not a text file"),
    "yolo: label gone": ("yolo", gone("labels/val/b.txt"), "taken as one without objects: images/val/b.jpg"),
    "yolo: labels gone": ("yolo", gone("labels"), "error: none of 4 pictures has a label file"),
    "yolo: label without a picture": ("yolo", text("labels/val/x.txt", ""), "label file without a picture, skipped: x.txt"),
    "yolo: label is a pipe": ("yolo", pipe("labels/val/b.txt"), "b.jpg"),
    "yolo: picture damaged": ("yolo", raw("images/val/b.jpg", b"x"), "picture left out"),
    "yolo: split gone": ("yolo", gone("images/val"), "split whose folder or list is not there, skipped: val (images/val)"),
    "yolo: pictures gone": ("yolo", gone("images"), "error: not there: train: images/train"),
    "yolo: no names": ("yolo", text("data.yaml", "train: images/train\n"), "error: has no list `names`"),
    "yolo: names is a word": ("yolo", text("data.yaml", "train: images/train\nnames: cat\n"), "error: has no list `names`"),
    "yolo: names of names": ("yolo", text("data.yaml", "train: images/train\nnames: [[cat]]\n"), "error: has no list `names`"),
    "yolo: names from 1": ("yolo", text("data.yaml", "train: images/train\nnames: {1: a}\n"), "error: class numbers 1 do not count"),
    "yolo: nc alone": ("yolo", text("data.yaml", "train: images/train\nnc: 2\n"), "class_0 1"),
    "yolo: nc differs": ("yolo", swapped("data.yaml", "test:", "nc: 7"), "`nc` is not the number of `names`"),
    "yolo: not YAML": ("yolo", text("data.yaml", "names: [a\n"), "error: not valid YAML"),
    "yolo: YAML of a list": ("yolo", text("data.yaml", "- a\n"), "error: holds no keys"),
    "yolo: empty YAML": ("yolo", text("data.yaml", ""), "error: holds no keys"),
    "yolo: deep YAML": ("yolo", text("data.yaml", "a: " + DEEP[:1000]), "error: not valid YAML"),
    "yolo: split is a map": ("yolo", text("data.yaml", "train: [{a: b}]\nnames: [a]\n"), "error: {'a': 'b'} is no folder"),
    "yolo: path elsewhere": ("yolo", swapped("data.yaml", "path: .", "path: /content/x"), "`path` of the data file is not there"),
    "yolo: link in a circle": ("yolo_label_studio", circle, "train.json: 3 images, 3 objects"),
    "yolo: no data file": ("yolo_label_studio", gone("classes.txt"), "error: no class names"),
    "yolo: too few classes": ("yolo_label_studio", text("classes.txt", "cat\n"), "class 1, but there is no name for it (classes: cat)"),
    "yolo: listed picture gone": ("yolo_links", text("val.txt", "./images/val/b.jpg\n./x.jpg\n"), "picture of val.txt that is not there"),
    "yolo: no names file": ("yolo_cvat", gone("obj.names"), "error: its names file data/obj.names is not there"),
    # LabelMe
    "labelme: picture gone": ("labelme", gone("val/b.jpg"), "annotation left out: no such picture"),
    "labelme: picture in the JSON alone": ("labelme", lambda r: (gone("val/b.jpg")(r), shapes(imageData="aGk=")(r)), "in the JSON alone"),
    "labelme: a pipe": ("labelme", pipe("val/b.json"), "left out with its picture"),
    "labelme: cut off": ("labelme", text("val/b.json", '{"shapes": ['), "not valid JSON"),
    "labelme: deep": ("labelme", text("val/b.json", DEEP), "left out with its picture"),
    "labelme: a list": ("labelme", text("val/b.json", "[]"), "has no list `shapes`"),
    "labelme: shapes of null": ("labelme", text("val/b.json", '{"shapes": null}'), "has no list `shapes`"),
    "labelme: shape is a word": ("labelme", shapes("x"), "shape without a label"),
    "labelme: label of null": ("labelme", shapes(labelme_shape(None, (1, 1), (9, 9))), "shape without a label"),  # type: ignore[arg-type]
    "labelme: half a pair as a label": ("labelme", shapes(labelme_shape("\ud800", (1, 1), (9, 9))), "error: the class '\\\\ud800' has a name that is no text"),
    "labelme: points of null": ("labelme", shapes({**labelme_shape("cat"), "points": None}), "points cannot be read"),
    "labelme: one point": ("labelme", shapes(labelme_shape("cat", (1, 1))), "rectangle whose points cannot be read"),
    "labelme: points of three": ("labelme", shapes(labelme_shape("cat", (1, 1, 1), (9, 9, 9))), "points cannot be read"),  # type: ignore[arg-type]
    "labelme: points of text": ("labelme", shapes(labelme_shape("cat", ("a", 1), (9, 9))), "points cannot be read"),  # type: ignore[arg-type]
    "labelme: NaN": ("labelme", shapes(labelme_shape("cat", (float("nan"), 1), (9, 9))), "points cannot be read"),
    "labelme: two points of a polygon": ("labelme", shapes(labelme_shape("cat", (1, 1), (9, 9), kind="polygon")), "polygon whose points"),
    "labelme: line": ("labelme", shapes(labelme_shape("cat", (1, 1), (9, 9), kind="line")), "line, which has no area"),
    "labelme: another size": ("labelme", shapes(labelme_shape("cat", (90, 90), (99, 99)), imageWidth=500, imageHeight=400), "another size"),
    "labelme: name of another computer": ("labelme", shapes(imagePath="C:\\Users\\me\\b.jpg"), "cat 1"),
    "labelme: huge number": ("labelme", text("val/b.json", labelme_json("b", []).replace("40", "9" * 5000)), "left out with its picture"),
    # CVAT
    "cvat: unknown label": ("cvat", items(cvat_box("bird", 1, 1, 5, 5)), "error: label that the file does not list: bird in a.jpg"),
    "cvat: number is text": ("cvat", items(cvat_box("cat", 1, 1, 5, 5).replace("1.00", "x", 1)), "error: box whose numbers cannot be read"),
    "cvat: no number": ("cvat", items('<box label="cat" xtl="1"/>'), "error: box whose numbers cannot be read"),
    "cvat: polygon of words": ("cvat", items('<polygon label="cat" points="a,b;c,d;e,f"/>'), "error: polygon whose numbers"),
    "cvat: skeleton": ("cvat", items('<skeleton label="cat"/>'), "skeleton, which is no object with an area"),
    "cvat: unknown thing": ("cvat", items('<thing label="cat"/>'), "<thing>, which is not known"),
    "cvat: picture gone": ("cvat", gone("images/Validation/b.jpg"), "picture left out: no such picture"),
    "cvat: no pictures": ("cvat", gone("images"), "error: holds no pictures"),
    "cvat: video": ("cvat", text("annotations.xml", cvat_xml('<track id="0" label="cat"/>')), "error: holds the tracks of a video"),
    "cvat: VOC": ("cvat", text("annotations.xml", voc_xml("a", [])), "error: its root is <annotation>"),
    "cvat: gone": ("cvat", gone("annotations.xml"), "error: holds 0 XML files"),
    "cvat: a pipe": ("cvat", pipe("annotations.xml"), "error: cannot be read"),
    "cvat: another size": ("cvat", items(cvat_box("cat", 90, 90, 9, 9), size=(500, 400)), "error: not one object in 0 pictures"),
    # Label Studio
    "studio: number is text": ("label_studio", tasks(studio_task("b", [studio_result("cat", 1, 1, 5, 5, value={"x": "?", "y": 1, "width": 1, "height": 1, "rectanglelabels": ["cat"]})])), "rectangle whose numbers"),
    "studio: no label": ("label_studio", tasks(studio_task("b", [studio_result("", 1, 1, 5, 5)])), "object without a label"),
    "studio: brush": ("label_studio", tasks(studio_task("b", [{"type": "brushlabels", "value": {"format": "rle", "rle": [1], "brushlabels": ["cat"]}}])), "brushlabels: a mask that is not read"),
    "studio: result of words": ("label_studio", tasks(studio_task("b", ["x", None])), "dog 1"),
    "studio: skipped task": ("label_studio", tasks(studio_task("b", [], annotations=[{"was_cancelled": True, "result": []}])), "task that nobody annotated"),
    "studio: annotations of null": ("label_studio", tasks(studio_task("b", [], annotations=None)), "task that nobody annotated"),
    "studio: annotations are a number": ("label_studio", tasks(studio_task("b", [], annotations=5)), "task whose annotations are no list"),
    "studio: annotations are a flag": ("label_studio", tasks(studio_task("b", [], annotations=True)), "task whose annotations are no list"),
    "studio: name with a percent sign": ("label_studio", tasks(studio_task("50%", [])), "task left out: no such picture"),
    "studio: upload in capitals": ("label_studio", tasks(studio_task("0A1B2C3D-x", [])), "task left out: no such picture"),
    "studio: text": ("label_studio", tasks(studio_task("b", [], data={"text": "hello"})), "task without a picture"),
    "studio: turned by hand": ("label_studio", tasks(studio_task("b", [studio_result("cat", 1, 1, 5, 5, image_rotation=90)])), "turned by hand"),
    "studio: picture gone": ("label_studio", tasks(studio_task("x", [])), "task left out: no such picture"),
    "studio: a dictionary": ("label_studio", text("project.json", "{}"), "error: holds no list of tasks"),
    "studio: list of numbers": ("label_studio", text("project.json", "[1]"), "error: holds no list of tasks"),
    "studio: cut off": ("label_studio", text("project.json", '[{"id"'), "error: not valid JSON"),
    "studio: two files": ("label_studio", text("more.json", "[]"), "error: holds 2 JSON files"),
    # COCO
    "coco: category gone": ("coco_roboflow", coco(lambda c: c["categories"].pop()), "cat"),
    "coco: unknown category": ("coco_roboflow", coco(lambda c: c["annotations"][0].update(category_id=77)), "category that is not listed"),
    "coco: unknown picture": ("coco_roboflow", coco(lambda c: c["annotations"][0].update(image_id=77)), "picture that is not listed"),
    "coco: bbox of text": ("coco_roboflow", coco(lambda c: c["annotations"][0].update(bbox=["a", 1, 2, 3])), "not four numbers"),
    "coco: bbox of null": ("coco_roboflow", coco(lambda c: c["annotations"][0].update(bbox=None)), "not four numbers"),
    "coco: annotation is a word": ("coco_roboflow", coco(lambda c: c["annotations"].append("x")), "picture that is not listed"),
    "yolo: rows with commas": ("yolo", rows("0,0.5,0.5,0.2,0.2", "1,0.5,0.5,0.1,0.1"), "picture left out: not all of its objects can be read: val/b.jpg"),
    "yolo: split of nothing": ("yolo", swapped("data.yaml", "train: ", "test:\ntrain: "), "split without a folder or list, skipped: test"),
    "coco: picture without a name": ("coco_roboflow", coco(lambda c: c["images"].append({"id": 7})), "without a name or an id"),
    "coco: id of two pictures": ("coco_roboflow", coco(lambda c: c["images"].append(c["images"][0])), "picture with the id of another one"),
    "coco: id of two categories": ("coco_roboflow", coco(lambda c: c["categories"].append(c["categories"][0])), "error: category"),
    "coco: ids of text": ("coco_roboflow", coco(lambda c: c["images"][0].update(id="0")), "cat 1"),
    "coco: id of 400 digits": ("coco_roboflow", coco(lambda c: c["images"][0].update(id=10**400)), "picture without a name or an id"),
    "coco: not JSON": ("coco_roboflow", text("valid/_annotations.coco.json", "{"), "file left out: not valid JSON"),
    "coco: results": ("coco_roboflow", text("valid/_annotations.coco.json", "[]"), "file left out: has no lists"),
    "coco: no pictures": ("coco_roboflow", lambda r: [p.unlink() for p in r.rglob("*.jpg")], "error: holds no pictures"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_export_is_read_or_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, change, said = CASES[case]
    reader, source = layouts.made(layout, tmp_path)
    change(source)
    code = main(["import-data", reader, str(source), "--output", str(tmp_path / "out")])
    streams = capsys.readouterr()
    if said.startswith("error: "):
        assert code == 2
        assert said.removeprefix("error: ") in streams.err
        assert streams.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
    else:
        assert (code, streams.err) == (0, "")
        assert said in streams.out
        for file in (tmp_path / "out").glob("*.json"):
            assert not read_coco(file).problems
