"""Error analysis: hand-made cases whose answer is known, COCO's precision to the bit, and what must not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_tools
from rich.console import Console
from training_tools import TinyData, make_task, make_trainer

from vistrain.cli import main
from vistrain.errors import ConfigError, DataError
from vistrain.metrics.coco_engine import curve_arrays
from vistrain.metrics.detection_errors import KINDS, DetectionAnalysis, analyse
from vistrain.metrics.detection_matching import flatten, match_own_class, rank_in_group
from vistrain.tasks import ErrorAnalysis
from vistrain.tasks.detection.analysis import analyse_records, image_reader, write_analysis
from vistrain.tasks.detection.evaluate import read_records
from vistrain.tasks.detection.pictures import FATES, judged_boxes

CAT, DOG, COW = 3, 7, 20
NAMES = {DOG: "dog", CAT: "cat", COW: "cow"}  # unsorted
Found = tuple[int, float, list[float]]


def truth_of(*images: list[tuple[int, list[float]]], crowds: tuple[int, ...] = ()) -> dict[str, Any]:
    """Images 10, 11 ... with (category, xywh) objects; `crowds` are positions among all objects."""
    annotations = [
        {"image_id": 10 + i, "category_id": c, "bbox": b, "area": b[2] * b[3]}
        for i, o in enumerate(images)
        for c, b in o
    ]
    for n, annotation in enumerate(annotations):
        annotation |= {"id": n + 1, "iscrowd": int(n in crowds)}
    return {
        "images": [{"id": 10 + i, "width": 200, "height": 100, "file_name": f"{i}.png"} for i in range(len(images))],
        "categories": [{"id": i, "name": n} for i, n in NAMES.items()],
        "annotations": annotations,
    }


def record(image: int, *found: Found) -> dict[str, Any]:
    return {
        "id": image,
        "boxes": np.array([b for _, _, b in found], dtype=np.float32).reshape(-1, 4),
        "scores": np.array([s for _, s, _ in found], dtype=np.float32),
        "categories": np.array([c for c, _, _ in found], dtype=np.int64),
    }


def kinds(analysis: DetectionAnalysis) -> list[str]:
    names = {-1: "ignored", 0: "right", **{i + 1: n for i, n in enumerate(KINDS)}}
    return [names[k] for k in analysis.errors.kind.tolist()]


BOX = [20.0, 20.0, 40.0, 40.0]
HALF = [20.0, 20.0, 40.0, 16.0]  # IoU 0.4 with BOX
FAR = [120.0, 20.0, 40.0, 40.0]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(CAT, 0.9, BOX)], ["right"]),
        ([(DOG, 0.9, BOX)], ["class"]),
        ([(CAT, 0.9, HALF)], ["location"]),
        ([(DOG, 0.9, HALF)], ["both"]),
        ([(CAT, 0.9, BOX), (CAT, 0.8, BOX)], ["right", "duplicate"]),
        ([(CAT, 0.9, FAR)], ["background"]),
        ([(CAT, 0.9, [58.0, 20.0, 40.0, 40.0])], ["background"]),  # IoU 0.026: touches, and no more
        ([(CAT, 0.8, BOX), (CAT, 0.9, BOX)], ["right", "duplicate"]),  # the better one first, wherever it stands
        ([], []),
    ],
)
def test_each_kind_of_error(found: list[Found], expected: list[str]) -> None:
    analysis = analyse(truth_of([(CAT, BOX)]), [record(10, *found)])
    assert kinds(analysis) == expected
    is_missed = not {"right", "class", "location"} & set(expected)
    assert analysis.errors.counts == {k: expected.count(k) for k in KINDS} | {"missed": int(is_missed)}


def test_costs_by_hand() -> None:
    """Two cats: one is found; one is called a dog, with a better score. AP 51/101; each mending has a known gain."""
    truth = truth_of([(CAT, BOX), (CAT, FAR)])
    analysis = analyse(truth, [record(10, (CAT, 0.5, BOX), (DOG, 0.9, FAR))])
    assert analysis.errors.ap == pytest.approx(51 / 101)
    cost = {name: pytest.approx(value, abs=1e-9) for name, value in analysis.errors.cost.items()}
    assert cost["class"] == 50 / 101  # the dog becomes a cat, and both are found
    assert cost["missed"] == 0.0  # the class error means the other cat
    assert cost["false_negatives"] == 50 / 101
    assert cost["location"] == cost["both"] == cost["duplicate"] == cost["background"] == cost["false_positives"] == 0.0
    duplicates = analyse(truth, [record(10, (CAT, 0.9, BOX), (CAT, 0.8, BOX), (CAT, 0.7, FAR))]).errors
    # Precision 1 up to recall 0.5, then 2 of 3
    assert duplicates.ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert duplicates.cost["duplicate"] == pytest.approx(1 - duplicates.ap)


def test_of_several_errors_that_mean_an_object_the_best_is_mended() -> None:
    truth = truth_of([(CAT, BOX)])
    found = (CAT, 0.6, HALF), (CAT, 0.9, [20.0, 20.0, 40.0, 18.0])
    errors = analyse(truth, [record(10, *found)]).errors
    assert errors.counts["location"] == 2
    assert (errors.ap, errors.cost["location"]) == (0.0, pytest.approx(1.0))  # the other one is removed
    taken = analyse(truth, [record(10, (CAT, 0.5, BOX), *found)]).errors  # the object is found: both are removed
    assert taken.ap == pytest.approx(1 / 3)
    assert taken.cost["location"] == pytest.approx(2 / 3)


def test_nothing_found_at_all_is_all_missed() -> None:
    errors = analyse(truth_of([(CAT, BOX)], [(DOG, BOX)]), [record(10), record(11)]).errors
    assert (errors.ap, errors.counts["missed"], errors.cost["missed"]) == (0.0, 2, 1.0)
    empty = analyse(truth_of([], []), [record(10, (CAT, 0.9, BOX)), record(11)])
    assert np.isnan(empty.errors.ap)
    assert empty.confusion[3, 0] == 1
    assert analyse(truth_of([(CAT, BOX)]), []).confusion.sum() == 0  # no image at all


def test_confusion_is_counted_object_by_object() -> None:
    truth = truth_of([(CAT, BOX), (CAT, FAR), (DOG, [20.0, 70.0, 20.0, 20.0])], [])
    found = [
        (CAT, 0.9, BOX),
        (DOG, 0.95, BOX),  # better, and of no object of its class: takes the cat's place
        (DOG, 0.8, FAR),
        (COW, 0.7, [150.0, 70.0, 20.0, 20.0]),
        (DOG, 0.2, [20.0, 70.0, 20.0, 20.0]),  # below the score
    ]
    matrix = analyse(truth, [record(10, *found), record(11, (CAT, 0.5, BOX))]).confusion
    expected = np.zeros((4, 4), int)  # cat, dog, cow, background
    expected[0, 1] = 2
    expected[1, 3] = 1
    expected[3, 0], expected[3, 2] = 2, 1  # the better dog left the cat's detection nothing; one in the empty image
    assert matrix.tolist() == expected.tolist()


def test_a_detection_prefers_an_object_of_its_own_class() -> None:
    """A rider and a horse: the rider's box overlaps the horse more than the rider."""
    rider, horse = [20.0, 0.0, 40.0, 50.0], [20.0, 10.0, 40.0, 50.0]
    between = [20.0, 8.0, 40.0, 50.0]
    matrix = analyse(truth_of([(CAT, rider), (DOG, horse)]), [record(10, (CAT, 0.9, between), (DOG, 0.8, horse))])
    assert np.diag(matrix.confusion).tolist() == [1, 1, 0, 0]
    assert matrix.confusion.sum() == 2


def test_crowds_excuse_detections_of_their_class() -> None:
    truth = truth_of([(CAT, [0.0, 0.0, 100.0, 100.0]), (DOG, FAR)], crowds=(0,))
    inside = [10.0, 10.0, 20.0, 20.0]
    analysis = analyse(truth, [record(10, (CAT, 0.9, inside), (CAT, 0.8, inside), (DOG, 0.7, inside))])
    assert kinds(analysis) == ["ignored", "ignored", "background"]
    assert analysis.confusion[3].tolist() == [0, 1, 0, 0]


def random_set(seed: int, crowd: float = 0.0, images: int = 30) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Jittered and partly mislabelled detections with ties, several to an object, and false ones."""
    r = np.random.default_rng(seed)
    categories, objects, records = sorted(NAMES), [], []
    for i in range(images):
        mine, found = [], []
        for _ in range(r.integers(0, 7)):
            category, box = int(r.choice(categories)), np.r_[r.uniform(0, 120, 2), r.uniform(10, 80, 2)]
            mine.append((category, box.tolist()))
            for _ in range(r.integers(0, 5)):
                moved = box + r.normal(0, r.choice([2, 12, 30]), 4)
                moved[2:] = moved[2:].clip(2)
                said = category if r.random() < 0.7 else int(r.choice(categories))
                found.append((said, round(float(r.random()), 2), moved.tolist()))
        objects.append(mine)
        records.append(record(10 + i, *found))
    total = sum(map(len, objects))
    return truth_of(*objects, crowds=tuple(np.flatnonzero(r.random(total) < crowd).tolist())), records


@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_are_those_of_pycocotools_to_the_bit(seed: int) -> None:
    truth, records = random_set(seed, crowd=0.15)
    results = [
        {"image_id": r["id"], "category_id": c, "bbox": b, "score": s}
        for r in records
        for b, s, c in zip(r["boxes"].tolist(), r["scores"].tolist(), r["categories"].tolist(), strict=True)
    ]
    official = curve_arrays(truth, results, [r["id"] for r in records], max_detections=(1, 3))
    curves = analyse(truth, records, max_detections=3).curves
    assert np.array_equal(curves.precision, official.precision[..., 0, -1].transpose(0, 2, 1))
    assert np.array_equal(curves.recall, official.recall[..., 0, -1])
    split = analyse(truth, records, max_detections=3).errors
    assert split.ap == pytest.approx(curves.ap[0].mean(), abs=1e-12)


def test_every_error_is_counted_once_and_mending_never_hurts() -> None:
    truth, records = random_set(7)
    analysis = analyse(truth, records)
    kind, errors = analysis.errors.kind, analysis.errors
    assert sum(errors.counts[k] for k in KINDS[:-1]) + (kind == 0).sum() == len(kind)
    assert min(errors.cost.values()) >= -1e-12
    assert errors.cost["false_positives"] >= max(errors.cost[k] for k in ("both", "duplicate", "background")) - 1e-12
    objects = len(analysis.flat.objects)
    assert analysis.confusion[:3].sum() == objects
    assert analysis.confusion[:, :3].sum() == (analysis.flat.score >= 0.3).sum()
    assert all(errors.counts[k] for k in KINDS)  # the set has some of each


def test_order_and_units_do_not_matter() -> None:
    truth, records = random_set(3)
    first = analyse(truth, records)
    assert analyse(truth, records[::-1] + records[:3]).to_dict() == first.to_dict()  # nor do repeated images
    for item in [*truth["annotations"]]:
        item["bbox"] = [4 * v for v in item["bbox"]]
        item["area"] *= 16
    again = analyse(truth, [{**r, "boxes": r["boxes"] * 4} for r in records])
    assert again.errors.cost == first.errors.cost
    assert np.array_equal(again.confusion, first.confusion)
    scaled = analyse(truth, [{**r, "boxes": r["boxes"] * 4, "scores": r["scores"] ** 2} for r in records])
    assert scaled.errors.cost == first.errors.cost  # only the order of scores decides


def test_perfect_detections_have_no_errors() -> None:
    truth, _ = random_set(5)
    records = []
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        records.append(record(image["id"], *[(a["category_id"], 0.9, a["bbox"]) for a in mine]))
    analysis = analyse(truth, records)
    assert analysis.errors.ap == pytest.approx(1.0)
    assert not any(analysis.errors.counts.values())
    assert analysis.worst(5) == []
    assert np.count_nonzero(analysis.confusion - np.diag(np.diag(analysis.confusion))) == 0


def test_the_worst_image_has_the_most_confident_errors() -> None:
    truth = truth_of([(CAT, BOX)], [(CAT, BOX)], [(CAT, BOX)])
    found = [
        record(10, (CAT, 0.9, BOX)),
        record(11, (CAT, 0.9, BOX), (DOG, 0.8, FAR), (DOG, 0.1, FAR)),
        record(12, (CAT, 0.29, BOX)),  # too weak: not found
    ]
    worst = analyse(truth, found).worst(5)
    assert [(e.image_id, pytest.approx(e.badness)) for e in worst] == [(12, 1.0), (11, 0.8)]
    assert worst[1].scores.tolist() == pytest.approx([0.9, 0.8])
    assert worst[0].found.tolist() == [False]


def test_masks_of_one_box_are_told_apart() -> None:
    """Two halves of a square along its diagonal: their boxes overlap wholly, their masks hardly."""
    upper = np.triu(np.ones((20, 20), bool))
    lower = ~upper
    lower[0, 0] = lower[-1, -1] = True
    runs = [mask_tools.encode(np.asfortranarray(mask, np.uint8)) for mask in (upper, lower)]
    texts = [{**run, "counts": run["counts"].decode()} for run in runs]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "area": 200, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "half"}],
        "annotations": [{**entry, "segmentation": texts[0]}],
    }
    record = {"id": 1, "boxes": np.array([[0, 0, 20, 20.0]] * 2), "scores": np.array([0.9, 0.8]),
              "categories": np.array([1, 1]), "masks": texts[::-1]}  # fmt: skip
    assert analyse(truth, [record]).errors.kind.tolist() == [0, 1 + KINDS.index("duplicate")]
    of_masks = analyse(truth, [record], masks=True).errors
    assert of_masks.kind.tolist() == [1 + KINDS.index("background"), 0]
    assert of_masks.counts["background"] == 1
    crowd = {**entry, "id": 2, "iscrowd": 1, "segmentation": texts[1]}
    excused = analyse({**truth, "annotations": [*truth["annotations"], crowd]}, [record], masks=True)
    assert excused.errors.kind.tolist() == [-1, 0]


def test_ranks_within_groups() -> None:
    assert rank_in_group(np.array([5, 2, 5, 5, 2])).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_group(np.zeros(0, int)).tolist() == []


def test_only_the_best_of_an_image_and_category_count() -> None:
    truth = truth_of([(CAT, BOX)])
    found = record(10, *[(CAT, s / 10, FAR) for s in range(5, 9)], (CAT, 0.1, BOX), (DOG, 0.05, FAR))
    flat = flatten(truth, [found], max_detections=3)
    assert flat.score.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.05])
    assert match_own_class(flat, 0.5).tolist() == [-1] * 4


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(DataError, match="does not list 1 evaluated images"):
        analyse(truth_of([]), [record(99)])
    with pytest.raises(ConfigError, match="background_iou"):
        analyse(truth_of([]), [], background_iou=0.6)


# ------------------------------------------------------------------- files and pictures


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Annotations, results and images of a small set."""
    truth, records = random_set(1, images=4)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = [
        {"image_id": r["id"], "category_id": c, "bbox": b, "score": s}
        for r in records
        for b, s, c in zip(r["boxes"].tolist(), r["scores"].tolist(), r["categories"].tolist(), strict=True)
    ]
    (tmp_path / "found.json").write_text(json.dumps(results))
    for image in truth["images"]:
        Image.new("RGB", (200, 100), (90, 90, 90)).save(tmp_path / image["file_name"])
    return tmp_path


def test_a_results_file_becomes_a_folder(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--annotations", str(files / "truth.json"), "--images", str(files), "--analysis", str(files / "out")]
    assert main(["evaluate", str(files / "found.json"), *words]) == 0
    printed = capsys.readouterr().out
    assert "coco_box" in printed
    assert "errors at IoU 0.5" in printed
    assert {p.name for p in (files / "out").iterdir()} == {
        "analysis.json", "confusion.png", "precision_recall.png", "errors.png", "worst.png",
    }  # fmt: skip
    content = json.loads((files / "out" / "analysis.json").read_text())
    assert content["confusion"]["classes"] == ["cat", "dog", "cow", "background"]
    assert np.array(content["confusion"]["counts"]).shape == (4, 4)
    assert len(content["precision_recall"]["precision"]["dog"]) == 10
    assert len(content["precision_recall"]["precision"]["dog"][0]) == 101
    assert content["errors"]["counts"].keys() == set(KINDS)
    direct = analyse_records(*read_records(files / "found.json", files / "truth.json"), files / "again")
    assert content["errors"]["cost"] == direct.errors.cost
    assert not (files / "again" / "worst.png").exists()  # no images were given


def test_a_test_leaves_an_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "analysis"
    trainer = make_trainer(tmp_path, [ErrorAnalysis(str(folder), score_threshold=0.1)], logger=False)
    trainer.test(make_task(), datamodule=TinyData(), verbose=False)
    content = json.loads((folder / "analysis.json").read_text())
    assert content["settings"]["images"] == 6
    assert content["settings"]["score_threshold"] == 0.1
    assert sum(map(sum, content["confusion"]["counts"])) >= 12  # objects of the six images
    assert "errors at IoU 0.5" in capsys.readouterr().out


def test_without_a_metric_nothing_is_analysed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, [ErrorAnalysis(str(tmp_path / "analysis"))], logger=False)
    trainer.test(make_task(metrics=()), datamodule=TinyData(), verbose=False)
    assert "nothing to analyse" in caplog.text
    assert not (tmp_path / "analysis").exists()


def test_the_option_of_the_command_line_asks_the_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("vistrain.run.test", lambda config, **named: seen.update(config=config, **named))
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert main(["test", "-c", str(tmp_path / "mine.yaml"), "--weights", "w.pth", "--analysis", "a: b"]) == 0
    assert seen["analysis"] == Path("a: b")
    assert main(["test", "--ckpt", "best.ckpt", "--analysis", "out"]) == 0
    assert seen["analysis"] == Path("out")
    task, trainer = make_task(), make_trainer(tmp_path, logger=False)
    task.analysis_folder = tmp_path / "asked"
    trainer.test(task, datamodule=TinyData(), verbose=False)
    assert (tmp_path / "asked" / "confusion.png").exists()
    settings = json.loads((tmp_path / "asked" / "analysis.json").read_text())["settings"]
    assert settings["score_threshold"] == 0.3
    assert "errors at IoU 0.5" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_left_out(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth, records = random_set(1, images=4)
    analysis = analyse(truth, records)
    (files / "0.png").write_bytes(b"")
    del truth["images"][1]["height"]
    write_analysis(analysis, files / "out", image_reader(truth, files))
    assert "empty file" in caplog.text
    assert "has no 'height'" in caplog.text
    assert (files / "out" / "worst.png").exists()
    (files / "file").touch()
    with pytest.raises(DataError, match="cannot be made"):
        write_analysis(analysis, files / "file" / "out")


def test_sets_without_objects_or_with_many_classes_are_drawn(tmp_path: Path) -> None:
    write_analysis(analyse(truth_of([], []), [record(10), record(11)]), tmp_path / "empty")
    text = (tmp_path / "empty" / "analysis.json").read_text()
    assert "NaN" not in text
    truth, records = random_set(2, images=5)
    truth["categories"] += [{"id": 100 + i, "name": f"class {i}"} for i in range(80)]
    write_analysis(analyse(truth, records), tmp_path / "many")
    with Image.open(tmp_path / "many" / "confusion.png") as image:
        assert image.width < 3000
    with Console(record=True, width=100).capture() as captured:
        Console().print(analyse(truth, records))
    assert captured is not None


def test_boxes_are_drawn_in_the_colour_of_their_fate() -> None:
    image = np.full((100, 200, 3), 90, np.uint8)
    boxes = [[20, 30, 60, 70], [120, 30, 160, 70]]
    drawn = judged_boxes(image, boxes, ["cat", "dog"], ["right", "background"], [0.9, 0.8])
    assert tuple(drawn[50, 20]) == FATES["right"]
    assert tuple(drawn[50, 120]) == FATES["background"]
    assert (image == 90).all()


def test_categories_of_one_name_have_curves_of_their_own() -> None:
    truth = truth_of([(DOG, [0, 0, 10, 10]), (CAT, [20, 20, 10, 10])])
    for category in truth["categories"]:
        category["name"] = "hat" if category["id"] in (DOG, CAT) else category["name"]
    truth["categories"].insert(0, {"id": 0, "name": "hat"})  # the root of an export, without objects
    first, second = sorted((DOG, CAT))
    curves = analyse(truth, [record(10, (first, 0.9, truth["annotations"][first == CAT]["bbox"]))]).to_dict()
    found = curves["precision_recall"]["AP"]
    assert found["hat"][0] == pytest.approx(1)
    assert found["hat (id 0)"][0] is None
    assert found[f"hat (id {second})"][0] == 0
