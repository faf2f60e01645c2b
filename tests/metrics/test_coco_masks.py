"""Mask AP: pycocotools decides, run lengths are its own, and nothing that a file can hold breaks the evaluation."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_tools

from vistrain.errors import ConfigError, DataError
from vistrain.layers.packed_masks import PackedMasks
from vistrain.metrics import CocoBoundary, CocoMask, protocol
from vistrain.metrics.coco import write_predictions
from vistrain.metrics.coco_masks import encode_part, mask_edge
from vistrain.predictions import Detections, InstanceDetections
from vistrain.structures import LabelSpace
from vistrain.tasks.detection.evaluate import evaluate_file

SIZE = (110, 130)
CATEGORIES = (7, 3, 21)
LABELS = LabelSpace(("seven", "three", "twenty-one"), CATEGORIES)


def blob(rng: np.random.Generator) -> np.ndarray:
    """An ellipse, bool `[H, W]`."""
    mask = np.zeros(SIZE, np.uint8)
    centre, axes = rng.integers(10, 100, 2), rng.integers(3, 45, 2)
    cv2.ellipse(mask, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return mask.astype(bool)


def make(seed: int, images: int = 10) -> tuple[dict[str, Any], dict[int, InstanceDetections]]:
    """Objects, some of them crowds, and shifted copies of them as detections, packed for every other image."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": i + 5, "height": SIZE[0], "width": SIZE[1]} for i in range(images)],
        "categories": [{"id": c, "name": n} for c, n in zip(CATEGORIES, LABELS.names, strict=True)],
        "annotations": [],
    }
    found = {}
    for image in truth["images"]:
        masks, labels = [blob(rng)], [int(rng.integers(3))]
        for _ in range(rng.integers(0, 6)):
            mask, label = blob(rng), int(rng.integers(3))
            run = mask_tools.encode(np.asfortranarray(mask, np.uint8))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": CATEGORIES[label],
                    "segmentation": {"size": list(SIZE), "counts": run["counts"].decode()},
                    "bbox": mask_tools.toBbox(run).tolist(),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(2):
                masks.append(np.roll(mask, rng.integers(-4, 5, 2), (0, 1)))
                labels.append(label)
        boxes = torch.zeros(len(masks), 4)  # plays no part in it
        scores = torch.tensor(np.round(rng.random(len(masks)), 1), dtype=torch.float32)
        together: Any = torch.from_numpy(np.stack(masks))
        if image["id"] % 2:
            together = PackedMasks.of([(0, 0, mask) for mask in masks], SIZE)
        found[image["id"]] = InstanceDetections(boxes, scores, torch.tensor(labels), together)
    return truth, found


def official(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """pycocotools on its own, the way its documentation says."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


def official_boundaries(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """pycocotools' matching on overlaps that are counted pixel by pixel, each by its chessboard distance to what is not
    in its mask."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from scipy.ndimage import distance_transform_cdt

    near = round(0.02 * float(np.hypot(*SIZE)))

    def masks_of(entries: list[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
        masks = [mask_tools.decode(entry["segmentation"]).astype(bool) for entry in entries]
        inside = [distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1] for mask in masks]
        return [(mask, mask & (far <= near)) for mask, far in zip(masks, inside, strict=True)]

    def overlap(found: np.ndarray, true: np.ndarray, crowd: int) -> float:
        whole = found if crowd else found | true
        return float((found & true).sum() / whole.sum()) if whole.any() else 0.0

    class PixelByPixel(COCOeval):
        def computeIoU(self, image: int, category: int) -> Any:
            mine = [a for a in truth["annotations"] if (a["image_id"], a["category_id"]) == (image, category)]
            found = [r for r in results if (r["image_id"], r["category_id"]) == (image, category)]
            found.sort(key=lambda r: -r["score"])
            rows: list[list[float]] = []
            for mask, edge in masks_of(found):
                rows.append([])
                for entry, (true, contour) in zip(mine, masks_of(mine), strict=True):
                    both = [overlap(mask, true, entry["iscrowd"])]
                    if not entry["iscrowd"]:
                        both.append(overlap(edge, contour, 0))
                    rows[-1].append(min(both))
            return np.array(rows) if mine else []

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluator = PixelByPixel(ground, ground.loadRes(copy.deepcopy(results)), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


def as_results(found: dict[int, InstanceDetections]) -> list[dict[str, Any]]:
    """Results without boxes, as COCO allows."""
    results = []
    for image_id, d in found.items():
        for mask, score, label in zip(d.masks, d.scores.tolist(), d.labels.tolist(), strict=True):
            run = mask_tools.encode(np.asfortranarray(mask.numpy(), np.uint8))
            segmentation = {"size": list(SIZE), "counts": run["counts"].decode()}
            result = {"image_id": image_id, "category_id": CATEGORIES[label], "score": score}
            results.append({**result, "segmentation": segmentation})
    return results


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_pycocotools_and_of_files(tmp_path: Path, seed: int) -> None:
    truth, found = make(seed)
    metric = protocol("coco_mask", ground_truth=truth, labels=LABELS)
    records = metric.update(list(found), list(found.values()), None)
    numbers = metric.compute(records)
    assert tuple(numbers) == CocoMask.offers
    assert list(numbers.values()) == official(truth, as_results(found))
    assert 0 < numbers["coco_mask/AP"] < 1
    assert metric.protocol == "coco_mask"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "masks.json").write_text(json.dumps(as_results(found)))
    written = write_predictions(records, tmp_path / "written.json")
    for file in (tmp_path / "masks.json", written):
        assert evaluate_file(file, tmp_path / "truth.json", metric=CocoMask).numbers == numbers
    assert evaluate_file(tmp_path / "masks.json", tmp_path / "truth.json").protocol == "coco_box"


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_boundary_ap_is_that_of_contours_counted_pixel_by_pixel(backend: str) -> None:
    if backend == "faster_coco_eval":
        pytest.importorskip("faster_coco_eval")
    for seed in range(2):
        truth, found = make(seed)
        assert any(annotation["iscrowd"] for annotation in truth["annotations"])
        masks, contours = (
            protocol(name, ground_truth=truth, labels=LABELS, backend=backend)
            for name in ("coco_mask", "coco_boundary")
        )
        records = contours.update(list(found), list(found.values()), None)
        numbers = contours.compute(records)
        assert tuple(numbers) == CocoBoundary.offers
        assert list(numbers.values()) == official_boundaries(truth, as_results(found))
        assert 0 < numbers["coco_boundary/AP"] < masks.compute(records)["coco_mask/AP"]
        assert contours.protocol == "coco_boundary"


@pytest.mark.parametrize("size", [(9, 12), (60, 83), (1, 5), (300, 260)])
def test_the_edge_of_a_mask_is_what_erosions_take_away(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    near = max(1, round(0.02 * float(np.hypot(*size))))
    for density in (0.0, 0.3, 0.97, 1.0):
        coarse = (rng.random((size[0] // 4 + 1, size[1] // 4 + 1)) < density).astype(np.uint8)
        mask = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
        padded = np.pad(mask, near)
        inner = np.ones(size, bool)
        for y in range(2 * near + 1):
            for x in range(2 * near + 1):
                inner &= padded[y : y + size[0], x : x + size[1]] == 1
        edge = mask_edge(mask_tools.encode(np.asfortranarray(mask)))
        assert np.array_equal(mask_tools.decode(edge), mask & ~inner)


def test_run_lengths_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
        h, w = (int(rng.integers(0, side + 1)) for side in size)
        top, left = int(rng.integers(0, size[0] - h + 1)), int(rng.integers(0, size[1] - w + 1))
        part = rng.random((h, w)) < rng.choice([0, 0.1, 0.5, 0.9, 1.1])
        whole = np.zeros(size, np.uint8)
        whole[top : top + h, left : left + w] = part
        assert encode_part(part, top, left, size) == mask_tools.encode(np.asfortranarray(whole))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    truth, found = make(0)
    without = copy.deepcopy(truth)
    del without["annotations"][3]["segmentation"]
    for nothing, said in (
        ([], "empty segmentation"),
        ([[1]], r"1 of 1 polygons .* \[1\]"),
        ([[1, 2] * 2 + [3]], "1 of 1"),
    ):
        undrawn = copy.deepcopy(truth)
        undrawn["annotations"][3]["segmentation"] = nothing
        with pytest.raises(DataError, match=rf"annotations\[3\]: .*{said}.*coco_box"):
            CocoMask(undrawn, LABELS)
    with pytest.raises(DataError, match=r"annotations\[3\]: has no segmentation - .*coco_box"):
        CocoMask(without, LABELS)
    damaged = copy.deepcopy(truth)
    damaged["annotations"][2]["segmentation"]["counts"] = "0"
    with pytest.raises(DataError, match=r"annotations\[2\]: damaged run lengths"):
        CocoMask(damaged, LABELS)
    unsized = copy.deepcopy(truth)
    for image in unsized["images"]:
        del image["height"]
    with pytest.raises(DataError, match="width and height are not known"):
        CocoMask(unsized, LABELS)
    for width, said in ((80.5, "80.5"), (-80, "-80"), ("80", "'80'")):
        unsized["images"] = [{**image, "width": width} for image in truth["images"]]
        with pytest.raises(DataError, match=rf"image \d+: width is {said}, not a number of pixels"):
            CocoMask(unsized, LABELS)
    boxes = {i: Detections(d.boxes, d.scores, d.labels) for i, d in found.items()}
    with pytest.raises(ConfigError, match="boxes without masks"):
        CocoMask(truth, LABELS).update(list(boxes), list(boxes.values()), None)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = as_results(found)
    results[4] = {k: v for k, v in results[4].items() if k != "segmentation"} | {"bbox": [1, 2, 3, 4]}
    (tmp_path / "some.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match="result 4: has no segmentation"):
        evaluate_file(tmp_path / "some.json", tmp_path / "truth.json")
    results[4]["segmentation"] = {"size": [3, 3], "counts": "9"}
    (tmp_path / "some.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match=r"result 4: run lengths are for size \[3, 3\], the image has \[110, 130\]"):
        evaluate_file(tmp_path / "some.json", tmp_path / "truth.json")


def test_sides_that_are_whole_are_taken_and_polygons_that_are_not_drawn_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth, found = make(0)
    results = as_results(found)
    results[0]["segmentation"] = [[1, 2, 3, 4]]
    (tmp_path / "some.json").write_text(json.dumps(results))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    numbers = evaluate_file(tmp_path / "some.json", tmp_path / "truth.json").numbers
    assert "1 results have polygons that are left out" in caplog.text
    truth["images"] = [{**image, "width": float(image["width"])} for image in truth["images"]]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate_file(tmp_path / "some.json", tmp_path / "truth.json").numbers == numbers


def test_masks_without_true_masks_are_measured_as_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth, found = make(0)
    (tmp_path / "masks.json").write_text(json.dumps(as_results(found)))
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate_file(tmp_path / "masks.json", tmp_path / "truth.json").numbers["coco/AP"] > 0
    assert "has no masks" in caplog.text


def test_an_area_that_is_not_given_is_the_masks() -> None:
    truth, found = make(1)
    metric = CocoMask(truth, LABELS)
    numbers = metric.compute(metric.update(list(found), list(found.values()), None))
    for annotation in truth["annotations"]:
        annotation["area"] = None
    metric = CocoMask(truth, LABELS)
    assert metric.compute(metric.update(list(found), list(found.values()), None)) == numbers
