"""Any data module of a task trains, predicts and is checked, also one in a format of its own, of a foreign package."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vistrain import config
from vistrain.cli import main
from vistrain.data import EvalCrop, EvalResize
from vistrain.data.base.module import DataModule
from vistrain.data.base.transform import EvalTransform
from vistrain.errors import DataError

HERE = Path(__file__).parent
DETECTOR = {
    "embed_dim": 32, "num_heads": 4, "ffn_dim": 32, "encoder_layers": 1, "cascade": [1.0], "decoder_layers": 2,
    "num_queries": 12, "denoising": {"number": 4},
}  # fmt: skip


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of squares, eight to train on, of which one has none."""
    root, draw = tmp_path_factory.mktemp("boxes"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        lines = ["file,x1,y1,x2,y2,class"]
        for number in range(count):
            pixels, name = draw.integers(0, 100, (48, 64, 3)).astype(np.uint8), f"{split}_{number}.png"
            for kind in ("light", "dark") if number else ():
                x, y = draw.integers(0, 40, 2).tolist()
                pixels[y : y + 12, x : x + 16] = 255 if kind == "light" else 0
                lines.append(f"{name},{x},{y},{x + 16},{min(y + 12, 48)},{kind}")
            lines += [f"{name},,,,,"] if not number else []
            Image.fromarray(pixels).save(root / name)
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def write_config(path: Path, content: dict[str, object]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_table_of_boxes_is_a_detection_set(boxes: Path, tmp_path: Path) -> None:
    from own_sets import BoxTable

    data = BoxTable(classes=("light", "dark"), root=str(boxes), workers=0, batch_size=3, eval_short_side=32)
    data.setup("fit")
    assert data.class_names == ("light", "dark")
    batch = next(iter(data.train_dataloader()))
    assert batch["num_targets"] == 6  # two in each of three images
    assert [len(b["target"][0]["labels"]) for b in data.val_dataloader()] == [0, 2, 2, 2]
    assert len(data.ground_truth("val")["annotations"]) == 6
    assert data.image_path("val", 2) == boxes / "val_1.png"
    assert data.eval_transform.to_node()["type"] == "data.EvalResize"
    report = data.check(tmp_path)
    assert report.ok
    assert list(report.splits) == ["train", "val"]  # the test split is the validation split
    (boxes / "bad.csv").write_text("file,x1,y1,x2,y2,class\ntrain_1.png,1,1,5,5,drak\n")
    with pytest.raises(DataError, match=r"bad\.csv: train_1\.png: unknown class 'drak' - did you mean 'dark'"):
        BoxTable(classes=("light", "dark"), train="bad.csv", root=str(boxes)).setup("fit")


def test_a_detector_of_a_set_of_its_own_predicts_from_the_checkpoint_alone(boxes: Path, tmp_path: Path) -> None:
    own = {"type": "own_sets.BoxTable", "classes": ["light", "dark"], "root": str(boxes), "workers": 0,
           "batch_size": 4, "eval_short_side": 32, "augment": {"scales": [32, 48], "crop": 0.0}}  # fmt: skip
    small = {"base": "vistrain:demo/detection_long", "data": own, "model": DETECTOR, "trainer": {"max_steps": 2}}
    path = write_config(tmp_path / "own.yaml", {**small, "run": {"folder": str(tmp_path / "run")}})
    assert main(["fit", "-c", path, "--allow", "own_sets"]) == 0
    assert main(["check", "-c", path, "--allow", "own_sets", "--output", str(tmp_path / "check")]) == 0
    checkpoint = str(tmp_path / "run" / "last.ckpt")
    stored = torch.load(checkpoint, weights_only=True)["vistrain"]["evaluation"]
    assert config.build(stored, EvalTransform, where="evaluation") == EvalResize(32)
    # The data's package is not allowed here, and its files are not asked for.
    words = ["predict", "--ckpt", checkpoint, "--input", str(boxes / "val_1.png"), "--output", str(tmp_path / "out")]
    sys.modules.pop("own_sets")
    assert main([*words, "--threshold", "0"]) == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {d["name"] for image in found["images"] for d in image["detections"]} <= {"light", "dark"}
    assert "own_sets" not in sys.modules


def test_classes_in_file_names_are_a_classification_set(tmp_path: Path) -> None:
    from own_sets import ClassInName

    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for number in range(count):
            shade = 40 + 150 * (number % 2)
            pixels = draw.integers(shade, shade + 40, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / split / f"{'ab'[number % 2]}_{number}.png")
    data = ClassInName(classes=("a", "b"), root=str(tmp_path / "set"), workers=0, batch_size=4, image_size=32)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["num_targets"] == 4
    assert data.ground_truth("val")["labels"] == [(0,), (0,), (1,), (1,)]
    assert data.check(tmp_path / "check").ok
    own = {"type": "own_sets.ClassInName", "classes": ["a", "b"], "root": str(tmp_path / "set"), "workers": 0,
           "batch_size": 4, "image_size": 32}  # fmt: skip
    small = {"base": "vistrain:demo/classification", "data": own, "run": {"folder": str(tmp_path / "run")}}
    path = write_config(tmp_path / "own.yaml", {**small, "trainer": {"max_steps": 2}})
    assert main(["fit", "-c", path, "--allow", "own_sets"]) == 0
    checkpoint = str(tmp_path / "run" / "last.ckpt")
    stored = torch.load(checkpoint, weights_only=True)["vistrain"]["evaluation"]
    assert isinstance(config.build(stored, EvalTransform, where="evaluation"), EvalCrop)
    words = ["predict", "--ckpt", checkpoint, "--input", str(tmp_path / "set" / "val")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 4


def test_what_adding_a_set_costs() -> None:
    lines = (HERE / "own_sets.py").read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("class ")] + [len(lines)]
    sizes = [b - a for a, b in itertools.pairwise(starts)]
    assert len(sizes) == 2
    assert max(sizes) <= 40


def test_a_name_nearly_that_of_the_contract_is_refused() -> None:
    with pytest.raises(TypeError, match="did you mean 'count_targets'"):

        class Odd(DataModule):
            def count_target(self, target: object) -> int:
                return 1

    with pytest.raises(TypeError, match="did you mean 'channels'"):

        class Odder(DataModule):
            chanels = 1
