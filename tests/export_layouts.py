"""One small set in the layouts of the tools that people export from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[str, float, float, float, float]  # class, x, y, width, height, pixels

WIDTH, HEIGHT = 50, 40
NAMES = ("cat", "dog")
# file -> its objects; `my photo` has a blank, `c` has no objects
TRAIN: dict[str, list[Box]] = {
    "a": [("cat", 5, 10, 20, 20), ("dog", 20, 0, 30, 40)],
    "my photo": [("dog", 10, 4, 10, 8)],
}
VAL: dict[str, list[Box]] = {"b": [("cat", 1, 2, 30, 20)], "c": []}
SPLITS = {"train": TRAIN, "val": VAL}


def save(path: Path, width: int = WIDTH, height: int = HEIGHT, **options: Any) -> Path:
    """A picture file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path, **options)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """A text file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# -------------------------------------------------------------------- Pascal VOC


def voc_xml(file: str, boxes: list[Box], first: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """An annotation as VOC writes it (`first` 1), or with edges from 0."""
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x + first}</xmin><ymin>{y + first}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox></object>"
        for name, x, y, w, h in boxes
    )
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder><filename>{file}.jpg</filename>{stated}{rows}</annotation>"


def voc(root: Path) -> Path:
    """VOC itself, and CVAT's export of it."""
    for split, pictures in SPLITS.items():
        write(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in pictures))
        for name, boxes in pictures.items():
            save(root / "JPEGImages" / f"{name}.jpg")
            write(root / "Annotations" / f"{name}.xml", voc_xml(name, boxes))
    write(root / "ImageSets" / "Main" / "cat_train.txt", "a  1\nmy photo -1\n")
    return root


def voc_roboflow(root: Path) -> Path:
    """Roboflow: XML beside the pictures, in folders train and valid; edges from 0."""
    for split, pictures in SPLITS.items():
        for name, boxes in pictures.items():
            folder = root / {"val": "valid"}.get(split, split)
            save(folder / f"{name}.jpg")
            write(folder / f"{name}.xml", voc_xml(name, boxes, first=0))
    return root


def voc_label_studio(root: Path) -> Path:
    """Label Studio: Annotations and images, no lists."""
    for name, boxes in {**TRAIN, **VAL}.items():
        save(root / "images" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", voc_xml(name, boxes))
    return root


def voc_labelimg(root: Path) -> Path:
    """LabelImg: all in one folder."""
    for name, boxes in {**TRAIN, **VAL}.items():
        save(root / f"{name}.jpg")
        write(root / f"{name}.xml", voc_xml(name, boxes))
    return root


# -------------------------------------------------------------------- YOLO


def yolo_rows(boxes: list[Box]) -> str:
    """Rows of shares."""
    cells = [
        (NAMES.index(name), (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
        for name, x, y, w, h in boxes
    ]
    return "".join(" ".join(f"{v:.8g}" for v in row) + "\n" for row in cells)


def yolo(root: Path) -> Path:
    """Ultralytics: images/train, labels/train."""
    for split, pictures in SPLITS.items():
        for name, boxes in pictures.items():
            save(root / "images" / split / f"{name}.jpg")
            write(root / "labels" / split / f"{name}.txt", yolo_rows(boxes))
    write(root / "data.yaml", "path: .\ntrain: images/train\nval: [images/val]\ntest:\nnames: {0: cat, 1: dog}\n")
    return root


def yolo_roboflow(root: Path) -> Path:
    """Roboflow: train/images, and paths that climb out of the folder."""
    for split, pictures in SPLITS.items():
        folder = root / {"val": "valid"}.get(split, split)
        for name, boxes in pictures.items():
            save(folder / "images" / f"{name}.jpg")
            write(folder / "labels" / f"{name}.txt", yolo_rows(boxes))
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n")
    with open(root / "data.yaml", "a", encoding="utf-8") as file:
        file.write("names: ['cat', 'dog']\n\nroboflow:\n  version: 1\n")
    return root


def yolo_cvat(root: Path) -> Path:
    """CVAT's YOLO 1.1: Darknet's files."""
    for split, pictures in SPLITS.items():
        folder = f"obj_{split}_data"
        for name, boxes in pictures.items():
            save(root / folder / f"{name}.jpg")
            write(root / folder / f"{name}.txt", yolo_rows(boxes))
        write(root / f"{split}.txt", "".join(f"data/{folder}/{name}.jpg\n" for name in pictures))
    write(root / "obj.names", "cat\ndog\n")
    lines = "classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(root / "obj.data", lines)
    return root


def yolo_label_studio(root: Path) -> Path:
    """Label Studio: images, labels, classes.txt, notes.json."""
    for name, boxes in {**TRAIN, **VAL}.items():
        save(root / "images" / f"{name}.jpg")
        write(root / "labels" / f"{name}.txt", yolo_rows(boxes))
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}))
    return root


def yolo_links(root: Path) -> Path:
    """Ultralytics, whose picture folders are links, with lists of pictures."""
    for split, pictures in SPLITS.items():
        for name, boxes in pictures.items():
            save(root.parent / "elsewhere" / split / f"{name}.jpg")
            write(root / "labels" / split / f"{name}.txt", yolo_rows(boxes))
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / split).symlink_to(root.parent / "elsewhere" / split)
        write(root / f"{split}.txt", "".join(f"./images/{split}/{name}.jpg\n" for name in pictures))
    write(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    return root


# -------------------------------------------------------------------- LabelMe, CVAT, Label Studio, COCO


def labelme_shape(name: str, *points: tuple[float, float], kind: str = "rectangle", **more: Any) -> dict[str, Any]:
    """A shape of LabelMe's."""
    return {"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def labelme_json(file: str, shapes: list[Any], **changes: Any) -> str:
    """A file of LabelMe's."""
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{file}.jpg", "imageData": None}
    return json.dumps({**content, "imageHeight": HEIGHT, "imageWidth": WIDTH, **changes})


def labelme(root: Path) -> Path:
    """LabelMe: JSON beside the pictures."""
    for split, pictures in SPLITS.items():
        for name, boxes in pictures.items():
            save(root / split / f"{name}.jpg")
            shapes = [labelme_shape(n, (x + w, y + h), (x, y)) for n, x, y, w, h in boxes]  # from the lower right
            write(root / split / f"{name}.json", labelme_json(name, shapes))
    return root


def cvat_xml(images: str, labels: tuple[str, ...] = NAMES) -> str:
    """A file of CVAT's."""
    listed = "".join(f"<label><name>{name}</name><attributes/></label>" for name in labels)
    meta = f"<meta><task><id>1</id><labels>{listed}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'


def cvat_image(name: str, items: str, subset: str = "Train", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """One picture in it."""
    head = f'<image id="0" name="{name}.jpg" subset="{subset}" width="{size[0]}" height="{size[1]}">'
    return f"{head}{items}</image>"


def cvat_box(name: str, x: float, y: float, w: float, h: float, more: str = "") -> str:
    """One box in that."""
    sides = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"'
    return f'<box label="{name}" source="manual" occluded="0" {sides} z_order="0" {more}></box>'


def cvat(root: Path) -> Path:
    """CVAT for images 1.1."""
    images = ""
    for split, subset in (("train", "Train"), ("val", "Validation")):
        for name, boxes in SPLITS[split].items():
            save(root / "images" / subset / f"{name}.jpg")
            images += cvat_image(name, "".join(cvat_box(*box) for box in boxes), subset)
    write(root / "annotations.xml", cvat_xml(images))
    return root


def studio_result(name: str, x: float, y: float, w: float, h: float, **more: Any) -> dict[str, Any]:
    """One rectangle of Label Studio's, hundredths of the sides."""
    value = {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 100 * w / WIDTH, "height": 100 * h / HEIGHT}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    whole = {"value": {**value, "rotation": 0, "rectanglelabels": [name]}, "type": "rectanglelabels"}
    return {"id": f"{name}{x}{y}", "from_name": "label", "to_name": "image", **whole, **size, **more}


def studio_task(name: str, results: list[Any], number: int = 1, **changes: Any) -> dict[str, Any]:
    """One task."""
    address = f"/data/upload/3/1a2b3c4d-{name}.jpg"
    done = [{"id": number, "was_cancelled": False, "ground_truth": False, "result": results}]
    return {"id": number, "annotations": done, "data": {"image": address}, "predictions": [], **changes}


def label_studio(root: Path) -> Path:
    """Label Studio's JSON, with the pictures beside it."""
    tasks = []
    for name, boxes in {**TRAIN, **VAL}.items():
        save(root / "images" / f"{name}.jpg")
        tasks.append(studio_task(name, [studio_result(*box) for box in boxes], len(tasks) + 1))
    write(root / "project.json", json.dumps(tasks))
    return root


def label_studio_min(root: Path) -> Path:
    """Its JSON-MIN."""
    tasks = []
    for name, boxes in {**TRAIN, **VAL}.items():
        save(root / "images" / f"{name}.jpg")
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        labels = [{**studio_result(*box)["value"], **size} for box in boxes]
        tasks.append({"id": len(tasks) + 1, "image": f"/data/upload/3/1a2b3c4d-{name}.jpg", "label": labels})
    write(root / "min.json", json.dumps(tasks))
    return root


def coco_content(pictures: dict[str, list[Box]], prefix: str = "", root_category: bool = False) -> dict[str, Any]:
    """A dictionary in COCO's format; class ids from 1, image ids from 0."""
    images, annotations = [], []
    for key, (name, boxes) in enumerate(pictures.items()):
        images.append({"id": key, "file_name": f"{prefix}{name}.jpg", "width": WIDTH, "height": HEIGHT})
        for label, *bbox in boxes:
            entry = {"id": len(annotations), "image_id": key, "category_id": NAMES.index(label) + 1, "bbox": bbox}
            annotations.append({**entry, "area": bbox[2] * bbox[3], "iscrowd": 0, "segmentation": []})
    above = {"supercategory": "cat"} if root_category else {}
    categories = [{"id": i, "name": name, **above} for i, name in enumerate(NAMES, 1)]
    top = [{"id": 0, "name": "cat", "supercategory": "none"}] if root_category else []
    return {"images": images, "annotations": annotations, "categories": [*top, *categories]}


def coco_roboflow(root: Path) -> Path:
    """Roboflow: a file in each folder, whose first category is called as the project."""
    for split, pictures in SPLITS.items():
        folder = root / {"val": "valid"}.get(split, split)
        for name in pictures:
            save(folder / f"{name}.jpg")
        write(folder / "_annotations.coco.json", json.dumps(coco_content(pictures, root_category=True)))
    return root


def coco_cvat(root: Path) -> Path:
    """CVAT: annotations/instances_train.json, images/train."""
    for split, pictures in SPLITS.items():
        for name in pictures:
            save(root / "images" / split / f"{name}.jpg")
        write(root / "annotations" / f"instances_{split}.json", json.dumps(coco_content(pictures)))
    return root


def coco_label_studio(root: Path) -> Path:
    """Label Studio: result.json, and names with the upload's prefix."""
    everything = {**TRAIN, **VAL}
    for name in everything:
        save(root / "images" / f"{name}.jpg")
    write(root / "result.json", json.dumps(coco_content(everything, "images/1a2b3c4d-")))
    return root


# layout -> (reader, function that makes it, whether the export has splits)
LAYOUTS: dict[str, tuple[str, Callable[[Path], Path], bool]] = {
    "voc": ("voc", voc, True),
    "voc_roboflow": ("voc", voc_roboflow, True),
    "voc_label_studio": ("voc", voc_label_studio, False),
    "voc_labelimg": ("voc", voc_labelimg, False),
    "yolo": ("yolo", yolo, True),
    "yolo_roboflow": ("yolo", yolo_roboflow, True),
    "yolo_cvat": ("yolo", yolo_cvat, True),
    "yolo_label_studio": ("yolo", yolo_label_studio, False),
    "yolo_links": ("yolo", yolo_links, True),
    "labelme": ("labelme", labelme, True),
    "cvat": ("cvat", cvat, True),
    "label_studio": ("labelstudio", label_studio, False),
    "label_studio_min": ("labelstudio", label_studio_min, False),
    "coco_roboflow": ("coco", coco_roboflow, True),
    "coco_cvat": ("coco", coco_cvat, True),
    "coco_label_studio": ("coco", coco_label_studio, False),
}


def made(layout: str, root: Path) -> tuple[str, Path]:
    """The reader of a layout, and the set in it, below a folder."""
    reader, make, _ = LAYOUTS[layout]
    folder = root / "my set"  # a blank in the path is everyday
    folder.mkdir()
    return reader, make(folder)
