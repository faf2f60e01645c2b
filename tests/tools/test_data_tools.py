"""The converters, run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vistrain.data import CocoDetection, CocoSplit, DetrAugment

TOOLS = Path(__file__).parents[2] / "tools"
BCCD = Path(__file__).parents[3] / "shared" / "samples" / "bccd"


def run(tool: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def save(path: Path, width: int = 50, height: int = 40, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, **options)


def voc_xml(*objects: tuple[str, float, float, float, float, int], size: tuple[int, int] = (50, 40)) -> str:
    rows = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom, difficult in objects
    )
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>x.jpg</filename>{stated}{rows}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("b", "a", "c"):
        save(root / "JPEGImages" / f"{name}.jpg")
    (root / "Annotations" / "a.xml").write_text(voc_xml(("dog", 1, 1, 50, 40, 0), ("cat", 11, 21, 20, 30, 1)))
    (root / "Annotations" / "b.xml").write_text(voc_xml(("cat", 5, 5, 4, 9, 0), ("cat", 5, 5, 3, 9, 0)))
    (root / "Annotations" / "c.xml").write_text(voc_xml())
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\na\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("b  1\na -1\n")
    return root


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_voc(voc: Path, tmp_path: Path) -> None:
    done = run("voc_to_coco.py", voc, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.json", "val.json"]
    train = load(tmp_path / "out" / "train.json")
    assert train["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in train["images"]] == [
        (1, "a.jpg", 50, 40),
        (2, "b.jpg", 50, 40),
    ]
    found = [(a["image_id"], a["category_id"], a["bbox"], a["iscrowd"]) for a in train["annotations"]]
    assert found == [(1, 2, [0, 0, 50, 40], 0), (1, 1, [10, 20, 10, 10], 1)]  # both flat boxes are left out
    assert "2 images, 2 objects (1 to be ignored, 2 boxes without area left out): cat 1, dog 1" in done.stdout
    assert load(tmp_path / "out" / "val.json")["images"][0]["id"] == 3
    assert f"train: {{images: {voc / 'JPEGImages'}, annotations: train.json}}" in done.stdout


def test_voc_options(voc: Path, tmp_path: Path) -> None:
    done = run("voc_to_coco.py", voc, "--output", tmp_path, "--splits", "train", "--difficult", "keep", "--edges")
    assert done.returncode == 0, done.stderr
    boxes = [(a["bbox"], a["iscrowd"]) for a in load(tmp_path / "train.json")["annotations"]]
    assert boxes == [([1, 1, 49, 39], 0), ([11, 21, 9, 9], 0)]
    assert not (tmp_path / "val.json").exists()
    run("voc_to_coco.py", voc, "--output", tmp_path, "--difficult", "drop", "--images", voc)
    assert len(load(tmp_path / "train.json")["annotations"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "JPEGImages" / "a.jpg").unlink(), "a.jpg: no such image file"),
        (lambda root: (root / "Annotations" / "b.xml").unlink(), "b.xml: no such annotation file"),
        (lambda root: (root / "Annotations" / "b.xml").write_text("<annotation>"), "b.xml: not valid XML"),
        (lambda root: (root / "JPEGImages" / "a.jpg").write_bytes(b"x"), "a.jpg: not a readable image"),
        (
            lambda root: (root / "Annotations" / "b.xml").write_text(voc_xml(("cat", "?", 1, 2, 3, 0))),  # type: ignore[arg-type]
            "object 'cat' has xmin '?', not a number",
        ),
        (lambda root: (root / "ImageSets" / "Main" / "val.txt").write_text("c\nc\n"), "c is listed more than once"),
        (lambda root: (root / "Annotations").rename(root / "x"), "Annotations: no such folder; is"),
    ],
)
def test_voc_names_what_is_wrong(voc: Path, tmp_path: Path, change: Any, message: str) -> None:
    change(voc)
    done = run("voc_to_coco.py", voc, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_voc_unknown_split(voc: Path, tmp_path: Path) -> None:
    done = run("voc_to_coco.py", voc, "--output", tmp_path / "out", "--splits", "tests")
    assert done.returncode == 2
    assert "tests.txt: no such list; there are: train, val" in done.stderr


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for name in ("train/2.jpg", "train/1.png", "val/3.jpg"):
        save(root / "images" / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "images" / "val" / "4.jpg", exif=exif)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "val").mkdir()
    (root / "labels" / "train" / "1.txt").write_text("1 0.5 0.5 0.2 0.5\n0 0.1 0.25 0.2 0.5\n\n")
    (root / "labels" / "val" / "4.txt").write_text("0 0 0 1 0 1 0.5 0 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: [images/val]\ntest:\nnames: {0: cat, 1: dog}\n")
    return root


def check_yolo(out: Path) -> None:
    train, val = load(out / "train.json"), load(out / "val.json")
    assert train["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(i["id"], i["file_name"]) for i in train["images"]] == [(1, "train/1.png"), (2, "train/2.jpg")]
    assert [(a["category_id"], a["bbox"]) for a in train["annotations"]] == [(2, [20, 10, 10, 20]), (1, [0, 0, 10, 20])]
    assert [(i["file_name"], i["width"], i["height"]) for i in val["images"]] == [
        ("val/3.jpg", 50, 40),
        ("val/4.jpg", 40, 50),
    ]
    mask = val["annotations"][0]
    assert mask["bbox"] == [0, 0, 40, 25]
    assert mask["segmentation"] == [[0, 0, 40, 0, 40, 25, 0, 25]]


def test_yolo_data_file_and_folder(yolo: Path, tmp_path: Path) -> None:
    done = run("yolo_to_coco.py", yolo / "data.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    check_yolo(tmp_path / "out")
    done = run("yolo_to_coco.py", yolo, "--names", "cat", "dog", "--output", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    check_yolo(tmp_path / "again")
    data = CocoDetection(
        CocoSplit(str(yolo / "images"), "train.json"),
        CocoSplit(str(yolo / "images"), "val.json"),
        root=str(tmp_path / "out"),
    )
    assert data.dataset("val").read(1).image.shape == (50, 40, 3)  # the EXIF-turned one


def test_yolo_list_files(yolo: Path, tmp_path: Path) -> None:
    (yolo / "some.txt").write_text("images/train/1.png\nimages/val/3.jpg\n")
    (yolo / "data.yaml").write_text("path: .\ntrain: some.txt\nval: some.txt\nnames: [cat, dog]\n")
    done = run("yolo_to_coco.py", yolo / "data.yaml", "--output", tmp_path / "out", "--images", yolo)
    assert done.returncode == 0, done.stderr
    files = [i["file_name"] for i in load(tmp_path / "out" / "train.json")["images"]]
    assert files == ["images/train/1.png", "images/val/3.jpg"]


@pytest.mark.parametrize(
    ("label", "data", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", None, "1.txt, line 1: class 2, but there are 2 names"),
        ("0 0.5 0.5 0.1", None, "line 1: 4 numbers; 5 are needed"),
        ("0 0.5 0.5 0.1 x", None, "is not a row of numbers"),
        ("0 0.5 nan 0.1 0.1", None, "not finite"),
        (None, "train: images/train\n", "has no 'names'"),
        (None, "names: [a]\ntrain: nowhere\n", "nowhere: no such image folder or list"),
        (None, "names: {1: a}\ntrain: images/train\n", "class numbers [1] do not count from 0"),
        (None, "names: [a\n", "not valid YAML"),
    ],
)
def test_yolo_names_what_is_wrong(
    yolo: Path, tmp_path: Path, label: str | None, data: str | None, message: str
) -> None:
    if label is not None:
        (yolo / "labels" / "train" / "1.txt").write_text(label)
    if data is not None:
        (yolo / "data.yaml").write_text(data)
    done = run("yolo_to_coco.py", yolo / "data.yaml", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is not there")
def test_real_blood_cells_convert_and_load(tmp_path: Path) -> None:
    done = run("voc_to_coco.py", BCCD, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
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
