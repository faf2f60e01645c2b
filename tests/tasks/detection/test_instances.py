"""Instance masks from the command line: trained, resumed, tested, checked, predicted, and measured again from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import assert_resumed_is_undisturbed, rows, trained_folder
from PIL import Image
from pycocotools import mask as mask_tools

from vistrain.cli import main
from vistrain.data import CocoDetection, CocoSplit
from vistrain.detection.seams import joined
from vistrain.errors import ConfigError, DataError
from vistrain.layers.packed_masks import PackedMasks
from vistrain.metrics import CocoMask
from vistrain.predictions import Detections, InstanceDetections
from vistrain.run.predict import load_predictor
from vistrain.structures import LabelSpace
from vistrain.tasks.base.ahead import metric_of
from vistrain.tasks.detection.evaluate import evaluate_file

CONFIG = """
base: vistrain:demo/instances
data:
  root: data
  train_images: 8
  val_images: 4
  batch_size: 4
  workers: 0
  augment: {scales: [64], long_side: 80, crop: 0.5, crop_resize: [64], crop_range: [40, 60]}
  eval_long_side: 96
model:
  backbone: {args: {stem_width: 8, channels: [8, 16, 24, 32]}}
  neck: {type: necks.FPN, embed_dim: 16, num_levels: 5}
  rpn: {type: detection.RPNHead, embed_dim: 16, proposals: [40, 30]}
  sampler: {type: matching.RandomSampler, count: 16, positive_share: 0.25}
  box_head: {type: detection.BoxHead, fc_dim: 16}
  mask_head: {type: detection.MaskHead, num_convs: 1, embed_dim: 16}
  score_threshold: 0.01
schedule: {type: optim.Constant}
trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}
run: {folder: run}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory, "instances", CONFIG)


def test_a_run_trains_and_measures_masks(trained: Path) -> None:
    metrics = rows(trained / "run/metrics.csv")
    assert {"train/loss_mask", "val/coco/AP", "val/coco_mask/AP", "val/coco_mask/AP50"} <= set(metrics[0])
    assert list((trained / "run/eval").glob("*.png"))


def test_a_run_that_is_resumed_ends_with_the_same_bits(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert_resumed_is_undisturbed(1, 2)


def test_test_predict_and_evaluate_agree(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(trained)
    words = ["--ckpt", "run/best.ckpt"]
    assert main(["test", *words, "data.workers=0", "--analysis", "analysis"]) == 0
    assert {"analysis.json", "confusion.png"} <= {p.name for p in Path("analysis/masks").iterdir()}
    said = capsys.readouterr().out
    assert "coco_box, 4 images" in said
    assert "coco_mask, 4 images" in said
    (root,) = Path("data").glob("shapes-*")
    truth, images = root / "annotations/val.json", str(root / "val")
    more = ["--annotations", str(truth), "--threshold", "0"]
    assert main(["predict", *words, "--input", images, "--output", "out", *more]) == 0
    entries = json.loads(Path("out/predictions.json").read_text())["images"]
    detections = [d for entry in entries for d in entry["detections"]]
    assert detections
    for entry in entries:
        for d in entry["detections"]:
            assert d["segmentation"]["size"] == [entry["height"], entry["width"]]
            assert mask_tools.area(d["segmentation"]) == d["area"]
    files = (Path("out") / f"{name}.json" for name in ("predictions", "coco_results"))
    numbers = [evaluate_file(file, truth, metric=CocoMask).numbers for file in files]
    assert numbers[0] == numbers[1]
    assert main(["evaluate", "out/coco_results.json", "--annotations", str(truth)]) == 0
    said = capsys.readouterr().out
    assert "coco_mask, 4 images" in said
    assert "coco_boundary" not in said
    assert main(["evaluate", "out/coco_results.json", "--annotations", str(truth), "--boundary", "true"]) == 0
    assert "coco_boundary, 4 images" in capsys.readouterr().out
    assert len(list(Path("out/pictures").glob("*.jpg"))) == 4


def test_python_gives_masks(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    made = load_predictor("run/best.ckpt", "cpu")
    image = next(Path("data").glob("shapes-*/val/*.jpg"))
    found = made.predict(image)
    size = Image.open(image).size
    assert isinstance(found, InstanceDetections)
    assert found.masks.shape == (len(found.scores), size[1], size[0])
    drawn = made.draw(made.read(image), found)
    assert drawn.shape == (round(2.5 * size[1]), round(2.5 * size[0]), 3)  # small ones are enlarged
    tiled = load_predictor("run/best.ckpt", "cpu", tile=64).predict(image)
    assert tiled.masks.shape[1:] == (size[1], size[0])
    with pytest.raises(ConfigError, match="--overlap"):
        load_predictor("run/best.ckpt", "cpu", tile=64, overlap=64)
    with pytest.raises(ConfigError, match="--overlap: means nothing"):
        load_predictor("run/best.ckpt", "cpu", overlap=64)


def test_the_check_looks_at_masks(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(trained)
    (root,) = Path("data").glob("shapes-*")
    for split in ("train", "val"):
        content = json.loads((root / f"annotations/{split}.json").read_text())
        objects = [a for a in content["annotations"] if not a["iscrowd"]]
        del objects[0]["segmentation"]
        if split == "train":
            objects[1]["segmentation"] = {"size": [1, 1], "counts": [1]}
            objects[2]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]
            objects[2]["bbox"] = [30, 30, 20, 20]
            objects[3]["segmentation"] = [[-9, 0, 40, 0, 40, 40, -9, 40]]
            objects[4]["segmentation"] = [[1, 2]]
            objects[5]["segmentation"] = [[3, 3, 3, 3, 3, 3]]
        (root / f"annotations/{split}-odd.json").write_text(json.dumps(content))
    Path("odd.yaml").write_text(
        f"base: mine.yaml\ndata:\n  type: data.CocoDetection\n  root: {root}\n  masks: true\n  workers: 0\n"
        "  train: {images: train, annotations: annotations/train-odd.json}\n"
        "  val: {images: val, annotations: annotations/val-odd.json}\n"
    )
    assert main(["check", "-c", "odd.yaml", "--output", "look"]) != 0
    said = " ".join(capsys.readouterr().out.split())
    for line in (
        "1 annotations without a mask", "run lengths", "2 x no mask, not trained where masks are",
        "1 of 1 polygons have no three points of two coordinates, such as [1, 2]", "mask and box disagree",
        "polygon more than a pixel outside the image, cut", "1 x mask without a pixel",
    ):  # fmt: skip
        assert line in said, said
    assert main(["fit", "-c", "odd.yaml", "run.folder=odd"]) == 2  # masks cannot be measured where some are missing
    error = capsys.readouterr().err
    assert "has no segmentation" in error


def scene(size: tuple[int, int]) -> list[np.ndarray]:
    """Six objects, each beside or across where the tiles of 64 pixels with an overlap of 16 meet."""
    y, x = np.ogrid[: size[0], : size[1]]
    places = ((30, 40, 12), (58, 60, 20), (100, 56, 9), (110, 110, 24), (20, 100, 10), (22, 130, 10))
    return [(y - cy) ** 2 + (x - cx) ** 2 < r * r for cy, cx, r in places]


@pytest.mark.parametrize("with_masks", [True, False])
def test_what_tiles_saw_of_an_object_becomes_one(with_masks: bool) -> None:
    size, masks = (150, 160), scene((150, 160))
    tiles = [(y, x, min(y + 64, 150), min(x + 64, 160)) for y in (0, 48, 86) for x in (0, 48, 96)]
    found = []
    for top, left, bottom, right in tiles:
        seen = [(i, m[top:bottom, left:right]) for i, m in enumerate(masks)]
        seen = [(i, m) for i, m in seen if m.any()]
        shapes = torch.zeros((len(seen), bottom - top, right - left), dtype=torch.bool)
        for shape, (_, m) in zip(shapes, seen, strict=True):
            shape[:] = torch.from_numpy(m)
        parts = PackedMasks.of_tensor(shapes)
        boxes = torch.tensor([[x, y, x + m.shape[1], y + m.shape[0]] for y, x, m in parts.parts()]).view(-1, 4)
        scores, labels = torch.tensor([0.9 - 0.1 * i for i, _ in seen]), torch.tensor([i % 2 for i, _ in seen]).long()
        columns = boxes.float(), scores, labels
        found.append(InstanceDetections(*columns, parts) if with_masks else Detections(*columns))
    whole = joined(found, tiles, size)
    assert whole.labels.tolist() == [0, 1, 0, 1, 0, 1]  # by score, as the objects are numbered
    boxes = [[np.flatnonzero(m.any(0))[0], np.flatnonzero(m.any(1))[0]] for m in masks]
    assert whole.boxes[:, :2].tolist() == [[float(v) for v in box] for box in boxes]
    if with_masks:
        assert torch.equal(whole.masks.unpacked(), torch.from_numpy(np.stack(masks)))


def test_a_damaged_mask_of_the_validation_set_is_named_with_its_file(tmp_path: Path) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [{**entry, "segmentation": {"size": [8, 8], "counts": [0, 7]}}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    split = CocoSplit(".", "val.json")
    data = CocoDetection(train=split, val=split, root=str(tmp_path))
    named = rf"{tmp_path / 'val.json'}: ground truth: annotations\[0\]: run lengths do not add up"
    with pytest.raises(DataError, match=named):
        metric_of(data, "val", "coco_mask", ground_truth=truth, labels=LabelSpace(("cat",), (1,)))
