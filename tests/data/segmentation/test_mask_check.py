"""`vistrain check` for masks: every way of labelling wrongly that users have is found, with the line that mends it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vistrain.cli import main
from vistrain.config import compose
from vistrain.data import GeneratedMasks, MaskFolders, MaskSplit
from vistrain.data.segmentation.check import MaskReport
from vistrain.errors import ConfigError, DataError

NAMES = ("ground", "tree", "car")
PALETTE = ((128, 64, 128), (107, 142, 35), (0, 0, 142))


def save(path: Path, values: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def write(root: Path, masks: dict[str, np.ndarray], split: str = "train", **arguments) -> None:
    for i, (name, mask) in enumerate(masks.items()):
        size = mask.shape[:2]
        noise = np.random.default_rng(i + 10 * (split == "val")).integers(0, 256, (*size, 3), np.uint8)
        save(root / f"images/{split}/{name}.png", noise)
        save(root / f"masks/{split}/{name}.png", mask, **arguments)


def stripes(*values: int, kind=np.uint8) -> np.ndarray:
    return np.repeat(np.array(values, kind)[None], 12, 0).repeat(4, 1)


def look(root: Path, **arguments) -> MaskReport:
    if not (root / "images/val").exists():
        write(root, {"v": stripes(0, 1, 2)}, "val")
    train, val = (MaskSplit(f"images/{s}", f"masks/{s}") for s in ("train", "val"))
    return MaskFolders(train, val, **{"classes": NAMES, "root": str(root), "batch_size": 1, **arguments}).check(
        root / "out"
    )


def advised(report: MaskReport, split: str = "train") -> str:
    return "\n".join(f"{a.problem} -> {a.remedy}" for a in report.advice if a.split == split)


def test_a_sound_set_is_ok(tmp_path):
    data = GeneratedMasks(root=str(tmp_path), train_images=20, val_images=17, scale=0.5)
    report = data.check(tmp_path / "out")
    assert report.ok
    assert not any(a.stops for a in report.advice)
    train = report.splits["train"]
    assert (train.images, train.kinds, set(report.splits)) == (20, {"grey, 8 bits": 20}, {"train", "val"})
    total = sum(train.pixels.values())
    assert 0 < train.ignored < 0.2
    for name, weight in zip(report.classes, report.class_weights, strict=True):
        assert weight == pytest.approx(1 / np.log(1.02 + train.pixels[name] / total), abs=1e-4)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["splits"]["val"]["pixels"]["ground"] > 0
    assert [Path(p).name for p in report.pictures] == [
        "classes-train.png", "samples-train.png", "classes-val.png", "samples-val.png",
    ]  # fmt: skip
    assert all(np.asarray(Image.open(p)).std() > 10 for p in report.pictures)


def test_what_is_advised_mends_it(tmp_path, capsys, monkeypatch):
    """The line goes into the command as it stands."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a": stripes(0, 255), "b": stripes(255, 0, 0)})
    write(tmp_path, {"v": stripes(0, 255)}, "val")
    Path("mine.yaml").write_text(
        "base: vistrain:seg/_base_/semantic\n"
        "data:\n  type: data.MaskFolders\n  root: .\n  batch_size: 2\n  classes: [ground, vessel]\n"
        "  train: {images: images/train, masks: masks/train}\n  val: {images: images/val, masks: masks/val}\n"
    )
    assert main(["check", "-c", "mine.yaml"]) != 0
    said = " ".join(capsys.readouterr().out.split())
    assert "masks hold 0 and 255 alone" in said
    line = "data.values=[0,255] data.ignore=[]"
    assert line in said
    assert main(["check", "-c", "mine.yaml", *line.split()]) == 0


def test_a_run_refuses_masks_of_which_it_would_read_one_half(tmp_path):
    write(tmp_path, {f"m{i:03}": stripes(0, 0) for i in range(40)})
    write(tmp_path, {"w": stripes(0, 255), "x": stripes(255)})
    write(tmp_path, {"v": stripes(0, 255)}, "val")
    splits = {s: MaskSplit(f"images/{s}", f"masks/{s}") for s in ("train", "val")}
    make = functools.partial(MaskFolders, **splits, classes=NAMES[:2], root=str(tmp_path), batch_size=1)
    with pytest.raises(DataError, match=r"masks/train: masks hold 0 and 255 alone, of which classes have") as it:
        make().setup("fit")
    assert it.value.remedy == "data.values=[0,255] data.ignore=[]"
    make(values=(0, 255), ignore=()).setup("fit")
    write(tmp_path, {"zzz": stripes(0, 1, 255)})  # 255 is a border, then
    make().setup("fit")


def test_black_and_white_masks_of_three_classes_are_refused(tmp_path):
    write(tmp_path, {"a": stripes(0, 255), "b": stripes(255, 0, 0)})
    write(tmp_path, {"v": stripes(0, 255)}, "val")
    for ignore in ((255,), ()):
        report = look(tmp_path, ignore=ignore)
        assert not report.ok
        (found,) = (a for a in report.advice if a.split == "train")
        assert found.stops
        assert "0 and 255 alone: 0 is 'ground', the rest is ignored, and these never occur: tree, car" in found.problem
        assert "(0 ground, 1 tree, 2 car)" in found.remedy
        assert "data.values" in found.remedy
        assert not any("take them out of data.classes" in a.remedy for a in report.advice)
    splits = {s: MaskSplit(f"images/{s}", f"masks/{s}") for s in ("train", "val")}
    make = functools.partial(MaskFolders, **splits, root=str(tmp_path), batch_size=1)
    with pytest.raises(DataError, match=r"masks/train: masks hold 0 and 255 alone: 0 is 'ground'"):
        make(classes=NAMES).setup("fit")
    with pytest.raises(DataError, match=r"masks/train: every pixel that counts is 'ground'"):
        make(classes=NAMES[:1]).setup("fit")
    make(classes=NAMES, values=(0, 255, 7), ignore=()).setup("fit")


def test_what_was_written_is_said_with_a_missing_mask(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(0, 1, 2)})
    write(tmp_path, {"v": stripes(0, 1, 2)}, "val")
    Path("masks/train/b.png").unlink()
    Path("mine.yaml").write_text(
        "base: vistrain:seg/custom_masks\ndata: {root: ., batch_size: 1, workers: 0, classes: [ground, tree, car]}\n"
        "trainer: {accelerator: cpu, max_steps: 500}\nmodel: {backbone: {name: resnet10t}}\n"
    )
    assert main(["check", "-c", "mine.yaml", "--output", "seen", "optimizer.groups.rules=[]"]) == 2
    output, errors = capsys.readouterr()
    assert output.splitlines()[-2:] == [
        "report and pictures: seen", "a run would be refused or lose something: see above",
    ]  # fmt: skip
    assert "vistrain: " not in errors


def test_jpeg_masks_are_said_once_for_each_split(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2)})
    report = look(tmp_path)
    for split in ("train", "val"):
        for path in (tmp_path / f"masks/{split}").iterdir():
            path.rename(path.with_suffix(".jpg"))
    report = look(tmp_path)
    assert {name: "masks are JPEG" in split.problem for name, split in report.splits.items()} == {
        "train": True, "val": True,
    }  # fmt: skip


def test_remedies_are_not_broken_into_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a": np.arange(20, dtype=np.uint8)[None].repeat(4, 0), "b": stripes(0, 1)})
    write(tmp_path, {"v": stripes(0, 1, 2)}, "val")
    Path("mine.yaml").write_text(
        "data:\n  type: data.MaskFolders\n  root: .\n  batch_size: 2\n  classes: [ground, tree, car]\n"
        "  train: {images: images/train, masks: masks/train}\n  val: {images: images/val, masks: masks/val}\n"
    )
    assert main(["check", "-c", "mine.yaml"]) == 2
    listed = ",".join(map(str, [*range(3, 20), 255]))
    assert f"    -> data.ignore=[{listed}] leaves them out" in capsys.readouterr().out


def test_fewer_images_than_a_batch_are_refused_as_a_run_refuses_them(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2)})
    report = look(tmp_path, batch_size=8)
    assert not report.ok
    assert "1 images to train on are fewer than the global batch of 8" in report.splits["train"].refused[0]


def test_labels_that_count_from_one(tmp_path):
    masks = stripes(1, 1, 1, 2, 2, 2, 3, 3, 3)
    masks[0, 0] = 0  # a slip
    write(tmp_path, {"a": masks})
    write(tmp_path, {"v": stripes(1, 2, 3)}, "val")
    report = look(tmp_path)
    for split in ("train", "val"):
        said = advised(report, split)
        assert "values run from 1 to 3, classes from 0: off by one -> data.first_value=1 data.ignore=[0,255]" in said
    assert not report.ok
    assert "values that are no class: 3" in report.splits["train"].bad_files[str(tmp_path / "masks/train/a.png")]
    write(tmp_path, {"v": stripes(1, 2, 3)}, "val")
    assert look(tmp_path, first_value=1, ignore=(0, 255)).ok


def test_void_that_is_the_highest_value(tmp_path):
    """Nothing is off by one where 0 is there, in whichever split a mask lacks it."""
    names = tuple("abcdefghijk")
    write(tmp_path, {"a": stripes(*range(12)), "b": stripes(*range(12))})
    write(tmp_path, {"v": stripes(*range(1, 12))}, "val")
    report = look(tmp_path, classes=names)
    for split in ("train", "val"):
        said = advised(report, split)
        assert "off by one" not in said
        assert "the values 11 are no class" in said
        assert "-> data.ignore=[11,255] if 11 is void, or name its class in data.classes" in said
    assert look(tmp_path, classes=names, ignore=(11, 255)).ok
    shifted = advised(look(tmp_path, classes=names, first_value=1, ignore=(0, 255)))  # by one who takes 0 for void
    assert "0 is ignored, 9 %" not in shifted  # a share as ADE20K has it
    write(tmp_path, {"a": stripes(0, 0, *range(12))})
    shifted = advised(look(tmp_path, classes=names, first_value=1, ignore=(0, 255)))
    assert "is it a class, and 11 void? -> if so, data.first_value=0 data.ignore=[11,255]" in shifted


def test_a_border_of_255_is_no_shift(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2, 255)})
    said = advised(look(tmp_path, ignore=()))
    assert "the values 255 are no class, in up to 1 files -> data.ignore=[255] leaves them out" in said
    report = look(tmp_path, first_value=1, ignore=(0, 255))  # the last class is nowhere, all others are
    assert not report.ok
    assert "do values count from 0? -> if so, data.first_value=0 data.ignore=[255]" in advised(report)


def test_jpeg_by_another_name_is_refused(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(0, 1, 2)})
    path = tmp_path / "masks/train/b.png"
    Image.fromarray(stripes(0, 1, 2)).save(path, format="JPEG", quality=100)
    report = look(tmp_path)
    assert not report.ok
    assert "is JPEG, which changes the values of labels" in report.splits["train"].bad_files[str(path)]


def test_a_split_of_which_all_is_ignored_is_refused(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2)})
    write(tmp_path, {"v": stripes(255), "w": stripes(255)}, "val")
    report = look(tmp_path)
    assert not report.ok
    assert "every pixel of the masks is ignored: nothing can be measured -> " in advised(report, "val")
    splits = {s: MaskSplit(f"images/{s}", f"masks/{s}") for s in ("train", "val")}
    data = MaskFolders(**splits, classes=NAMES, root=str(tmp_path), batch_size=1)
    with pytest.raises(DataError, match=r"val: .*every pixel of the masks is ignored"):
        data.setup("fit")


def test_a_single_black_and_white_mask_is_named(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(0, 255), "c": stripes(0, 1)})
    assert f"1 masks hold 0 and 255 alone, others never 255, such as {tmp_path / 'masks/train/b.png'}" in advised(
        look(tmp_path)
    )
    write(tmp_path, {"a": stripes(0, 1, 2, 255)})  # a border, here and there
    assert "0 and 255 alone" not in advised(look(tmp_path))


def test_labels_that_count_from_zero(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2)})
    said = advised(look(tmp_path, first_value=1, ignore=(0,)))
    assert "'car', the last class, never occurs: do values count from 0? -> if so, data.first_value=0" in said


def test_colours_instead_of_values(tmp_path):
    colours = np.array(PALETTE, np.uint8)[stripes(0, 1, 2)]
    write(tmp_path, {"a": colours})
    said = advised(look(tmp_path))
    line = "data.colors=true data.palette=[<ground>,<tree>,<car>]"
    assert f"{line}, with the colour of each class in place of its name" in said
    with pytest.raises(ConfigError):  # what cannot be known is not to be copied unread
        compose(["vistrain:seg/custom_masks"], line.split())
    assert "[0, 0, 142] (nearest: car)" in advised(look(tmp_path, palette=PALETTE))
    write(tmp_path, {"v": colours}, "val")
    assert look(tmp_path, palette=PALETTE, colors=True).ok
    colours[0, 0] = (1, 0, 140)
    write(tmp_path, {"a": colours})
    report = look(tmp_path, palette=PALETTE, colors=True)
    assert "colours are no class's: [1, 0, 140] (nearest: car) -> add their classes, or data.ignore=others" in advised(
        report
    )


def test_interpolated_and_unknown_values(tmp_path):
    write(tmp_path, {"a": stripes(*range(100)), "b": stripes(0, 1)})
    assert "resize masks with nearest neighbours" in advised(look(tmp_path))
    write(tmp_path, {"a": stripes(0, 1, 2, 9, 77)})
    said = advised(look(tmp_path))
    assert "the values 9, 77 are no class, in up to 1 files -> data.ignore=[9,77,255] leaves them out" in said
    assert look(tmp_path, ignore=(9, 77, 255)).ok


def test_kinds_of_files(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2)}, palette=[0, 0, 0, 255, 0, 0])
    write(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(0, 1, 2)}, palette=[0, 0, 0, 0, 255, 0])
    save(tmp_path / "masks/train/a.png", stripes(0, 1, 2), [0, 0, 0, 255, 0, 0])
    write(tmp_path, {"c": stripes(0, 1, 2, kind=np.uint16)})
    report = look(tmp_path)
    assert report.ok
    assert report.splits["train"].kinds == {"palette": 2, "16 bits": 1}
    assert "label files of several kinds: 2 palette, 1 16 bits" in advised(report)
    assert "2 different palettes: one value may be several classes -> data.colors=true" in advised(report)


def test_sizes_partners_and_what_never_occurs(tmp_path):
    write(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 1), "c": stripes(255), "d": stripes(0)})
    save(tmp_path / "masks/train/b.png", stripes(0, 1)[:6])
    (tmp_path / "masks/train/d.png").unlink()
    save(tmp_path / "masks/train/e.png", stripes(0))
    report = look(tmp_path, unpaired="skip")
    train = report.splits["train"]
    assert "the mask is 8x6 pixels, its image 8x12" in train.bad_files[str(tmp_path / "masks/train/b.png")]
    said = advised(report)
    assert "images without a mask: 1, such as" in said
    assert "data.unpaired=skip" in said
    assert "1 masks have no image, such as" in said
    assert "1 masks are ignored as a whole, such as" in said
    assert "classes that cannot be learnt, as they occur in other splits alone: car" in said
    assert "images without a mask: " in look(tmp_path).splits["train"].problem
    report = look(tmp_path, classes=(*NAMES, "ship"))
    assert "classes that never occur: ship" in advised(report, "all")
    console = Console(width=200, record=True)
    console.print(report.table())
    said = console.export_text()
    assert "1 class without pixels is left out" in said
    assert "│   ship" not in said
    mended = said[said.index("the mask is 8x6 pixels") :].splitlines()[1]
    assert mended.strip() == "-> resize the mask without interpolation, or give the image its original size"


def test_copies_and_the_table(tmp_path):
    write(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(0, 1, 2)})
    write(tmp_path, {"v": stripes(0, 1, 2)}, "val")
    image = (tmp_path / "images/train/a.png").read_bytes()
    (tmp_path / "images/val/v.png").write_bytes(image)
    (tmp_path / "masks/train/b.png").write_bytes(b"not an image")
    report = look(tmp_path)
    assert [[Path(f).name for f in group] for group in report.leaks] == [["a.png", "v.png"]]
    console = Console(width=200, record=True)
    console.print(report.table())
    said = console.export_text()
    for text in ("3 classes", "in several splits: 1 images", "not an image that can be read", "33.33 %"):
        assert text in said


@pytest.mark.parametrize(
    ("classes", "ignore", "masks", "said"),
    [
        (["a"], (255,), stripes(0, 255), "every pixel that counts is 'a': nothing can be learned"),
        (["a"], "others", stripes(0, 3), "every pixel that counts is 'a': nothing can be learned"),
        (["a", "b"], (255,), stripes(1, 255), "every pixel that counts is 'b': nothing can be learned"),
        (["a", "b"], (255,), stripes(255), "every pixel of the masks is ignored: nothing can be learned"),
    ],
)
def test_masks_of_one_class_are_refused(tmp_path, classes, ignore, masks, said):
    """All else is ignored: any network would reach an mIoU of 1."""
    write(tmp_path, {f"m{i:03}": masks for i in range(70)})
    write(tmp_path, {"v": stripes(0, 1, 255)[:, :8] if ignore != "others" and len(classes) > 1 else masks}, "val")
    splits = {s: MaskSplit(f"images/{s}", f"masks/{s}") for s in ("train", "val")}
    make = functools.partial(MaskFolders, **splits, classes=classes, ignore=ignore, root=str(tmp_path), batch_size=1)
    with pytest.raises(DataError, match=said):
        make().setup("fit")
    make().setup("test")
    report = make().check(tmp_path / "out")
    assert not report.ok
    assert [found.problem for found in report.advice if found.stops and found.problem.startswith(said)]
    if classes == ["a"] and ignore == (255,):
        other = make(classes=["other", "a"], values=(255, 0), ignore=())  # what the line says
        other.setup("fit")
        assert other.check(tmp_path / "out").ok
