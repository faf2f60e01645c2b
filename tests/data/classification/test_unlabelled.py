"""Folders without labels, grey images, and several views of an image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vistrain.data import GeneratedPatterns, UnlabelledFolder
from vistrain.errors import ConfigError, DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(10):
        folder = tmp_path / "photos" / ("a/b" if i % 2 else "c d")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_share_is_held_out_the_same_each_time(photos: Path) -> None:
    sets = [UnlabelledFolder(root=str(photos), holdout=0.3, image_size=16, workers=0) for _ in range(2)]
    parts = [
        [{s.split(n).source.path(i) for i in range(len(s.split(n)))} for n in ("train", "val", "test")] for s in sets
    ]
    assert parts[0] == parts[1]
    train, val, test = parts[0]
    assert (len(train), len(val)) == (7, 3)
    assert val == test
    assert not train & val
    named = UnlabelledFolder(root=str(photos), train="a", val="c d", image_size=16, workers=0)
    assert (len(named.split("train")), len(named.split("val"))) == (5, 5)
    assert named.labels.num_classes == 0
    assert "labels" not in named.collate([named.dataset("val").sample(0)])


def test_the_check_of_no_classes_prints_none(photos: Path, tmp_path: Path) -> None:
    report = UnlabelledFolder(root=str(photos), holdout=0.3, image_size=16, workers=0).check(tmp_path / "look")
    console = Console(width=200, file=io.StringIO())
    with console.capture() as said:
        console.print(report.table())
    assert "smallest side, pixels" in said.get()
    assert "class" not in said.get()
    assert not list((tmp_path / "look").glob("classes-*"))


def test_grey_images_have_one_channel(photos: Path) -> None:
    data = UnlabelledFolder(root=str(photos), color="grey", image_size=(16, 24), batch_size=2, views=2, workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 1, 16, 24)
    assert batch["views"].shape == (1, 2, 1, 16, 24)
    assert data.channels == 1


def test_views_are_versions_of_the_same_image(tmp_path: Path) -> None:
    arguments = {"root": str(tmp_path), "train_images": 1, "val_images": 1, "image_size": 24, "workers": 0}
    one, three = GeneratedPatterns(**arguments), GeneratedPatterns(**arguments, views=3)
    one.prepare_data()
    plain, several = one.dataset("train").sample(2, 7), three.dataset("train").sample(2, 7)
    assert np.array_equal(plain.image, several.image)  # the first is what it was without others
    assert len(several.views) == 2
    assert not np.array_equal(several.views[0], several.views[1])
    again = three.dataset("train").sample(2, 7)
    assert all(np.array_equal(a, b) for a, b in zip(several.views, again.views, strict=True))
    batch = three.collate([several, again])
    assert torch.equal(batch["views"][:, 0], batch["views"][:, 1])
    assert three.dataset("val").sample(0).views == ()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        UnlabelledFolder(root=str(tmp_path / "none")).find("train")
    with pytest.raises(DataError, match="has no images"):
        UnlabelledFolder(root=str(tmp_path)).find("train")
    Image.new("RGB", (20, 20)).save(tmp_path / "only.png")
    with pytest.raises(DataError, match="has one image, of which none can be held out"):
        UnlabelledFolder(root=str(tmp_path)).find("val")
    with pytest.raises(ConfigError, match="holdout"):
        UnlabelledFolder(root=str(tmp_path), holdout=1.0)
    with pytest.raises(ConfigError, match="views"):
        UnlabelledFolder(root=str(tmp_path), views=0)
