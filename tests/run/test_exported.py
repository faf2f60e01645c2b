"""A network of each task as a file: it gives the network's numbers, and the example beside it reads it as we do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run.test_exported_rules import write_checkpoint

from vistrain.cli import main
from vistrain.config import compose
from vistrain.config.builder import build
from vistrain.data import DataModule
from vistrain.layers.low_rank import PARTS
from vistrain.metrics import Unit, unit_of
from vistrain.run.exported_measured import measure
from vistrain.run.predict import load_predictor
from vistrain.writing import json_line

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SMALL = {"type": "backbones.Backbone", "name": "resnet10t", "pretrained": False}
STEM = {"stem_width": 8, "channels": [8, 16, 16, 16]}
SHAPES = {"train_images": 2, "val_images": 3, "workers": 0}
FOUR = {**SMALL, "strides": [4, 8, 16, 32], "args": STEM}

QUERIES = {"embed_dim": 16, "num_layers": 3, "num_heads": 2, "ffn_dim": 16, "num_queries": 8}

REGIONS: dict[str, Any] = {
    "backbone": FOUR,
    "neck": {"type": "necks.FPN", "embed_dim": 8, "num_levels": 5},
    "rpn": {"type": "detection.RPNHead", "embed_dim": 8, "proposals": [20, 20]},
    "box_head": {"type": "detection.BoxHead", "fc_dim": 8},
    "mask_head": {"type": "detection.MaskHead", "num_convs": 1, "embed_dim": 8},
}
OF_ONE = ("Mask R-CNN", "Cascade R-CNN")
FIXED = ("classifier", "U-Net", "SCNN")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "classifier": (
        "vistrain:demo/classification",
        {"data": {"train_images": 1, "val_images": 1, "workers": 0}, "model": {"backbone": {"args": STEM}}},
    ),
    "Focus-DETR": (
        "vistrain:demo/detection",
        {
            "data": SHAPES,
            "model": {"embed_dim": 32, "num_heads": 2, "ffn_dim": 16, "decoder_layers": 1, "backbone": {"args": STEM}},
        },
    ),
    "RetinaNet": (
        "vistrain:demo/detection",
        {
            "data": SHAPES,
            "model": {"type": "detection.RetinaNet", "backbone": {**SMALL, "strides": [8, 16, 32], "args": STEM}},
        },
    ),
    "Mask R-CNN": ("vistrain:demo/instances", {"data": SHAPES, "model": REGIONS}),
    "Cascade R-CNN": (
        "vistrain:demo/instances",
        {"data": SHAPES, "model": {"type": "detection.CascadeMaskRCNN", **REGIONS}},
    ),
    "UPerNet": (
        "vistrain:demo/segmentation",
        {"data": SHAPES, "model": {"backbone": FOUR, "head": {"type": "segmentation.UPerHead", "embed_dim": 8}}},
    ),
    "Mask2Former": (
        "vistrain:demo/panoptic",
        {
            "data": SHAPES,
            "model": {
                "backbone": FOUR,
                "pixel_decoder": {"embed_dim": 32, "mask_dim": 16, "ffn_dim": 16},
                "decoder": QUERIES,
            },
        },
    ),
    "PEM": (
        "vistrain:demo/panoptic",
        {
            "data": SHAPES,
            "model": {
                "type": "segmentation.PEM",
                "backbone": FOUR,
                "pixel_decoder": {"type": "segmentation.PEMPixelDecoder", "embed_dim": 32, "mask_dim": 16},
                "decoder": {"type": "segmentation.PEMDecoder", **QUERIES},
                "object_threshold": 0.1,
                "outputs": ["panoptic"],
            },
        },
    ),
    "SCNN": ("vistrain:demo/lanes", {"data": {**SHAPES, "size": [64, 96]}, "model": {"input_size": [64, 96]}}),
    "HAT": (
        "vistrain:demo/restoration",
        {
            "data": {"workers": 0},
            "model": {
                "network": {
                    "type": "restoration.HAT", "upscale": 2, "embed_dim": 8, "depths": [2], "num_heads": [2],
                    "window_size": 8, "squeeze_factor": 4, "compress_ratio": 2,
                }
            },
        },
    ),
    "U-Net": (
        "vistrain:demo/phantom",
        {"data": {"number": 5, "workers": 0}, "model": {"network": {"widths": [4, 8]}, "window": [32, 32, 32]}},
    ),
}  # fmt: skip


def checkpoint_of(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of a case whose weights were drawn."""
    base, changes = CASES[name]
    config = compose([base], changes=changes)
    config["data"]["root"] = str(folder / "data")
    data: DataModule = build(config["data"], DataModule, where="data")
    data.prepare_data()
    path = write_checkpoint(folder / "best.ckpt", config, data.labels, data.channels)
    content, generator = torch.load(path, weights_only=True), torch.Generator().manual_seed(0)
    for key, value in content["state_dict"].items():
        if ".dcn_offset." in key:  # they start from 0, where a deformable convolution is a plain one
            value.normal_(0, 0.3, generator=generator)
    torch.save(content, path)
    return path, config


def in_points(name: str, pair: tuple[float, float]) -> float:
    unit = unit_of(name.partition("/")[2]) or Unit()
    return abs(pair[1] - pair[0]) * (100 if unit.percent else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_the_networks_numbers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = checkpoint_of(name, tmp_path)
    file = tmp_path / "mine.onnx"
    assert main(["export", "--ckpt", str(path), "--output", str(file)]) == 0
    told = capsys.readouterr().out
    share = re.search(r"differs from the network by (\S+) of", told)
    assert share is not None
    assert float(share[1]) < 1e-4
    numbers, _ = measure(file, checkpoint=path, limit=2)
    assert numbers
    assert max(in_points(*item) for item in numbers.items()) <= 0.05
    facts = json.loads(file.with_suffix(".json").read_text())
    assert facts["input"]["images"][0] == (1 if name in OF_ONE else "batch")
    assert (facts["input"]["images"][2] == "height") == (name not in FIXED)
    assert ("an example" in told) == (name not in ("RetinaNet", "U-Net", "SCNN"))
    if "an example" in told:
        reading = {"classifier": classes_agree, "HAT": pictures_agree, "Focus-DETR": boxes_agree}
        reading |= dict.fromkeys(OF_ONE, objects_agree)
        reading.get(name, maps_agree)(path, file, tmp_path)


def example_says(file: Path, folder: Path) -> tuple[list[list[str]], Path]:
    """What the example prints of a picture, by lines and words, and the picture that it writes."""
    photo = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    Image.fromarray(photo).resize((102, 71)).save(folder / "photo.png")
    words = [sys.executable, "-I", str(file.with_suffix(".py")), str(folder / "photo.png"), str(folder / "made.png")]
    assert len(file.with_suffix(".py").read_text().splitlines()) <= 30
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()], folder / "made.png"


def classes_agree(path: Path, file: Path, folder: Path) -> None:
    said, _ = example_says(file, folder)
    predictor = load_predictor(path, "cpu")
    scores = predictor.predict(folder / "photo.png").scores
    assert len(said) == 5
    for name, score in said:
        assert float(score) == pytest.approx(float(scores[predictor.labels.names.index(name)]), abs=1e-4)


def boxes_agree(path: Path, file: Path, folder: Path) -> None:
    text = file.with_suffix(".py").read_text()
    file.with_suffix(".py").write_text(text.replace(">= 0.3", ">= 0.0"))  # drawn weights are sure of nothing
    said, _ = example_says(file, folder)
    predictor = load_predictor(path, "cpu", threshold=0.0)
    found = predictor.predict(folder / "photo.png")
    best = max(said, key=lambda words: float(words[1]))
    assert float(best[1]) == pytest.approx(float(found.scores[0]), abs=1e-4)
    assert best[0] == predictor.labels.names[int(found.labels[0])]
    extent = torch.tensor([102.0, 71.0, 102.0, 71.0])
    box = torch.tensor([float(x) for x in best[2:]]).clamp(min=0).minimum(extent)
    torch.testing.assert_close(box, found.boxes[0], rtol=0, atol=0.1)


def objects_agree(path: Path, file: Path, folder: Path) -> None:
    text = file.with_suffix(".py").read_text()
    file.with_suffix(".py").write_text(text.replace(">= 0.3", ">= 0.0"))  # drawn weights are sure of nothing
    said, made = example_says(file, folder)
    found = load_predictor(path, "cpu", threshold=0.0).predict(folder / "photo.png")
    assert len(said) == len(found.scores) > 0
    assert float(said[0][1]) == pytest.approx(float(found.scores[0]), abs=1e-4)
    numbers = np.array(Image.open(made))
    assert numbers.shape == (71, 102)
    if (numbers == 1).any():  # the best one's mask lies above all others; Pillow enlarges to whole pixels
        assert ((numbers == 1) == found.masks[0].numpy()).mean() > 0.9


def pictures_agree(path: Path, file: Path, folder: Path) -> None:
    _, made = example_says(file, folder)
    wanted = load_predictor(path, "cpu").predict(folder / "photo.png")
    assert np.abs(np.array(Image.open(made)).astype(int) - wanted).max() <= 1


def maps_agree(path: Path, file: Path, folder: Path) -> None:
    said, made = example_says(file, folder)
    labels = np.array(Image.open(made))
    assert labels.shape == (71, 102)
    assert said
    found: Any = load_predictor(path, "cpu").predict(folder / "photo.png")
    if isinstance(found, np.ndarray):  # of panoptic maps, the example leaves out what is dropped
        assert (labels == found).mean() > 0.999


@pytest.mark.slow
def test_forms_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fixed sides, half precision, torch's own program, gathers: each close to the network."""
    path, config = checkpoint_of("classifier", tmp_path)
    half, program = tmp_path / "half.onnx", tmp_path / "mine.pt2"
    assert main(["export", "--ckpt", str(path), "--output", str(half), "--half", "--size", "96", "96"]) == 0
    facts = json.loads(half.with_suffix(".json").read_text())
    assert (facts["precision"], facts["input"]["images"]) == ("float16", ["batch", 3, 96, 96])
    weights = [tensor for tensor in onnx.load(half).graph.initializer if len(tensor.dims) == 4]
    assert weights
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert main(["test", "--ckpt", str(path), "--exported", str(half)]) == 2
    assert "takes images of 96x96 pixels alone, not 64x64" in capsys.readouterr().err
    assert main(["export", "--ckpt", str(path), "--output", str(program), "--measure", "--limit", "2"]) == 0
    assert "mine.pt2" in capsys.readouterr().out
    assert not program.with_suffix(".py").exists()
    assert torch.export.load(program).module()(torch.zeros(3, 3, 64, 64))[0].shape == (3, 10)
    assert json_line(config)  # it was not changed


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
def test_deformable_attention_is_sampled_as_asked(sampling: str, tmp_path: Path) -> None:
    path, _ = checkpoint_of("Focus-DETR", tmp_path)
    file = tmp_path / "mine.onnx"
    words = ["--size", "64", "96", "--sampling", sampling]
    assert main(["export", "--ckpt", str(path), "--output", str(file), *words]) == 0
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert ("GridSample" in operators) == (sampling == "grid_sample")


@pytest.mark.slow
def test_low_rank_weights_are_merged(tmp_path: Path) -> None:
    """A file of an adapted checkpoint is that of its sums."""
    path, _ = checkpoint_of("classifier", tmp_path)
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    name = next(k for k in state if k.endswith("fc.weight"))
    weight = state.pop(name)
    stem = name.removesuffix(".weight")
    generator = torch.Generator().manual_seed(1)
    thin = [torch.randn(2, weight.shape[1], generator=generator), torch.randn(len(weight), 2, generator=generator)]
    state[f"{stem}.parametrizations.weight.original"] = weight
    for part, value in zip(PARTS, (*thin, torch.tensor(0.5)), strict=True):
        state[f"{stem}{part}"] = value
    torch.save(content, path)
    file = tmp_path / "mine.pt2"
    assert main(["export", "--ckpt", str(path), "--output", str(file)]) == 0
    program = torch.export.load(file)
    written = next(v for k, v in program.state_dict.items() if k.endswith("fc.weight"))
    torch.testing.assert_close(written, weight + 0.5 * thin[1] @ thin[0])
