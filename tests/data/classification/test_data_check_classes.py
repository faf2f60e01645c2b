"""`vistrain check` for classification and restoration: every file opened, what is wrong listed with its file."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vistrain.cli import main
from vistrain.data import Bicubic, GaussianNoise, GeneratedPatterns, ImageFolder, ImageList, ImageSet, RestorationData
from vistrain.data.base.module import DataModule
from vistrain.errors import ConfigError, DataError


def text(report) -> str:
    console = Console(width=1000, file=io.StringIO())
    with console.capture() as captured:
        console.print(report.table())
    return captured.get()


def picture(path: Path, size: tuple[int, int] = (20, 16), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three classes; `bee` has twice as many images."""
    root = tmp_path / "set"
    for seed, (split, name, count) in enumerate(
        (s, n, c) for s in ("train", "val") for n, c in (("ant", 2), ("bee", 4), ("cat", 2))
    ):
        for i in range(count):
            picture(root / split / name / f"{i}.png", seed=10 * seed + i)
    return root


# ------------------------------------------------------------------ classification


def test_a_clean_set_of_classes(folders: Path, tmp_path: Path) -> None:
    report = ImageFolder(root=str(folders), workers=0, batch_size=8).check(tmp_path / "out")
    assert report.ok
    assert list(report.splits) == ["train", "val"]  # the test split is the validation split
    train = report.splits["train"]
    assert (train.images, train.classes) == (8, {"ant": 2, "bee": 4, "cat": 2})
    assert (train.image_sizes, train.smallest_side) == ({"20 x 16": 8}, 16)
    assert report.leaks == train.repeated == []
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    assert sorted(Path(p).name for p in report.pictures) == sorted(
        f"{kind}-{split}.png" for kind in ("classes", "samples") for split in ("train", "val")
    )
    for path in report.pictures:
        with Image.open(path) as drawn:
            assert len(np.unique(np.asarray(drawn.convert("L")))) > 10
    assert "images of the largest / smallest class" in text(report)


def test_a_broken_set_of_classes(folders: Path, tmp_path: Path) -> None:
    (folders / "train" / "ant" / "0.png").write_bytes(b"")
    half = folders / "val" / "bee" / "0.png"
    half.write_bytes(half.read_bytes()[:300])
    shutil.copy(folders / "train" / "bee" / "1.png", folders / "train" / "bee" / "again.png")
    shutil.copy(folders / "train" / "cat" / "1.png", folders / "val" / "cat" / "leak.png")
    shutil.rmtree(folders / "val" / "ant")
    report = ImageFolder(root=str(folders), workers=0).check(tmp_path / "out")
    assert not report.ok
    assert list(report.splits["train"].bad_files) == [str(folders / "train" / "ant" / "0.png")]
    assert list(report.splits["val"].bad_files) == [str(half)]
    assert [[Path(f).name for f in group] for group in report.splits["train"].repeated] == [["1.png", "again.png"]]
    assert [[f.split(":")[0] for f in group] for group in report.leaks] == [["train", "val"]]
    assert report.splits["val"].classes["ant"] == 0
    shown = text(report)
    assert "1 classes have no images: ant" in shown
    assert "1 images are in more than one split" in shown


def test_an_empty_class_folder_is_named_and_the_rest_is_looked_at(folders: Path, tmp_path: Path) -> None:
    for file in (folders / "train" / "cat").iterdir():
        file.unlink()
    report = ImageFolder(root=str(folders), workers=0).check(tmp_path / "out")
    assert not report.ok
    assert "class 'cat' has no image in it" in report.splits["train"].problem
    assert report.splits["val"].images == 8
    assert "fill or remove it" in text(report)


def test_a_list_that_does_not_match(folders: Path, tmp_path: Path) -> None:
    (folders / "classes.txt").write_text("ant\nbee\ndog\n")
    report = ImageFolder(root=str(folders), classes="classes.txt", workers=0).check(tmp_path / "out")
    assert "1 listed classes have no folder (dog, ...); 1 folders are not listed (cat, ...)" in text(report)
    (folders / "train.csv").write_text("file,label\nant/0.png,ant\nbee/0.png,bee\n")
    (folders / "val.csv").write_text("file,label\nant/1.png,wasp\n")
    lists = ImageList("train.csv", "val.csv", root=str(folders), images="train", workers=0)
    report = lists.check(tmp_path / "out")
    assert not report.ok
    assert report.splits["train"].classes == {"ant": 1, "bee": 1}
    assert "line 2: class 'wasp' is not among the 2 classes" in report.splits["val"].problem
    assert "test" not in report.splits  # the same list, said once


def test_pictures_that_are_not_read_are_named(folders: Path, tmp_path: Path) -> None:
    (folders / "train" / "ant" / "photo.HEIC").write_bytes(b"heic")
    report = ImageFolder(root=str(folders), workers=0, batch_size=8).check(tmp_path / "out")
    assert not report.ok
    assert "1 pictures are of formats that are not read (first: ant/photo.HEIC)" in report.splits["train"].refused[0]


def test_several_classes_per_image(folders: Path, tmp_path: Path) -> None:
    (folders / "train.csv").write_text("file,labels\nant/0.png,ant|bee\nbee/0.png,\n")
    lists = ImageList("train.csv", "train.csv", root=str(folders), images="train", workers=0)
    report = lists.check(tmp_path / "out")
    assert (report.splits["train"].classes, report.splits["train"].unlabelled) == ({"ant": 1, "bee": 1}, 1)
    assert "images of no class" in text(report)


def test_generated_classes_are_made_first(tmp_path: Path) -> None:
    data = GeneratedPatterns(root=str(tmp_path), train_images=2, val_images=1, workers=0, image_size=32, batch_size=4)
    report = data.check(tmp_path / "out")
    assert report.ok
    assert len(report.splits["train"].classes) == 10


def test_the_command_for_classes(folders: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["check", "-c", "vistrain:cls/custom_folder", f"data.root={folders}"]
    assert main([*words, "data.batch_size=8"]) == 0
    assert "report and pictures: check/custom_folder" in capsys.readouterr().out
    assert main(words) == 2
    assert "fewer than the global batch of 64 - lower data.batch_size" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--repair", "out.json"]) == 2
    assert "has no annotation file to mend" in capsys.readouterr().err
    (folders / "train" / "ant" / "0.png").write_bytes(b"no image")
    assert main(["check", "-c", "vistrain:cls/custom_folder", f"data.root={folders}", "--output", "elsewhere"]) == 2
    assert not json.loads((tmp_path / "elsewhere" / "report.json").read_text())["ok"]


# ------------------------------------------------------------------ restoration


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four images of 24x16, twice as large as their degraded versions."""
    for i in range(4):
        picture(tmp_path / "hr" / f"{i}.png", (24, 16), seed=i)
        picture(tmp_path / "lr" / f"{i}.png", (12, 8), seed=i)
    return tmp_path


def restoration(root: Path, **changes) -> RestorationData:
    sets = ImageSet("hr", "lr")
    return RestorationData(sets, {"mine": sets}, root=str(root), scale=2, workers=0, batch_size=4, **changes)


def test_clean_pairs(pairs: Path) -> None:
    report = restoration(pairs, patch=4).check(pairs / "out")
    assert report.ok
    assert list(report.splits) == ["train", "val"]
    train = report.splits["train"]
    assert (train.images, train.degraded, train.smallest_side) == (4, 4, 8)
    assert train.image_sizes == {"24 x 16": 4}
    assert report.splits["val"].sets == {"mine": 4}
    assert all(Path(p).is_file() for p in report.pictures)
    assert json.loads((pairs / "out" / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))


def test_broken_pairs(pairs: Path) -> None:
    torn = pairs / "hr" / "0.png"
    torn.write_bytes(torn.read_bytes()[:200])
    picture(pairs / "lr" / "1.png", (13, 8))
    (pairs / "lr" / "2.png").write_bytes(b"")
    report = restoration(pairs, patch=64).check(pairs / "out")
    assert not report.ok
    bad = report.splits["train"].bad_files
    assert set(bad) == {str(torn), str(pairs / "lr" / "1.png"), str(pairs / "lr" / "2.png")}
    assert "13x8 pixels, but 2 times less than 24x16 is 12x8" in bad[str(pairs / "lr" / "1.png")]
    shown = text(report)
    assert "is smaller than the patch of 64" in shown
    assert str(torn) in shown.replace("\n", "")


def test_a_missing_degraded_version(pairs: Path) -> None:
    (pairs / "lr" / "3.png").unlink()
    report = restoration(pairs).check(pairs / "out")
    assert not report.ok
    assert "3" in report.splits["train"].problem


def test_images_degraded_on_the_fly(pairs: Path) -> None:
    sets = ImageSet("hr")
    for degradation in (Bicubic(2), GaussianNoise(25.0)):
        data = RestorationData(sets, {"mine": sets}, root=str(pairs), degradation=degradation, workers=0, batch_size=4)
        report = data.check(pairs / "out")
        assert report.ok
        assert report.splits["train"].degraded == 0


def test_other_data_is_refused(tmp_path: Path) -> None:
    class Odd(DataModule):
        labels = dataset = largest = collate = None

    with pytest.raises(ConfigError, match=r"data\.type: Odd cannot be checked"):
        Odd(batch_size=2).check(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        GeneratedPatterns(root=str(tmp_path), train_images=1, val_images=1, workers=0).check(tmp_path / "file" / "out")
