"""Images of more than three channels from the command line: checked, trained, tested, predicted, measured again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vistrain.cli import main

CONFIG = """
base: vistrain:seg/custom_masks
data:
  root: set
  train: {images: images, masks: masks}
  val: {images: images, masks: masks}
  classes: [ground, thing]
  bands: {channels: [1, 6, 0, 3, 4], shown: [6, 1, 0]}
  batch_size: 4
  workers: 0
  augment: {crop: [32, 32], scale: null}
model:
  backbone: {name: resnet10t, pretrained: false, strides: [4, 8], args: {stem_width: 8, channels: [8, 16, 24, 32]}}
  head: {type: segmentation.SegFormerHead, embed_dim: 16}
trainer: {max_epochs: 10, check_val_every_n_epoch: 10, accelerator: cpu}
schedule: {warmup_steps: 1}
optimizer: {lr: 3.0e-3}
run: {folder: run}
"""


def write_set(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for name in range(8):
        labels = np.zeros((36, 48), np.uint8)
        y, x = draw.integers(0, 16, 2)
        labels[y : y + 18, x : x + 20] = 1
        values = draw.normal(3000, 300, (36, 48, 7))
        values[..., 6] += 4000.0 * labels  # one channel alone tells
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        np.save(folder / f"images/{name}.npy", values.astype(np.uint16))
        Image.fromarray(labels).save(folder / f"masks/{name}.png")


def test_channels_are_measured_trained_on_and_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    Path("mine.yaml").write_text(CONFIG)
    assert main(["fit", "-c", "mine.yaml"]) == 2
    assert "mean and std of the channels are missing" in capsys.readouterr().err
    assert main(["check", "-c", "mine.yaml", "--output", "look"]) == 2
    report = json.loads(Path("look/report.json").read_text())
    line = next(a["remedy"] for a in report["advice"] if "mean and std" in a["problem"])
    measured = np.stack([np.load(f) for f in sorted(Path("set/images").iterdir())]).reshape(-1, 7)
    np.testing.assert_allclose(report["splits"]["train"]["band_mean"], measured[:, [1, 6, 0, 3, 4]].mean(0), rtol=1e-4)
    assert Path("look/samples-train.png").is_file()

    assert main(["fit", "-c", "mine.yaml", *line.split()]) == 0
    assert main(["test", "--ckpt", "run/best.ckpt"]) == 0
    tested = json.loads(next(Path("run").glob("**/test*.json")).read_text())
    found = tested.get("numbers", tested)["test/miou/mIoU"]
    assert found > 0.6
    assert main(["predict", "--ckpt", "run/best.ckpt", "--input", "set/images", "--output", "out"]) == 0
    assert main(["evaluate", "out", "-c", "mine.yaml"]) == 0
    assert f"{found:.4f}"[:5] in capsys.readouterr().out

    few = np.load("set/images/0.npy")[..., :4]
    np.save("set/images/0.npy", few)
    assert main(["check", "-c", "mine.yaml", "--output", "look", *line.split()]) == 2
    bad = json.loads(Path("look/report.json").read_text())["splits"]["train"]["bad_files"]
    assert "asks for number 6" in bad.popitem()[1]
    assert main(["predict", "--ckpt", "run/best.ckpt", "--input", "set/images/0.npy", "--output", "out"]) != 0
    assert "0.npy" in capsys.readouterr().err
