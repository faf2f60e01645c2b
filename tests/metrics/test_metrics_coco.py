"""COCO evaluation: pycocotools decides, both backends agree to the last bit, and nothing that data can do breaks it."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol
from vistrain.metrics.coco import CocoBox, write_predictions
from vistrain.metrics.coco_engine import curve_arrays
from vistrain.predictions import Detections
from vistrain.structures import LabelSpace
from vistrain.tasks.detection.evaluate import evaluate_file, evaluations, read_records

CATEGORIES = (7, 3, 21, 90)  # sparse and unsorted, as in real data; nothing is ever labelled 90
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LABELS = LabelSpace(("seven", "three", "twenty-one", "ninety"), CATEGORIES)
faster = pytest.mark.skipif(importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is absent")


def make_truth(seed: int = 0, images: int = 12) -> dict:
    """Objects of three of the four categories, crowds among them; a third of the images are empty."""
    random = np.random.default_rng(seed)
    truth = {
        "images": [{"id": int(i), "height": 300, "width": 300} for i in random.permutation(500)[:images]],
        "categories": [{"id": c, "name": n} for c, n in zip(CATEGORIES, LABELS.names, strict=True)],
        "annotations": [],
    }
    for image in truth["images"][images // 3 :]:
        for _ in range(random.integers(1, 9)):
            x, y, w, h = (float(v) for v in (*random.uniform(0, 150, 2), *random.uniform(4, 140, 2)))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(random.choice(CATEGORIES[:3])),
                    "bbox": [x, y, w, h],
                    "area": 0.8 * w * h,
                    "iscrowd": int(random.random() < 0.1),
                }
            )
    return truth


def make_detections(truth: dict, seed: int = 0, each: int = 5, decimals: int = 1) -> dict[int, Detections]:
    """Jittered copies of the objects, with tied scores, in 4 contiguous channels; and a false alarm per image."""
    random = np.random.default_rng(seed + 1)
    channel = LABELS.channel_of
    found: dict[int, Detections] = {}
    for image in truth["images"]:
        boxes, labels = [[0.0, 0.0, 20.0, 20.0]], [int(random.integers(4))]
        for annotation in truth["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                for _ in range(each):
                    dx, dy, dw, dh = random.normal(0, 5, 4)
                    boxes.append([x + dx, y + dy, x + dx + max(w + dw, 1), y + dy + max(h + dh, 1)])
                    labels.append(channel[annotation["category_id"]])
        scores = np.round(random.random(len(boxes)), decimals)
        found[image["id"]] = Detections(
            torch.tensor(boxes), torch.tensor(scores, dtype=torch.float32), torch.tensor(labels)
        )
    return found


def none_found() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def run(metric: CocoBox, found: dict[int, Detections]) -> dict[str, float]:
    return metric.compute(metric.update(list(found), list(found.values()), None))


def official(truth: dict, results: list[dict]) -> np.ndarray:
    """pycocotools on its own, the way its documentation says."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(copy.deepcopy(results)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def as_results(found: dict[int, Detections]) -> list[dict]:
    """What the official evaluation scripts hand to pycocotools."""
    results = []
    for image_id, detections in found.items():
        xywh = torch.cat([detections.boxes[:, :2], detections.boxes[:, 2:] - detections.boxes[:, :2]], dim=1)
        columns = (xywh.tolist(), detections.scores.tolist(), detections.labels.tolist())
        for bbox, score, label in zip(*columns, strict=True):
            results.append({"image_id": image_id, "category_id": CATEGORIES[label], "bbox": bbox, "score": score})
    return results


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", ["pycocotools", pytest.param("faster_coco_eval", marks=faster)])
def test_twelve_numbers_equal_pycocotools_to_the_last_bit(seed: int, backend: str) -> None:
    truth = make_truth(seed)
    found = make_detections(truth, seed, each=1 + seed, decimals=1 + seed)
    numbers = run(CocoBox(truth, LABELS, backend), found)
    assert list(numbers) == [
        f"coco/A{n}" for n in ["P", "P50", "P75", "Ps", "Pm", "Pl", "R1", "R10", "R100", "Rs", "Rm", "Rl"]
    ]
    assert list(numbers.values()) == official(truth, as_results(found)).tolist()
    assert 0 < numbers["coco/AP"] < 1


@faster
def test_backends_give_the_same_arrays_where_one_hit_makes_the_precision() -> None:
    # pycocotools and faster-coco-eval differ by one bit where only the best detection of a category is right
    truth = {"images": [{"id": 1}], "categories": [{"id": 5}, {"id": 6}, {"id": 9}], "annotations": []}
    results = []
    for category, objects, hits in ((5, 3, 1), (6, 1, 1), (9, 3, 2)):
        for i in range(objects):
            box = [40.0 * i, 0.0, 30.0, 30.0]
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": 1, "category_id": category, "bbox": box}
                | {"area": 900.0, "iscrowd": 0}
            )
            shifted = box if i < hits else [box[0], 500.0, 30.0, 30.0]
            results.append({"image_id": 1, "category_id": category, "bbox": shifted, "score": 0.9 - 0.1 * i})
    reference, fast = (
        curve_arrays(truth, copy.deepcopy(results), [1], backend=backend)
        for backend in ("pycocotools", "faster_coco_eval")
    )
    assert reference.precision[0, 0, :, 0, 2].tolist() == [1 - 2**-52, 1 - 2**-52, 1.0]
    assert np.array_equal(reference.precision, fast.precision)
    assert np.array_equal(reference.recall, fast.recall)


def test_class_table_counts_objects_and_says_nan_without_any() -> None:
    truth = make_truth()
    metric = CocoBox(truth, LABELS)
    numbers = run(metric, make_detections(truth))
    rows = {row["id"]: row for row in metric.per_class}
    assert list(rows) == sorted(CATEGORIES)
    for category, row in rows.items():
        objects = [a for a in truth["annotations"] if a["category_id"] == category and not a["iscrowd"]]
        assert row["objects"] == len(objects)
    assert rows[90]["objects"] == 0
    assert all(math.isnan(rows[90][k]) for k in ("AP", "AP50", "AR"))
    present = [rows[c] for c in (3, 7, 21)]
    assert np.mean([r["AP"] for r in present]) == pytest.approx(numbers["coco/AP"], abs=1e-12)
    assert np.mean([r["AP50"] for r in present]) == pytest.approx(numbers["coco/AP50"], abs=1e-12)
    assert np.mean([r["AR"] for r in present]) == pytest.approx(numbers["coco/AR100"], abs=1e-12)
    _, classes, line = metric.result.tables()
    assert list(classes.columns[0].cells) == ["three", "seven", "twenty-one"]
    assert line == "1 class without objects is left out"


@pytest.mark.parametrize("backend", ["pycocotools", pytest.param("faster_coco_eval", marks=faster)])
def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one(backend: str) -> None:
    truth = make_truth()
    found = {image["id"]: none_found() for image in truth["images"]}
    metric = CocoBox(truth, LABELS, backend)
    numbers = run(metric, found)
    assert numbers["coco/AP"] == numbers["coco/AR100"] == 0.0
    assert metric.protocol == "coco_box"
    empty = CocoBox({**truth, "annotations": []}, LABELS, backend)
    assert set(run(empty, make_detections(truth)).values()) == {-1.0}
    assert set(CocoBox(truth, LABELS, backend).compute([]).values()) == {-1.0}


def test_more_than_100_detections_of_an_image_count() -> None:
    # 150 false alarms of one class score above the only hit of another class: COCO's limit is per class
    truth = make_truth(images=1)
    truth["annotations"] = [
        {
            "id": 1,
            "image_id": truth["images"][0]["id"],
            "category_id": 3,
            "bbox": [10, 10, 50, 50],
            "area": 2500,
            "iscrowd": 0,
        }
    ]
    boxes = torch.tensor([[200.0, 200, 220, 220]] * 150 + [[10.0, 10, 60, 60]])
    labels = torch.tensor([0] * 150 + [1])
    scores = torch.cat([torch.full((150,), 0.9), torch.tensor([0.1])])
    numbers = run(CocoBox(truth, LABELS), {truth["images"][0]["id"]: Detections(boxes, scores, labels)})
    assert numbers["coco/AP"] == pytest.approx(1.0)


def test_images_without_objects_count_their_false_alarms() -> None:
    truth = make_truth()
    found = make_detections(truth, decimals=6)
    empty = {a["image_id"] for a in truth["annotations"]} ^ {i["id"] for i in truth["images"]}
    assert len(empty) == 4
    before = run(CocoBox(truth, LABELS), found)["coco/AP"]
    for image_id in empty:
        found[image_id] = Detections(torch.rand(60, 4), torch.full((60,), 0.99), torch.arange(60) % 3)
    assert run(CocoBox(truth, LABELS), found)["coco/AP"] < 0.5 * before


def test_channels_that_no_class_uses_are_ignored_and_raw_ids_give_the_same_numbers() -> None:
    truth = make_truth()
    found = make_detections(truth)
    raw = LabelSpace(LABELS.names, LABELS.ids, name="coco_ids")
    ids = torch.tensor(CATEGORIES)
    renamed = {
        i: Detections(
            torch.cat([d.boxes, d.boxes]),
            torch.cat([d.scores, d.scores]),
            torch.cat([ids[d.labels], 0 * d.labels + 50]),
        )
        for i, d in found.items()
    }
    assert run(CocoBox(truth, raw), renamed) == run(CocoBox(truth, LABELS), found)
    with pytest.raises(ValueError, match="outside the 4 class channels"):
        CocoBox(truth, LABELS).update([1], [Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([4]))], None)


def test_an_untrained_networks_nan_boxes_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    # a NaN overlap is "not smaller than the threshold", so pycocotools would match it
    truth = make_truth()
    image_id = truth["annotations"][0]["image_id"]
    channel = LABELS.channel_of[truth["annotations"][0]["category_id"]]
    boxes = torch.tensor([[math.nan, 0, 1, 1], [0, 0, math.inf, 1], [0, 0, 1, 1]])
    found = Detections(boxes, torch.tensor([0.9, 0.9, math.nan]), torch.full((3,), channel))
    metric = CocoBox(truth, LABELS)
    records = metric.update([image_id], [found], None)
    assert records[0]["boxes"].shape == (0, 4)
    assert "3 detections are not finite" in caplog.text
    assert metric.compute(records)["coco/AP"] == 0.0


def test_half_precision_predictions_become_float32_records() -> None:
    truth = make_truth()
    half = Detections(torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16), torch.tensor([0]))
    record = CocoBox(truth, LABELS).update([truth["images"][0]["id"]], [half], None)[0]
    assert {k: v.dtype.name for k, v in record.items() if k != "id"} == {
        "boxes": "float32",
        "scores": "float32",
        "categories": "int64",
    }


def test_order_and_repetition_of_records_do_not_matter() -> None:
    truth = make_truth()
    found = make_detections(truth)
    metric = CocoBox(truth, LABELS)
    records = metric.update(list(found), list(found.values()), None)
    expected = metric.compute(records)
    assert metric.compute([*records[::-1], records[0], records[3]]) == expected
    assert metric.protocol == "coco_box"


def test_evaluation_of_some_images_is_custom_and_looks_at_these_alone() -> None:
    truth = make_truth()
    found = make_detections(truth)
    some = sorted(found)[:5]
    metric = CocoBox(truth, LABELS)
    numbers = run(metric, {i: found[i] for i in some})
    assert metric.protocol == "custom(coco_box, images=5 of 12)"
    part = {
        **truth,
        "images": [i for i in truth["images"] if i["id"] in some],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in some],
    }
    assert numbers == run(CocoBox(part, LABELS), {i: found[i] for i in some})
    with pytest.raises(DataError, match="does not list 1 evaluated images"):
        run(metric, {9999: found[some[0]]})


def test_protocol_names_a_frozen_set_of_arguments() -> None:
    truth = make_truth()
    metric = protocol("coco_box", ground_truth=truth, labels=LABELS)
    assert metric.protocol == "coco_box"
    changed = protocol("coco_box", ground_truth=truth, labels=LABELS, max_detections=(1, 10, 300))
    assert changed.protocol == "custom(coco_box, max_detections=(1, 10, 300))"
    numbers = run(changed, make_detections(truth))
    assert numbers["coco/AR300"] > 0
    assert numbers["coco/AP"] > 0  # pycocotools' own summary says -1 here: it looks for 100
    loose = protocol("coco_box", ground_truth=truth, labels=LABELS, iou_thresholds=(0.5,))
    assert loose.protocol == "custom(coco_box, iou_thresholds=(0.5))"
    loose_numbers = run(loose, make_detections(truth))
    assert loose_numbers["coco/AP"] == loose_numbers["coco/AP50"] > 0
    assert loose_numbers["coco/AP75"] == -1
    with pytest.raises(ConfigError, match="did you mean 'coco_box'"):
        protocol("coco_bbox")


def test_other_categories_and_unknown_backends_are_config_errors() -> None:
    truth = make_truth()
    with pytest.raises(ConfigError, match="none of the ground truth's"):
        CocoBox(truth, LabelSpace(("a", "b"), (1, 2)))
    with pytest.raises(ConfigError, match="pycocotols"):
        CocoBox(truth, LABELS, backend="pycocotols")


def test_ground_truth_is_left_as_it_was_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    truth = make_truth()
    before = copy.deepcopy(truth)
    for backend in ("pycocotools", "auto"):
        run(CocoBox(truth, LABELS, backend), make_detections(truth))
    assert truth == before
    assert capsys.readouterr() == ("", "")


def test_annotation_ids_of_zero_or_given_twice_still_find_their_objects() -> None:
    truth = make_truth()
    expected = run(CocoBox(truth, LABELS), make_detections(truth))
    for annotation in truth["annotations"]:
        annotation["id"] = 0
    assert run(CocoBox(truth, LABELS), make_detections(truth)) == expected


@pytest.mark.parametrize("backend", ["pycocotools", pytest.param("faster_coco_eval", marks=faster)])
def test_written_predictions_evaluate_to_the_same_numbers(tmp_path, backend: str) -> None:
    truth = make_truth()
    found = make_detections(truth, decimals=7)
    del truth["annotations"][0]["iscrowd"]  # absent in many converted sets
    metric = CocoBox(truth, LABELS, backend)
    records = metric.update(list(found), list(found.values()), None)
    numbers = metric.compute(records)
    predictions = write_predictions(records, tmp_path / "deep" / "predictions.json")
    annotations = tmp_path / "truth.json"
    annotations.write_text(json.dumps(truth))
    result = evaluate_file(predictions, annotations, backend)
    assert result.numbers == numbers
    assert result.protocol == "coco_box"
    assert result.images == 12
    assert [p.name for p in predictions.parent.iterdir()] == ["predictions.json"]
    first = json.loads(predictions.read_text())[0]
    assert set(first) == {"image_id", "category_id", "bbox", "score"}
    assert first["category_id"] in CATEGORIES


def test_empty_predictions_are_written_and_evaluated(tmp_path) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(make_truth()))
    predictions = write_predictions([], tmp_path / "none.json")
    assert json.loads(predictions.read_text()) == []
    assert evaluate_file(predictions, truth).numbers["coco/AP"] == 0.0


@pytest.mark.parametrize("listed", [False, True])
def test_masks_are_not_dropped_silently(tmp_path, caplog: pytest.LogCaptureFixture, listed: bool) -> None:
    """Of nothing found the truth says that masks are measured; of boxes alone a line says that they are not."""
    truth, file = make_truth(), tmp_path / "found.json"
    images = [image["id"] for image in truth["images"]]
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (tmp_path / "truth.json").write_text(json.dumps(truth))

    def measured(results: list[dict]) -> dict[str, float]:
        of = [{"id": i, "detections": [r for r in results if r["image_id"] == i]} for i in images]
        file.write_text(json.dumps({"images": of} if listed else results))
        found = evaluations(*read_records(file, tmp_path / "truth.json"))
        return {one.protocol: next(iter(one.numbers.values())) for one in found}

    with caplog.at_level(logging.INFO):
        assert measured([]) == {"coco_box": 0.0, "coco_mask": 0.0}
        assert "no result has a mask" not in caplog.text
        first = truth["annotations"][0]
        one = {"image_id": first["image_id"], "category_id": first["category_id"], "score": 0.5}
        assert list(measured([{**one, "bbox": first["bbox"], "box_xywh": first["bbox"]}])) == ["coco_box"]
    assert "found.json: no result has a mask (`segmentation`), so boxes alone are measured" in caplog.text


def test_results_of_unknown_categories_are_ignored_and_counted(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    truth = make_truth()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = as_results(make_detections(truth))
    (tmp_path / "known.json").write_text(json.dumps(results))
    stranger = {"image_id": truth["images"][0]["id"], "category_id": 44, "bbox": [0, 0, 5, 5], "score": 1}
    (tmp_path / "more.json").write_text(json.dumps([stranger, *results]))
    known, more = (evaluate_file(tmp_path / f"{n}.json", tmp_path / "truth.json") for n in ("known", "more"))
    assert known.numbers == more.numbers
    assert "1 results of unknown categories (44)" in caplog.text


GOOD = {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "not valid JSON"),
        ('{"image": []}', "not a list of COCO results but an object"),
        ("null", "null"),
        ("[5]", "result 0: is not an object"),
        (json.dumps([GOOD, {k: v for k, v in GOOD.items() if k != "score"}]), "result 1: 'score' is 'missing'"),
        (json.dumps([{**GOOD, "score": math.nan}]), "'score' is nan"),
        (json.dumps([{**GOOD, "bbox": [1, 2, 3]}]), "not four finite numbers"),
        (json.dumps([{**GOOD, "bbox": None}]), "not four finite numbers"),
        (json.dumps([{**GOOD, "image_id": 1.5}]), "'image_id' is 1.5, not an integer"),
        (json.dumps([{**GOOD, "image_id": "1"}]), "1 results are for images that the ground truth does not list"),
        (json.dumps([{**GOOD, "image_id": 77}]), "1 results are for images that the ground truth does not list"),
    ],
)
def test_malformed_predictions_end_in_one_line(tmp_path, text: str, message: str) -> None:
    truth = {"images": [{"id": 1}], "categories": [{"id": 7, "name": "seven"}], "annotations": []}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(DataError) as error:
        evaluate_file(tmp_path / "predictions.json", tmp_path / "truth.json")
    assert message in str(error.value)
    assert "predictions.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "has no list 'images'"),
        ({"images": [{"file_name": "a.jpg"}]}, "images[0]: has no 'id'"),
        ({"images": [{"id": 1}, {"id": 1}]}, "image id 1 is used twice"),
        ({"annotations": [{"id": 3, "image_id": 1, "category_id": 7}]}, "annotations[0]: has no 'bbox'"),
        ({"annotations": [{**GOOD, "bbox": [0, 0, 1]}]}, "annotation 3: bbox is [0, 0, 1]"),
        ({"annotations": [{**GOOD, "iscrowd": 3}]}, "iscrowd is 3"),
    ],
)
def test_malformed_ground_truth_ends_in_one_line(tmp_path, change: dict, message: str) -> None:
    truth = {"images": [{"id": 1}], "categories": [{"id": 7, "name": "seven"}], "annotations": []}
    (tmp_path / "truth.json").write_text(json.dumps({**truth, **change}))
    (tmp_path / "predictions.json").write_text("[]")
    with pytest.raises(DataError) as error:
        evaluate_file(tmp_path / "predictions.json", tmp_path / "truth.json")
    assert message in str(error.value)


def test_missing_files_and_unwritable_places_are_data_errors(tmp_path) -> None:
    with pytest.raises(DataError, match="no such annotation file"):
        evaluate_file(tmp_path / "predictions.json", tmp_path / "truth.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_predictions([], tmp_path / "file" / "predictions.json")


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text("old")

    class FullDisk:
        def tolist(self) -> list:
            raise OSError(28, "No space left on device")

    record = {"id": 1, "boxes": FullDisk(), "scores": FullDisk(), "categories": FullDisk()}
    with pytest.raises(DataError, match="No space left on device"):
        write_predictions([record], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_console_prints_the_twelve_numbers_and_the_classes() -> None:
    truth = make_truth()
    metric = CocoBox(truth, LABELS, "pycocotools")
    numbers = run(metric, make_detections(truth))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(metric.result)
    text = console.export_text()
    assert "coco_box, 12 images, pycocotools" in text
    assert f"{numbers['coco/AP75']:.4f}" in text
    line = next(line for line in text.splitlines() if "AR10 " in line)
    assert [cell.strip() for cell in line.split("│")[1:5]] == ["AR10", "0.50:0.95", "all", "10"]
    assert "ninety" not in text
    assert "1 class without objects is left out" in text
