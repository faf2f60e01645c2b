"""What stands beside exported files is right line by line, and what cannot be exported is refused at once."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain import run
from vistrain.cli import main
from vistrain.config import compose
from vistrain.data.base.transform import EvalTransform
from vistrain.data.classification.transforms import EvalCrop
from vistrain.data.detection.transforms import EvalResize
from vistrain.data.segmentation.transforms import EvalScale, EvalStretch
from vistrain.detection.focus_detr import _cut_off
from vistrain.errors import ConfigError, DataError
from vistrain.layers.imresize import _along, _enlarged
from vistrain.restoration import RestorationModel
from vistrain.run.exported import sizes_of
from vistrain.run.exported_example import example
from vistrain.run.exported_runtime import Replaced, reason, runtime_of
from vistrain.structures import LabelSpace, Preprocessing

LABELS = LabelSpace(("a", "b"), (0, 1))


def write_checkpoint(path: Path, config: dict[str, Any], labels: LabelSpace | None, channels: int = 3) -> Path:
    """What a run of a config would write before its first step, but for what its training goes on from."""
    torch.manual_seed(0)
    model = run.build_model(config, labels or LabelSpace((), ()), channels)
    facts = {"version": "0", "config": config, "preprocessing": model.preprocessing.to_dict()}
    facts |= {"labels": None if labels is None else labels.to_dict(), "channels": model.channels}
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "vistrain": facts}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A restorer of three convolutions."""
    changes = {"model": {"network": {"num_feat": 4, "num_block": 1}}}
    config = compose(["vistrain:demo/restoration"], changes=changes)
    return write_checkpoint(tmp_path_factory.mktemp("export") / "best.ckpt", config, None)


@pytest.mark.parametrize("size", [(90, 61), (40, 120), (64, 64)])
@pytest.mark.parametrize(
    "transform",
    [
        EvalResize(80, 133),
        EvalResize(80, 100, arithmetic="detectron2", interpolation="bicubic"),
        EvalResize(70, None),
        EvalCrop((48, 48)),
        EvalCrop((48, 32), 0.9, "bilinear"),
        EvalCrop((48, 48), 1.0, mode="squash"),
        EvalCrop((48, 48), 1.0, mode="border"),
        EvalScale(),
        EvalScale((100, 60)),
        EvalScale((100, 60), multiple=32),
        EvalScale((100, 60), antialias=True),
        EvalStretch((50, 70)),
        EvalStretch((50, 70), antialias=True),
    ],
)
def test_a_transform_says_itself_in_python(transform: EvalTransform, size: tuple[int, int]) -> None:
    """Pillow's pixels are the same; OpenCV rounds what it computes in whole numbers."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    known: dict[str, Any] = {"image": Image.fromarray(image), "np": np, "Image": Image}
    lines = "\n".join(transform.in_python())
    exec(lines, known)
    wanted = transform(image)
    assert known["pixels"].shape == wanted.shape
    assert np.abs(known["pixels"].astype(float) - wanted).max() <= (1 if "pixels.take" in lines else 0)


def test_the_longest_examples_are_short_and_need_three_packages(checkpoint: Path) -> None:
    model, _ = run.load(checkpoint)
    described = model.exported_facts()
    lines = EvalScale((100, 60), multiple=32).in_python()
    text = example("mine", 1, lines, described, Preprocessing(channel_order="bgr", size_divisor=32), True)
    assert len(text.splitlines()) <= 30
    names = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in names}
    assert imported == {"json", "sys", "pathlib", "numpy", "onnxruntime", "PIL"}


def test_the_example_of_a_file_of_fixed_sides_refuses_others(checkpoint: Path) -> None:
    model, _ = run.load(checkpoint)
    parts = "mine", 3, ("pixels = np.asarray(image)",), model.exported_facts(), Preprocessing()
    free, fixed = (example(*parts, is_free).splitlines() for is_free in (True, False))
    more = [line for line in fixed if line not in free]
    assert len(fixed) == len(free) + len(more)
    facts = {"input": {"images": ["batch", 3, 4, 6]}}
    exec("\n".join(more), {"x": np.zeros((1, 3, 4, 6)), "facts": facts, "sys": sys})
    there = SimpleNamespace(argv=["", "a.png"], exit=sys.exit)
    with pytest.raises(SystemExit, match=r"a\.png: \[6, 4\] pixels, the file takes \[4, 6\] alone"):
        exec("\n".join(more), {"x": np.zeros((1, 3, 6, 4)), "facts": facts, "sys": there})


def test_counts_of_tokens_without_floating_point() -> None:
    """The shares of published models, at all numbers of tokens that images have."""

    class Unknown(torch.SymInt):
        def __init__(self, value: int) -> None:
            self.value = value

        def __mul__(self, other: int) -> int:  # type: ignore[override]
            return self.value * other

    for share in (1.0, 0.8, 0.6, 0.5, 0.4, 0.2):
        for count in range(1, 30000, 7):
            assert _cut_off(Unknown(count), share) == _cut_off(count, share)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_enlarging_by_phases_is_enlarging(scale: int, axis: int) -> None:
    images = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = _along(images, axis, images.shape[axis - 2] * scale, float(scale), True)
    torch.testing.assert_close(_enlarged(images, axis, float(scale)), wanted, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="not known"):
        _enlarged(images, axis, 1.5)


def test_sizes_are_those_that_evaluation_gives(checkpoint: Path) -> None:
    model, _ = run.load(checkpoint)
    assert sizes_of(model, None)[1]
    assert sizes_of(model, EvalCrop((48, 32))) == ([(48, 32)], False)
    assert sizes_of(model, EvalResize(96, 160)) == ([(96, 128), (144, 96)], True)
    model.preprocessing = Preprocessing(size_divisor=64)
    assert sizes_of(model, EvalResize(96, 160)) == ([(128, 128), (192, 128)], True)
    model.preprocessing = Preprocessing(size_divisor=256)
    assert sizes_of(model, EvalResize(96, 160)) == ([(256, 256)], False)


def test_a_file_takes_the_place_of_a_network(checkpoint: Path) -> None:
    model, _ = run.load(checkpoint)
    images = torch.rand(2, 3, 8, 8)
    wanted = model(images)
    assert isinstance(model, RestorationModel)
    place = Replaced(model, lambda given: [wanted + given.shape[0]])
    batch = {"image": (images * 255).byte(), "size": torch.tensor([[8, 8]] * 2)}
    found = model.predict(batch)
    torch.testing.assert_close(torch.stack([f.image for f in found]), wanted.detach() + 2)
    assert not place.seconds  # the first call warms up
    model.predict(batch)
    assert len(place.seconds) == 1
    with pytest.raises(ConfigError, match="padded"):
        place(images, torch.ones(2, 8, 8, dtype=torch.bool))


def test_an_error_is_one_line() -> None:
    assert reason(ValueError("\n  one \ntwo")) == "one"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 500))) == 200


REFUSED = {
    "folder": (["--output", "."], "has another suffix"),
    "folder.onnx": (["--output", "folder.onnx"], "is a folder"),
    "unwritable": (["--output", "file.txt/x.onnx"], "cannot be written"),
    "suffix": (["--output", "mine.pth"], "has another suffix than .onnx or .pt2"),
    "opset": (["--output", "mine.onnx", "--opset", "3"], "--opset: 3 is not known here - 18 to"),
    "opset of pt2": (["--output", "mine.pt2", "--opset", "18"], "--opset"),
    "sides": (["--output", "mine.onnx", "--size", "32"], "2 sides in pixels are wanted"),
    "no side": (["--output", "mine.onnx", "--size", "32", "0"], "2 sides in pixels are wanted"),
    "limit": (["--output", "mine.onnx", "--limit", "3"], "--limit: is for measuring"),
    "limit 0": (["--output", "mine.pt2", "--limit", "0"], "--limit: is for measuring"),
    "change": (["--output", "mine.onnx", "data.root=x"], "data.root=x: is for measuring"),
    "part": (["--output", "mine.pth", "--part", "backbone", "--half"], "--half: means nothing for a part"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    Path("folder.onnx").mkdir()
    words, said = REFUSED[name]
    assert main(["export", "--ckpt", str(checkpoint), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"file.txt", "folder.onnx"}  # nothing is left behind


def test_a_network_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--output", "mine.onnx"]) == 2
    assert "which network?" in capsys.readouterr().err


@pytest.mark.parametrize(("missing", "words"), [("onnxruntime", ["--measure"]), ("onnx", []), ("onnxscript", [])])
def test_a_missing_package_is_named(
    missing: str, words: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == missing else find(name, *more))
    assert main(["export", "--ckpt", str(checkpoint), "--output", str(tmp_path / "mine.onnx"), *words]) == 2
    error = capsys.readouterr().err
    assert f"{missing} " in error
    assert "pip install 'vistrain[export]'" in error


def test_a_task_that_cannot_be_exported_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_checkpoint(tmp_path / "mae.ckpt", compose(["vistrain:demo/pretraining"]), None)
    assert main(["export", "--ckpt", str(path), "--output", str(tmp_path / "mae.pt2")]) == 2
    assert "MAE has no outputs that another program could read" in capsys.readouterr().err


def test_files_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        runtime_of(tmp_path / "none.onnx")
    (tmp_path / "mine.pt2").touch()
    with pytest.raises(ConfigError, match="may run anything"):
        runtime_of(tmp_path / "mine.pt2")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "mine.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match="onnxruntime cannot run it"):
        runtime_of(tmp_path / "mine.onnx")
