"""Whole runs on pairs: numbers, pictures, predictions from the checkpoint, resuming, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vistrain
from vistrain import config, run
from vistrain.checkpoints import load_file
from vistrain.cli import main
from vistrain.data.correspondence.displacement_files import read_displacement
from vistrain.errors import ConfigError, DataError
from vistrain.tasks.correspondence.pictures import cells

SMALL = {
    "image_size": [32, 48], "patch": 16, "dim": 32, "depth": 2, "heads": 2, "decoder_dim": 16, "decoder_depth": 2,
    "decoder_heads": 2, "hooks": [0, 1, 2, 3], "widths": [4, 8, 8, 8], "head_width": 8,
}  # fmt: skip


def compose(root: Path, folder: Path, finds: str = "disparity", **more: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "data": {"root": str(root), "finds": finds, "train_images": 4, "val_images": 2, "height": 40, "width": 56,
                 "batch_size": 2, "workers": 0, "largest_shift": 4.0},
        "model": {**SMALL, "finds": finds}, "metrics": [finds], "schedule": {"type": "optim.Constant"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "check_val_every_n_epoch": 1},
        "run": {"folder": str(folder)},
    }  # fmt: skip
    return config.compose(["vistrain:demo/matching"], changes=config.merge(changes, more))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", params=["disparity", "flow"])
def finished(request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / request.param
    assert run.fit(compose(data_root, folder, request.param)) == 0
    return folder


def test_a_run_leaves_numbers_and_pictures(finished: Path) -> None:
    name = finished.name
    row = list(csv.DictReader((finished / "metrics.csv").open()))[-1]
    for number in ("EPE", "bad1", "bad3", "D1-all" if name == "disparity" else "Fl-all"):
        assert float(row[f"val/{name}/{number}"]) >= 0
    # First, second, found, truth and distance stand side by side
    width, height = Image.open(finished / "eval/epoch_001.png").size
    assert width > 5 * 56
    assert height > 40


def test_pairs_are_predicted_from_the_checkpoint_alone(finished: Path, data_root: Path, tmp_path: Path) -> None:
    axes = 2 if finished.name == "flow" else 1
    (folder,) = data_root.glob(f"matches-*-{finished.name}-*")
    first, second = folder / "val/first", folder / "val/second"
    words = ["predict", "--ckpt", str(finished / "best.ckpt"), "--input", str(first), "--second", str(second)]
    assert main([*words, "--output", str(tmp_path / "out"), "--batch-size", "2"]) == 0
    said = json.loads((tmp_path / "out/predictions.json").read_text())
    entries = next(value for value in said.values() if isinstance(value, list)) if isinstance(said, dict) else said
    assert [entry["width"] for entry in entries] == [56, 56]
    assert all(entry["largest_displacement"] >= entry["mean_displacement"] for entry in entries)
    fields = sorted((tmp_path / "out/pictures/fields").iterdir())
    assert [file.suffix for file in fields] == [".flo" if axes == 2 else ".pfm"] * 2
    predictor = vistrain.load(finished / "best.ckpt", device="cpu")
    found = predictor.predict((first / "0000.png", second / "0000.png")).field
    assert found.shape == (axes, 40, 56)
    stored = read_displacement(fields[0], "flow" if axes == 2 else "disparity")
    np.testing.assert_allclose(stored, found.numpy(), atol=1e-4)
    assert Image.open(tmp_path / "out/pictures/colours/0000.png").size[0] > 3 * 56
    assert main([*words, "--output", str(tmp_path / "kitti"), "--kitti", "true"]) == 0
    assert {file.suffix for file in (tmp_path / "kitti/pictures/fields").iterdir()} == {".png"}


@pytest.mark.parametrize("finished", ["disparity"], indirect=True)
def test_a_run_that_goes_on_ends_with_the_bits_of_a_whole_one(finished: Path, data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "part")
    more = {"trainer": {"max_epochs": 2}}
    assert run.fit(compose(data_root, tmp_path / "part", **more), resume=tmp_path / "part") == 0
    assert run.fit(compose(data_root, tmp_path / "whole", **more)) == 0
    one, other = (load_file(tmp_path / name / "last.ckpt")["state_dict"] for name in ("whole", "part"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_what_cannot_be_is_refused_in_one_line(data_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    refused = {
        "data.crop=[32, 40]": r"data\.crop: \[32, 40\] is no multiple of the patch of 16x16 - use the model's tiles",
        "metrics=[miou]": r"metrics: 'miou' does not measure what CorrespondenceTask's networks predict",
        "data.train_images=0": r"data\.train_images: 0 is too small",
        "model.hooks=[0, 1, 2, 9]": r"model\.hooks: ",
    }
    for change, said in refused.items():
        with pytest.raises(ConfigError, match=said):
            run.fit(config.compose([], [change], start=compose(root, tmp_path / "run")))
        assert not root.exists()
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"flow.*set model\.finds to disparity"):
        run.fit(config.compose([], ["model.finds=flow"], start=compose(data_root, tmp_path / "run")))


def test_pairs_that_do_not_go_together_are_refused(finished: Path, tmp_path: Path) -> None:
    predictor = vistrain.load(finished / "best.ckpt", device="cpu")
    images = [np.zeros((40, width, 3), np.uint8) for width in (56, 57)]
    with pytest.raises(DataError, match=r"the second picture: is 57x40 pixels, the first 56x40"):
        predictor.predict(tuple(images))
    with pytest.raises(DataError, match="is no pair of pictures - give two in a tuple"):
        predictor.predict(images[0])
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has no second image - give --second"):
        predictor.predict(tmp_path / "a.png")
    (tmp_path / "second").mkdir()
    words = ["predict", "--ckpt", str(finished / "best.ckpt"), "--input", str(tmp_path / "a.png"), "--second"]
    assert main([*words, str(tmp_path / "second"), "--output", str(tmp_path / "out")]) == 2


def test_colours_are_those_of_the_truth() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    truth = np.full((2, 4, 6), 3.0, np.float32)
    truth[:, :2] = np.nan
    shown = dict(cells("pair", image, image, np.nan_to_num(truth) + np.array([[[3.0]], [[4.0]]], np.float32), truth))
    assert list(shown)[-1] == "off by 5.00 px"
    assert (shown["truth"][:2] == 0).all()  # black is not known
    assert (shown["truth"][2:] != 0).any()
    assert (shown["off by 5.00 px"][2:] == 255).all()
    assert (shown["off by 5.00 px"][:2] == (0, 0, 120)).all()
    equal = dict(cells("pair", image, image, np.nan_to_num(truth), truth))
    assert np.array_equal(equal["truth"][2:], next(v for k, v in equal.items() if k.startswith("found"))[2:])
