"""Semantic segmentation from the command line: trained, tested, analysed, predicted, and measured again from files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import rows, trained_folder
from PIL import Image

from vistrain.cli import main
from vistrain.data.segmentation.label_files import read_label_file
from vistrain.errors import ConfigError
from vistrain.pictures import coloured, legend, overlaid
from vistrain.predictions import Segmentation
from vistrain.run.predict import load_predictor, predict_paths
from vistrain.structures import LabelSpace
from vistrain.tasks.base.worst import write_table
from vistrain.tasks.segmentation.pictures import truth_and_prediction
from vistrain.tasks.segmentation.predictor import SegmentationPredictor, write_label_file

CONFIG = """
base: vistrain:seg/_base_/semantic
data:
  type: data.GeneratedMasks
  root: data
  train_images: 16
  val_images: 6
  scale: 0.5
  batch_size: 8
  workers: 0
  scenes: {classes: [circle, star], more_objects: 1.0, sides: [0.3, 0.6], visible: 0.9}
model:
  type: segmentation.SemanticSegmenter
  backbone: {name: resnet10t, strides: [4, 8, 16], args: {stem_width: 8, channels: [8, 16, 24, 32]}}
  head: {type: segmentation.SegFormerHead, embed_dim: 16, dropout: 0.0}
  auxiliary: {type: segmentation.FCNHead, embed_dim: 8, stride: 16}
  loss: {type: losses.PixelLosses, losses: [{type: losses.PixelCrossEntropy}, {type: losses.PixelDice, weight: 0.5}]}
optimizer: {type: torch.optim.AdamW, lr: 3e-3}
trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}
run: {folder: run}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return trained_folder(tmp_path_factory, "segmentation", CONFIG)


def test_a_run_leaves_numbers_and_pictures(trained):
    metrics = rows(trained / "run/metrics.csv")
    assert {"train/loss_seg", "train/loss_aux", "val/miou/mIoU", "val/miou/aAcc"} <= set(metrics[0])
    measured = [float(row["val/miou/mIoU"]) for row in metrics if row["val/miou/mIoU"]]
    assert len(measured) == 2
    assert 0 < measured[-1] < 1
    classes = rows(trained / "run/per_class.csv")
    assert [row["class"] for row in classes] == ["ground", "star", "circle"]
    assert len(rows(trained / "run/per_image.csv")) == 6
    assert list((trained / "run/eval").glob("*.png"))


def test_test_analyse_predict_and_evaluate_agree(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    assert main(["test", "--ckpt", "run/best.ckpt", "--analysis", "analysis", "data.workers=0"]) == 0
    said = capsys.readouterr().out
    assert "most confused" in said
    assert {p.name for p in Path("analysis").iterdir()} >= {
        "per_class.csv", "per_image.csv", "confusion.png", "worst.png",
    }  # fmt: skip
    images = rows(Path("analysis/per_image.csv"))
    assert [float(r["mIoU"]) for r in images] == sorted(float(r["mIoU"]) for r in images)
    (root,) = Path("data").glob("masks-*")
    found = str(root / "images/validation")
    assert main(["predict", "--ckpt", "run/best.ckpt", "--input", found, "--output", "out"]) == 0
    entries = json.loads(Path("out/predictions.json").read_text())
    assert entries["classes"][0] == {"value": 1, "name": "ground"}
    assert sum(entries["images"][0]["classes"].values()) == pytest.approx(1, abs=1e-4)
    mask = Image.open("out/pictures/masks/000000.png")
    assert mask.mode == "P"
    assert set(np.unique(np.asarray(mask))) <= {1, 2, 3}  # as the training data stores them
    assert len(list(Path("out/pictures/overlays").glob("*.jpg"))) == 6
    capsys.readouterr()
    assert main(["evaluate", "out", "-c", "mine.yaml"]) == 0
    again = capsys.readouterr().out
    for line in (row for row in said.splitlines() if any(name in row for name in ("mIoU", "mAcc", "aAcc"))):
        assert line in again  # the same numbers from files


def test_windows_agree_with_the_whole_where_one_window_is_enough(trained, monkeypatch):
    monkeypatch.chdir(trained)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    whole = load_predictor("run/best.ckpt", "cpu").predict(image)
    assert (whole.shape, whole.dtype) == ((48, 64), np.int64)
    windows = load_predictor("run/best.ckpt", "cpu", window=64).predict(image)
    np.testing.assert_array_equal(whole, windows)
    small = load_predictor("run/best.ckpt", "cpu", window=32, stride=16).predict(image)
    assert small.shape == (48, 64)
    cut = load_predictor("run/best.ckpt", "cpu", window=32, stride=16, merge="cut", scales=[0.5, 1.5], flip=True)
    assert (cut.model.window_merge, cut.model.scales, cut.model.flip) == ("cut", (0.5, 1.5), True)
    assert cut.predict(image).shape == (48, 64)
    for wrong in (
        {"window": 32, "stride": 64},
        {"stride": 8},
        {"window": -1},
        {"window": 0, "stride": 8},
        {"window": 0, "merge": "cut"},
        {"merge": "blend"},
        {"opacity": 2.0},
        {"scales": [0.0]},
        {"scales": [1.0, math.nan]},
    ):
        with pytest.raises(ConfigError, match=r"--(window|stride|merge|opacity|scales)"):
            load_predictor("run/best.ckpt", "cpu", **wrong)


def test_probabilities_are_written_on_request(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/a.png")
    for kind, window in (("float16", 32), ("uint8", None)):
        options = {"window": window, "stride": 16 if window else None, "probabilities": kind}
        predict_paths("run/best.ckpt", tmp_path / "in", tmp_path / kind, device="cpu", **options)
        found = np.load(tmp_path / kind / "pictures/probabilities/a.npy")
        assert (found.shape, found.dtype) == ((3, 48, 64), np.dtype(kind))
        share = found.astype(np.float64) / (255 if kind == "uint8" else 1)
        np.testing.assert_allclose(share.sum(0), 1, atol=0.01)
        classes = load_predictor("run/best.ckpt", "cpu", window=window, stride=options["stride"]).predict(pixels)
        chosen = np.take_along_axis(share, classes[None], 0)[0]
        assert (chosen >= share.max(0) - 0.005).all()


def test_names_that_differ_in_their_suffix_alone_lose_nothing(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(trained)
    grey, noise = (
        np.full((32, 32, 3), 128, np.uint8),
        np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8),
    )
    (tmp_path / "in").mkdir()
    for name, pixels in (("same.png", grey), ("same.jpg", noise), ("same.png.png", grey), ("other.jpg", noise)):
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    predict_paths("run/best.ckpt", tmp_path / "in", tmp_path / "out", device="cpu", probabilities="uint8")
    names = ["other", "same.jpg", "same.png", "same.png_"]
    for folder, suffix in (("masks", ".png"), ("probabilities", ".npy")):
        written = sorted(p.name for p in (tmp_path / "out/pictures" / folder).iterdir())
        assert written == [f"{name}{suffix}" for name in names]
    assert Image.open(tmp_path / "out/pictures/masks/same.jpg.png").size == (32, 24)
    assert Image.open(tmp_path / "out/pictures/masks/same.png.png").size == (32, 32)
    for image, stored in (("same.jpg", "same.jpg.png"), ("same.png", "same.png.png")):  # each is found by its image
        root = tmp_path / image
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
        Image.open(tmp_path / "in" / image).save(root / "images" / image)
        mask = Image.open(tmp_path / "out/pictures/masks" / stored)
        mask.save(root / "masks/same.png")
        (root / "classes.txt").write_text("1\tground\n2\tstar\n3\tcircle\n")
        split = "{images: images, masks: masks}"
        (root / "mine.yaml").write_text(
            f"task: {{type: tasks.SegmentationTask}}\ndata: {{type: data.MaskFolders, root: {root}, "
            f"classes: classes.txt, train: {split}, val: {split}}}\n"
        )
        assert main(["evaluate", str(tmp_path / "out"), "-c", str(root / "mine.yaml")]) == 0
        assert "100.0" in capsys.readouterr().out
    mask.resize((30, 20)).save(root / "masks/same.png")
    Image.new("RGB", (30, 20)).save(root / "images" / image)
    assert main(["evaluate", str(tmp_path / "out"), "-c", str(root / "mine.yaml")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vistrain: ")]
    assert f"masks/{stored}: is 32 x 32 pixels (height x width), its truth {root / 'masks/same.png'} 20 x 30" in line


LABELS = LabelSpace(("road", "sky"), (3, 300), ignore_index=255, palette=((255, 0, 0), (0, 0, 255)))


def test_colours_over_an_image():
    classes = np.array([[0, 1], [255, 1]], np.uint8)
    colours = {0: (255, 0, 0), 1: (0, 0, 255)}
    assert coloured(classes, colours).tolist() == [[[255, 0, 0], [0, 0, 255]], [[0, 0, 0], [0, 0, 255]]]
    image = np.full((4, 4, 3), 100, np.uint8)
    shown = overlaid(image, classes, colours, opacity=0.5)
    assert (shown[0, 0].tolist(), shown[3, 0].tolist(), shown[0, 3].tolist()) == (
        [178, 50, 50], [100, 100, 100], [50, 50, 178],
    )  # fmt: skip
    narrow, wide = (legend({0: "road", 1: "sky"}, colours, [0, 1], width) for width in (60, 300))
    assert narrow.shape[0] > wide.shape[0]
    assert (255, 0, 0) in {tuple(p) for p in wide.reshape(-1, 3).tolist()}
    assert legend({}, {}, [], 50).shape == (0, 50, 3)


def test_truth_and_prediction_have_one_legend():
    batch = {"id": ["a"], "target": [{"label_map": torch.zeros(8, 8, dtype=torch.uint8)}]}
    found = Segmentation(semantic=torch.ones(8, 8, dtype=torch.int64))
    image = np.zeros((32, 32, 3), np.uint8)
    cells = truth_and_prediction(image, batch, 0, found, LABELS, 200)
    assert [caption for caption, _ in cells] == ["a: truth", "prediction"]
    (_, truth), (_, prediction) = cells
    assert truth.shape == prediction.shape
    height = 80  # of the image, enlarged
    np.testing.assert_array_equal(truth[height:], prediction[height:])
    assert truth[5, 5, 0] > 0 == truth[5, 5, 2]
    assert prediction[5, 5, 2] > 0 == prediction[5, 5, 0]
    assert len(truth_and_prediction(image, {"id": ["a"], "target": []}, 0, None, LABELS, 200)) == 1


def test_label_files_of_16_bits(tmp_path):
    write_label_file(tmp_path / "a.png", np.array([[0, 1]]), LABELS)
    assert read_label_file(tmp_path / "a.png").tolist() == [[3, 300]]
    assert SegmentationPredictor.pictures == "pictures"


def test_names_that_are_no_utf_8_are_escaped_in_tables(tmp_path):
    write_table(tmp_path / "per_image.csv", [["image", "miou"], ["caf\udce9, 2", "0.5"]])
    with (tmp_path / "per_image.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["image", "miou"], ["caf\\udce9, 2", "0.5"]]
