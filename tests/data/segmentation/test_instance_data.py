"""COCO's instances for mask classifiers: what an augmentation chooses of them, and what they are measured with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_tools

from vistrain.data import (
    CocoInstances,
    CocoPanoptic,
    InstanceFolders,
    InstanceSplit,
    PIDray,
    PIDrayInstances,
    SegmentAugment,
)
from vistrain.data.coco import pidray
from vistrain.errors import DataError
from vistrain.metrics import protocol
from vistrain.predictions import InstanceDetections, Segmentation

SAMPLE = Path(__file__).parents[3].parent / "shared/samples/coco_panoptic"


def folders(root: Path, batch: int = 16, **changes: object) -> InstanceFolders:
    """One image of 20 x 30 pixels with two objects that overlap, and a crowd."""
    (root / "images").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "images/a.png")
    box = {"image_id": 3, "category_id": 7, "iscrowd": 0}
    runs = {"size": [20, 30], "counts": [0, 100, 500]}  # the first five columns
    objects = [
        {**box, "id": 1, "bbox": [2, 4, 10, 8], "segmentation": [[2, 4, 12, 4, 12, 12, 2, 12]]},
        {**box, "id": 2, "bbox": [0, 0, 5, 20], "segmentation": runs},
        {**box, "id": 5, "bbox": [0, 0, 30, 20], "segmentation": {"size": [20, 30], "counts": [0, 600]}, "iscrowd": 1},
    ]
    images = [{"id": 3, "file_name": "a.png", "width": 30, "height": 20}]
    content = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "cat"}], **changes}
    (root / "x.json").write_text(json.dumps(content))
    split = InstanceSplit("images", "x.json")
    augment = SegmentAugment(crop=(40, 60), jitter=(1, 1))
    return InstanceFolders(train=split, val=split, root=str(root), augment=augment, batch_size=batch)


def test_masks_follow_their_image(tmp_path: Path) -> None:
    data = folders(tmp_path)
    data.find("train")
    drawn = np.zeros((2, 20, 30), bool)
    drawn[0, 4:12, 2:12], drawn[1, :, :5] = True, True
    seen = set()
    for seed in range(4):
        batch = data.collate([data.dataset("train").sample(0, seed)])
        masks = batch["target"][0]["masks"].unpacked().numpy()
        large = drawn.repeat(2, 1).repeat(2, 2)
        mirrored = not (masks == large).all()
        assert (masks == (large[:, :, ::-1] if mirrored else large)).all()
        seen.add(mirrored)
        assert batch["name"] == ["a.png"]
        assert batch["target"][0]["labels"].tolist() == [0, 0]
    assert seen == {True, False}
    (target,) = data.collate([data.dataset("val").sample(0)])["target"]
    assert target["masks"].shape == (2, 20, 30)  # of the original
    data.augment = SegmentAugment(crop=(4, 4), jitter=None, flip=0.0)
    counts = {len(data.collate([data.dataset("train").sample(0, seed)])["target"][0]["labels"]) for seed in range(30)}
    assert counts == {0, 1, 2}  # what lies outside a crop is no target


def test_the_truth_is_found_whole(tmp_path: Path) -> None:
    data = folders(tmp_path)
    metric = protocol("coco_mask", labels=data.labels, ground_truth=data.ground_truth("val"))
    masks = data.collate([data.dataset("val").sample(0)])["target"][0]["masks"].unpacked()
    boxes = torch.tensor([[2.0, 4, 12, 12], [0, 0, 5, 20]])
    found = Segmentation(instances=InstanceDetections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), masks))
    numbers = metric.compute(metric.update([3], [found], [{}]))
    assert numbers["coco_mask/AP"] == 1


def test_damaged_run_lengths_are_refused(tmp_path: Path) -> None:
    broken = {"id": 1, "image_id": 3, "category_id": 7, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    data = folders(tmp_path, annotations=[{**broken, "segmentation": {"size": [20, 30], "counts": [0, 100, 400]}}])
    error = data.dataset("val")[0]
    assert isinstance(error, DataError)
    assert "run lengths do not add up to 20 x 30 pixels" in str(error)


def test_the_check_decodes_every_mask(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    report = folders(tmp_path / "good", batch=1).check(tmp_path / "out")
    assert report.ok, report.to_dict()
    assert (report.splits["train"].objects, report.splits["train"].crowds) == (2, 1)
    assert {Path(p).name for p in report.pictures} >= {"samples-train.png", "classes-val.png"}
    box = {"id": 1, "image_id": 3, "category_id": 7, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    nan = {**box, "segmentation": [[0, 0, 5, float("nan"), 5, 5]]}
    (tmp_path / "nan").mkdir()
    data = folders(tmp_path / "nan", batch=1, annotations=[nan])
    report = data.check(tmp_path / "out")
    assert not report.ok
    assert (
        "annotation 1 of a.png: its polygon has the coordinate nan, not a number" in report.splits["train"].refused[0]
    )
    data.find("train")
    assert "coordinate nan" in str(data.dataset("train")[0])  # a run replaces the image, and counts it


def test_a_set_without_masks_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = {"image_id": 3, "category_id": 7, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    bare: list[dict[str, object]] = [{**box, "id": i} for i in range(4)]
    (tmp_path / "bare").mkdir()
    data = folders(tmp_path / "bare", batch=1, annotations=bare)
    with pytest.raises(DataError, match=r"x\.json: none of its 4 objects has a mask, and masks are trained"):
        data.find("train")
    assert "none of its 4 objects has a mask" in data.check(tmp_path / "out").splits["train"].refused[0]
    bare[0]["segmentation"] = [[0, 0, 5, 0, 5, 5]]
    (tmp_path / "few").mkdir()
    data = folders(tmp_path / "few", batch=1, annotations=bare)
    data.find("train")
    assert "3 of 4 objects (75 %) have no mask and are not trained" in caplog.text
    assert "3 of 4 objects (75 %)" in data.check(tmp_path / "out").splits["train"].without_masks


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no {SAMPLE}")
def test_coco_has_one_truth_in_two_files() -> None:
    """The sample's instances are those of its panoptic segments."""
    instances, panoptic = CocoInstances(root=str(SAMPLE)), CocoPanoptic(root=str(SAMPLE))
    assert len(instances.labels.names) == 80
    panoptic.splits["val"] = type(panoptic.splits["val"])(
        "val2017", "annotations/panoptic_val2017", "annotations/panoptic_val2017.json"
    )
    listed, made = instances.ground_truth("val"), panoptic.ground_truth("val")
    areas = [
        sorted((a["image_id"], a["category_id"], int(a["area"])) for a in t["annotations"]) for t in (listed, made)
    ]
    assert areas[0] == areas[1]
    assert mask_tools.area(made["annotations"][0]["segmentation"]) == made["annotations"][0]["area"]
    batch = instances.collate([instances.dataset("train").sample(0, 1)])
    assert batch["image"].shape == (1, 3, 1024, 1024)


def test_pidray_is_read_as_it_is_given_out(tmp_path: Path) -> None:
    folders(tmp_path)
    content = json.loads((tmp_path / "x.json").read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in zip(pidray.IDS, pidray.NAMES, strict=True)]
    for folder, name in (("train", "xray_train"), ("hard", "xray_test_hard")):
        (tmp_path / "pidray" / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"pidray/{folder}/a.png")
        (tmp_path / "pidray/annotations").mkdir(exist_ok=True)
        (tmp_path / f"pidray/annotations/{name}.json").write_text(json.dumps(content))
    of_masks = PIDrayInstances(root=str(tmp_path), subset="hard")
    of_boxes = PIDray(root=str(tmp_path), subset="hard", masks=True)
    for data in (of_masks, of_boxes):
        data.setup("fit")
        assert (data.labels.names[6], data.labels.ids[6]) == ("Gun", 7)
        assert len(data.ground_truth("val")["annotations"]) == 3
    assert of_masks.collate([of_masks.dataset("val").sample(0)])["target"][0]["labels"].tolist() == [6, 6]
    with pytest.raises(DataError, match=r"(easy|xray_test_easy).*pidray"):
        PIDrayInstances(root=str(tmp_path)).setup("fit")
