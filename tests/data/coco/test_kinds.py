"""Predictions of another kind than a config evaluates are called by their kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vistrain.data import CULane, MaskFolders, MaskSplit, PanopticFolders, PanopticSplit
from vistrain.data.coco.kinds import kind_of
from vistrain.errors import DataError
from vistrain.tasks.detection.evaluate import read_records
from vistrain.tasks.segmentation.evaluate import evaluate_masks
from vistrain.tasks.segmentation.lanes import evaluate_lanes
from vistrain.tasks.segmentation.panoptic_evaluate import evaluate_instances, evaluate_panoptic

BOX = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 2, 2]}
FILES: dict[str, tuple[Any, str]] = {
    "boxes.json": ([BOX], "a file of objects with boxes alone, in COCO's results format"),
    "masks.json": ([{**BOX, "segmentation": {}}], "a file of objects with masks, in COCO's results format"),
    "panoptic.json": ({"annotations": [{"segments_info": []}]}, "a panoptic file"),
    "truth.json": (
        {"annotations": [{"bbox": []}], "images": []},
        "a file of annotations in COCO's format, not results",
    ),
    "found.json": ({"images": [{"detections": []}]}, "a predictions.json of objects"),
    "shares.json": ({"images": [{"file": "a.png"}]}, "a predictions.json, which describes pictures"),
    "odd.json": (5, ""),
    "other.json": ([3], ""),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, (content, _) in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    for name in ("last.ckpt", "a.png", "mine.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "cut.json").write_text("[{")
    (tmp_path / "maps/pictures/masks").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_kinds(place: Path) -> None:
    assert {name: kind_of(place / name) for name in FILES} == {name: kind for name, (_, kind) in FILES.items()}
    found = [kind_of(place / name) for name in ("last.ckpt", "a.png", "mine.yaml", "cut.json", "maps", "empty", "no")]
    assert found == ["a checkpoint", "a picture", "a config", "", "a folder with label files (pictures/masks)", "", ""]


def panoptic(place: Path) -> PanopticFolders:
    split = PanopticSplit("images", "masks", "x.json")
    return PanopticFolders(train=split, val=split, root=str(place))


def masks(place: Path) -> MaskFolders:
    return MaskFolders(MaskSplit("a", "b"), MaskSplit("a", "b"), ("x", "y"), root=str(place))


EVALUATORS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "class maps": (
        lambda file, place: evaluate_masks(file, masks(place)),
        "boxes.json panoptic.json last.ckpt",
    ),
    "instances": (lambda file, place: evaluate_instances(file, panoptic(place)), "panoptic.json truth.json maps a.png"),
    "segments": (lambda file, place: evaluate_panoptic(file, panoptic(place)), "masks.json truth.json maps mine.yaml"),
    "objects": (lambda file, place: read_records(file, "x", {}), "panoptic.json shares.json maps truth.json a.png"),
    "lanes": (lambda file, place: evaluate_lanes(file, CULane(root=str(place)), "culane"), "boxes.json maps"),
}


@pytest.mark.parametrize("wanted", EVALUATORS)
def test_other_kinds_are_called_by_their_kind(wanted: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, names = EVALUATORS[wanted]
    monkeypatch.setattr(PanopticFolders, "listed", lambda self, split: None)
    monkeypatch.setattr(PanopticFolders, "labels", None)
    monkeypatch.setattr(CULane, "dataset", lambda self, split: type("None", (), {"entries": []}))
    for name in names.split():
        with pytest.raises(DataError) as refused:
            evaluate(place / name, place)
        assert f"{name}: is {kind_of(place / name)}; this evaluates {wanted} - give" in str(refused.value)
