"""Lanes from the command line: trained, tested, predicted in the sets' formats, and measured again from files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistrain.cli import main
from vistrain.data import GeneratedLanes
from vistrain.data.segmentation.lane_files import read_json_lines, read_lines
from vistrain.errors import ConfigError, DataError
from vistrain.run.predict import load_predictor, predict_paths
from vistrain.tasks.segmentation.lanes import LaneTask, _of_names, _read_all

CONFIG = """
base: vistrain:demo/lanes
data: {root: data, train_images: 4, val_images: 4, scale: 0.15, size: [32, 64], batch_size: 2, workers: 0}
model: {input_size: [32, 64], decoder: {threshold: 0.0, exist: 0.0}} # untrained, it finds points everywhere
schedule: {warmup_steps: 0}
trainer: {max_epochs: 1, check_val_every_n_epoch: 1, accelerator: cpu, log_every_n_steps: 1}
callbacks: {}
run: {folder: run}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lanes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "mine.yaml").write_text(CONFIG)
        assert main(["fit", "-c", "mine.yaml"]) == 0
    return folder


def test_a_run_leaves_numbers_and_pictures(trained):
    with (trained / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss_seg", "train/loss_exist", "val/culane/F1", "val/culane/recall"} <= set(rows[0])
    assert list((trained / "run/eval").glob("*.png"))
    with (trained / "run/per_image.csv").open(newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == {f"images/val/{i:05d}.jpg" for i in range(4)}


def test_predict_writes_the_sets_formats_and_evaluate_reads_them(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["test", "--ckpt", "run/best.ckpt", "data.workers=0"]) == 0
    said = capsys.readouterr().out
    (root,) = Path("data").glob("lanes-*")
    arguments = ["predict", "--ckpt", "run/best.ckpt", "--input", str(root / "images/val"), "--output"]
    assert main([*arguments, "out"]) == 0
    found = json.loads(Path("out/predictions.json").read_text())["images"]
    for entry in found:
        lanes = read_lines(Path("out/pictures/lanes") / entry["file"].replace(".jpg", ".lines.txt"))
        assert [lane.tolist() for lane in lanes] == [lane for lane in entry["lanes"] if lane]
    assert len(list(Path("out/pictures/overlays").glob("*.jpg"))) == 4
    assert main([*arguments, "json", "--format", "tusimple"]) == 0
    assert [entry.name for entry in read_json_lines(Path("json/tusimple.json"))] == [e["file"] for e in found]
    capsys.readouterr()
    for folder in ("out", "json/tusimple.json"):
        assert main(["evaluate", folder, "-c", "mine.yaml"]) == 0
        again = capsys.readouterr().out
        for line in (row for row in said.splitlines() if "F1" in row or "recall" in row):
            assert line in again


def test_pictures_that_differ_in_their_suffix_alone_keep_their_lanes_apart(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    source = next(Path("data").glob("lanes-*/images/val/*.jpg"))
    for name in ("a.jpg", "a.png", "b.png"):
        Image.open(source).save(tmp_path / name)
    predict_paths("run/best.ckpt", tmp_path, "apart", device="cpu")
    written = sorted(path.name for path in Path("apart/pictures/lanes").iterdir())
    assert written == ["a.jpg.lines.txt", "a.png.lines.txt", "b.lines.txt"]
    found = _read_all(Path("apart"))
    assert set(_of_names(found, ["x/a.jpg", "x/a.png", "x/b.png"], Path("apart"))) == {"x/a.jpg", "x/a.png", "x/b.png"}


def test_perfect_lanes_are_perfect(trained, monkeypatch):
    monkeypatch.chdir(trained)
    (root,) = Path("data").glob("lanes-*")
    data = GeneratedLanes("data", 4, 4, scale=0.15, size=(32, 64))
    shown = LaneTask.evaluate_file(root, data)
    assert shown.numbers["culane/F1"] == 1
    assert shown.numbers["culane/FP_cross"] == 0
    with pytest.raises(ConfigError, match="culane, tusimple"):
        LaneTask.evaluate_file(root, data, protocol="miou")
    with pytest.raises(ConfigError, match="no truth"):
        LaneTask.evaluate_file(root)
    shutil.copytree(root / "images/val", "some/images/val", ignore=lambda folder, names: [sorted(names)[-1]])
    with pytest.raises(DataError, match="has no prediction in"):
        LaneTask.evaluate_file(Path("some"), data)


def test_what_can_be_refused_is_refused_before_roads_are_generated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    (tmp_path / "empty").mkdir()
    for folder, said in (("nothing", "no such file or folder"), ("empty", "holds no file that ends in .lines.txt")):
        assert main(["evaluate", folder, "-c", "mine.yaml"]) == 2
        assert said in capsys.readouterr().err
    tiles = ["predict", "-c", "mine.yaml", "--input", "empty", "--output", "out", "--tile", "64"]
    assert main(tiles) == 2
    assert "--tile: means nothing for the task of this network - its options are --format" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_predictor_takes_arrays(trained, monkeypatch):
    monkeypatch.chdir(trained)
    lanes = load_predictor("run/best.ckpt", "cpu").predict(np.zeros((50, 90, 3), np.uint8))
    assert len(lanes) == 4
    assert all(lane.shape[1] == 2 for lane in lanes)
