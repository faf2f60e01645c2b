"""What a user gets wrong in a classification run ends in one line that names it: through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from vistrain.backbones.backbone import _stages
from vistrain.cli import main
from vistrain.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for k, name in enumerate(("ant", "bee")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(k * 9 + i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.jpg")
    return tmp_path / "set"


def fit(folder: Path, *changes: str, kind: str = "ImageFolder") -> int:
    command = ["fit", "-c", "vistrain:_base_/classification", f"data.type=data.{kind}", f"data.root={folder}"]
    command += ["data.batch_size=4", "data.workers=0", "data.image_size=32", "model.backbone.name=test_resnet"]
    command += ["optimizer.type=torch.optim.SGD", "optimizer.lr=0.01", "trainer.max_epochs=1"]
    return main([*command, "trainer.accelerator=cpu", f"run.folder={folder.parent / 'run'}", *changes])


def lists(folder: Path) -> None:
    (folder / "train.csv").write_text("file,label\ntrain/ant/0.jpg,ant\ntrain/bee/0.jpg,bee\n")
    (folder / "val.csv").write_text("file,label\nval/ant/0.jpg,ant\nval/bee/0.jpg,wasp\n")


@pytest.mark.parametrize(
    ("mischief", "changes", "said"),
    [
        (lambda f: [p.unlink() for p in (f / "train/bee").iterdir()], (), "train/bee: class 'bee' has no image in it"),
        (lambda f: (f / "val/bee/1.jpg").write_bytes(b"no image"), (), "val/bee/1.jpg: not an image that can be read"),
        (
            lambda f: (f / "classes.txt").write_text("ant\nwasp\n"),
            ("data.classes=classes.txt",),
            "1 listed classes have no folder (wasp, ...); 1 folders are not listed (bee, ...) - list each class",
        ),
        (lambda f: None, ("model.backbone.name=resnet5O",), "model.backbone.name: no backbone 'resnet5O' - did you"),
        (
            lambda f: None,
            ("model.backbone.name=vit_tiny_patch16_224", "data.image_size=200"),
            "data.image_size: vit_tiny_patch16_224 cannot take images of 200x200; it takes 224x224, ",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    mischief: Callable[[Path], object],
    changes: tuple[str, ...],
    said: str,
) -> None:
    mischief(folder)
    assert fit(folder, *changes) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vistrain: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_list_with_a_class_that_training_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists(folder)
    assert fit(folder, "data.train=train.csv", "data.val=val.csv", kind="ImageList") == 2
    assert "val.csv: line 3: class 'wasp' is not among the 2 classes of train.csv" in capsys.readouterr().err


def test_a_checkpoint_of_another_number_of_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(folder, "model.backbone.name=test_resnet") == 0
    for split in ("train", "val"):
        (folder / split / "cat").mkdir()
        Image.new("RGB", (40, 40)).save(folder / split / "cat/0.jpg")
    capsys.readouterr()
    assert main(["test", "--ckpt", str(folder.parent / "run/last.ckpt")]) == 2
    said = capsys.readouterr().err
    assert "last.ckpt: it was trained on 2 classes (contiguous), the data has 3 (contiguous)" in said
    assert "fine-tune with run.weights" in said


def test_a_model_without_intermediate_maps_is_no_dense_backbone() -> None:
    # No model of timm's lacks them any more; one that somebody registers may.
    with pytest.raises(ConfigError, match="name: timm's plain gives no intermediate maps"):
        _stages(nn.Identity(), "plain")
