"""Tar shards with an index: the same samples and batches as from plain files, and what is wrong with them."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.data import Coco2017, CocoDetection, CocoSplit, DetrAugment, ImageFolder, ImageSet, RestorationData
from vistrain.data.base.images import read_image
from vistrain.data.base.shards import INDEX, Shards, ShardWriter
from vistrain.data.base.storage import files_below, folder_names, is_file, is_folder, read_bytes
from vistrain.data.restoration.degradations import GaussianNoise
from vistrain.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import make_shards

NAMES = ("a.jpg", "b/1.png", "b/10.png", "b/2.png", "b/deep/x.jpg", "b0.png", "bé.png", f"long/{'y' * 120}.png")


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Images at several depths, and a list beside them."""
    for seed, name in enumerate(NAMES):
        picture(tmp_path / "plain" / name, seed)
    (tmp_path / "plain" / "b" / "notes.txt").write_text("a list\n")
    (tmp_path / "plain" / "archive.zip").write_bytes(b"zip")
    return tmp_path / "plain"


def pack(source: Path, name: str = "packed", *options: str) -> Path:
    output = source.parent / name
    assert make_shards.main([str(source), "--output", str(output), "--shard-size", "8kB", *options]) == 0
    return output


def test_every_file_comes_back(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = pack(plain)
    assert "copied beside the shards: 1" in (said := capsys.readouterr().out)
    assert "left out: 1" in said
    assert "8 files" in said
    shards = Shards(packed)
    assert len(shards.index.shards) > 2
    assert len(shards) == len(NAMES)
    assert [shards.position(n) for n in ("none.jpg", "b", "b/", "z" * 999, "")] == [None] * 5
    for name in NAMES:
        assert read_bytes(packed / name) == (plain / name).read_bytes()
    assert read_bytes(packed / "b" / "notes.txt") == b"a list\n"
    assert (read_image(packed / "a.jpg") == read_image(plain / "a.jpg")).all()


def test_tar_reads_what_was_written(plain: Path) -> None:
    packed = pack(plain)
    listed = []
    for shard in sorted(packed.glob("*.tar")):
        assert shard.stat().st_size <= 8000
        found = subprocess.run(["tar", "tf", str(shard)], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
        with tarfile.open(shard) as tar:
            for member in tar:
                assert tar.extractfile(member).read() == (plain / member.name).read_bytes()  # type: ignore[union-attr]
            assert len(found.stdout.splitlines()) == len(tar.getnames())
            listed += tar.getnames()
    assert listed == sorted(NAMES)


def test_the_same_files_give_the_same_bytes(plain: Path) -> None:
    first = pack(plain, "first")
    for path in plain.rglob("*"):
        os.utime(path, (1, 1))
    second = pack(plain, "second")
    names = sorted(p.name for p in first.iterdir() if p.is_file())
    assert INDEX in names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_listing_is_that_of_folders(plain: Path) -> None:
    packed = pack(plain)
    (plain / "archive.zip").unlink()
    (plain / "b" / "notes.txt").unlink()
    for folder in (".", "b", "b/deep", "long"):
        assert files_below(packed / folder) == files_below(plain / folder)
        assert folder_names(packed / folder) == folder_names(plain / folder)
        assert is_folder(packed / folder)
    assert not is_folder(packed / "c")
    assert not is_folder(packed / "b" / "1")
    assert is_file(packed / "b" / "1.png")
    assert is_file(packed / "b" / "notes.txt")
    assert not is_file(packed / "b" / "deep")


def test_a_list_of_files(plain: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("b/10.png\na.jpg\n\n")
    packed = pack(plain, "part", "--list", str(listing))
    assert Shards(packed).below("") == ["a.jpg", "b/10.png"]
    listing.write_text("b/10.png\nb/10.png\n")
    assert make_shards.main([str(plain), "--output", str(tmp_path / "x"), "--list", str(listing)]) == 2
    listing.write_text("b/none.png\n")
    assert make_shards.main([str(plain), "--output", str(tmp_path / "y"), "--list", str(listing)]) == 2
    assert not list(tmp_path.glob("[xy]/*"))


def test_shards_are_found_that_were_made_after_a_look(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "packed" / "a.jpg")
    pack(plain)
    assert read_bytes(tmp_path / "packed" / "a.jpg") == (plain / "a.jpg").read_bytes()


# ---------------------------------------------------------------- many readers


def _read_some(packed: str, names: list[str]) -> list[bytes]:
    return [read_bytes(f"{packed}/{name}") for name in names]


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "numbered", 40_000) as writer:
        for i in range(300):
            writer.add(f"{i:03d}.jpg", f"{i:03d}".encode() * 300)
    return tmp_path / "numbered"


def test_forked_processes_share_open_shards(numbered: Path) -> None:
    orders = [np.random.default_rng(s).permutation(300).tolist() for s in range(3)]
    names = [[f"{i:03d}.jpg" for i in order] for order in orders]
    read_bytes(numbered / "000.jpg")  # opened before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(_read_some, (str(numbered), mine)) for mine in names]
        here = _read_some(str(numbered), names[0])
        for order, result in zip(orders, results, strict=True):
            assert result.get(60) == [f"{i:03d}".encode() * 300 for i in order]
    assert here == [f"{i:03d}".encode() * 300 for i in orders[0]]


def test_threads_share_open_shards(numbered: Path) -> None:
    shards = Shards(numbered)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(shards.read, list(range(300)) * 5))
    assert found == [f"{i:03d}".encode() * 300 for i in range(300)] * 5
    assert len(shards._files) == len(shards.index.shards)


# ---------------------------------------------------------------- data modules


def coco_set(root: Path) -> Path:
    entries: list[dict[str, Any]] = []
    for i in range(12):
        picture(root / f"{('train' if i < 8 else 'val')}2017" / f"{i:03d}.jpg", i, (48 + i, 64))
        entries.append({"id": i + 1, "file_name": f"{i:03d}.jpg", "width": 64, "height": 48 + i})
    (root / "annotations").mkdir()
    for split, images in (("train", entries[:8]), ("val", entries[8:])):
        boxes = [
            {"id": i["id"], "image_id": i["id"], "category_id": 1 + i["id"] % 2, "bbox": [4, 5, 30, 20], "area": 600}
            for i in images
        ]
        content = {"images": images, "annotations": boxes, "categories": [{"id": k, "name": f"c{k}"} for k in (1, 2)]}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def detection(root: Path, workers: int = 0) -> CocoDetection:
    train, val = (CocoSplit(f"{s}2017", f"annotations/instances_{s}2017.json") for s in ("train", "val"))
    augment = DetrAugment(scales=(48, 56), long_side=96, crop=0.5, crop_resize=(48,), crop_range=(30, 48))
    return CocoDetection(
        train,
        val,
        root=str(root),
        batch_size=4,
        workers=workers,
        augment=augment,
        eval_short_side=48,
        eval_long_side=96,
    )


def same(one: Any, other: Any) -> None:
    """Equal to the last bit, containers and all."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("workers", [0, 2])
def test_detection_trains_on_the_same_batches(tmp_path: Path, workers: int) -> None:
    root = coco_set(tmp_path / "coco")
    plain, packed = detection(root), detection(pack(root), workers)
    for loader in ("train_dataloader", "val_dataloader"):
        batches = [list(getattr(data, loader)()) for data in (plain, packed)]
        assert len(batches[0]) == (2 if loader == "train_dataloader" else 4)
        same(*batches)


def test_a_folder_of_one_split_may_be_shards(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "coco")
    packed = pack(root / "train2017", "train2017.shards")
    packed.rename(root / "train2017.shards")
    data = detection(root)
    data.splits["train"] = CocoSplit("train2017.shards", "annotations/instances_train2017.json")
    same(list(detection(root).train_dataloader()), list(data.train_dataloader()))
    assert Coco2017(str(pack(root, "whole"))).folder("train").name == "train2017"


def test_classification_trains_on_the_same_batches(tmp_path: Path) -> None:
    for i in range(24):
        split = "train" if i < 18 else "val"
        picture(tmp_path / "set" / split / f"class {i % 3}" / ("deeper" if i % 2 else ".") / f"{i}.jpg", i)
    packed = pack(tmp_path / "set")
    sets = [ImageFolder(root=str(r), batch_size=6, image_size=24, workers=0) for r in (tmp_path / "set", packed)]
    assert sets[0].labels.names == sets[1].labels.names == ("class 0", "class 1", "class 2")
    for loader in ("train_dataloader", "val_dataloader"):
        same(*(list(getattr(data, loader)()) for data in sets))
    assert sets[1].image_path("train", 0) == packed / "train" / "class 0" / "0.jpg"


def test_restoration_trains_on_the_same_batches(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(6):
        for kind in ("sharp", "blur"):
            picture(root / f"scene{i % 2}" / kind / f"{i}.png", i + 10 * (kind == "blur"), (40, 36))
        picture(root / "Set" / "HR" / f"{i}.png", i, (30, 30))
    packed = pack(root)
    made = [
        RestorationData(
            ImageSet("scene*/sharp/*.png", {"sharp": "blur"}),
            {"val": ImageSet("Set")},
            root=str(where),
            patch=16,
            batch_size=3,
            workers=0,
            cache=cache,
            eval_degradation=GaussianNoise(25),
        )
        for where, cache in ((root, False), (packed, False), (packed, True))
    ]
    for loader in ("train_dataloader", "val_dataloader"):
        batches = [list(getattr(data, loader)()) for data in made]
        assert len(batches[0]) == (2 if loader == "train_dataloader" else 6)
        same(batches[0], batches[1])
        same(batches[0], batches[2])


def test_check_opens_every_sample(tmp_path: Path) -> None:
    packed = pack(coco_set(tmp_path / "coco"))
    report = detection(packed).check(tmp_path / "report")
    assert report.ok
    assert [split.images for split in report.splits.values()] == [8, 4]
    shards = Shards(packed)
    damaged = shards.position("train2017/003.jpg")
    with (packed / shards.index.shards[shards.index.shard[damaged]].decode()).open("rb+") as file:
        file.seek(int(shards.index.offset[damaged]))
        file.write(bytes(200))
    report = detection(packed).check(tmp_path / "report")
    assert list(report.splits["train"].bad_files) == ["003.jpg"]
    assert make_shards.main(["--verify", str(packed)]) == 2


# ---------------------------------------------------------------- bad input


def refused(call: Any, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_a_member_that_is_not_there(plain: Path) -> None:
    packed = pack(plain)
    refused(lambda: read_bytes(packed / "b" / "3.png"), "3.png", "not among the 8 files", str(packed))
    refused(lambda: read_image(packed / "b" / "3.png"), "3.png")


def test_listed_images_that_the_shards_lack(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "coco")
    (root / "train2017" / "002.jpg").unlink()
    refused(detection(pack(root)).train_dataloader, "1 of 8 listed images", "002.jpg")


def test_an_index_that_is_missing(tmp_path: Path) -> None:
    packed = pack(coco_set(tmp_path / "coco"))
    (packed / INDEX).unlink()
    for call in (detection(packed).train_dataloader, lambda: read_bytes(packed / "train2017" / "000.jpg")):
        refused(call, INDEX, "no index", f"make_shards.py --reindex {packed}")
    refused(lambda: Shards(packed), "no index")
    assert make_shards.main(["--reindex", str(packed)]) == 0
    same(list(detection(tmp_path / "coco").train_dataloader()), list(detection(packed).train_dataloader()))


def test_the_index_made_anew_is_the_same(plain: Path) -> None:
    packed = pack(plain)
    before = (packed / INDEX).read_bytes()
    assert make_shards.main(["--reindex", str(packed)]) == 0
    assert (packed / INDEX).read_bytes() == before


def test_a_damaged_index(plain: Path) -> None:
    packed = pack(plain)
    whole = (packed / INDEX).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no zip file", whole[:200] + bytes(300) + whole[500:]):
        (packed / INDEX).write_bytes(damaged)
        refused(lambda: read_bytes(packed / "a.jpg"), INDEX, "damaged", "--reindex")


def test_a_shard_that_is_cut_off_or_missing(plain: Path) -> None:
    packed = pack(plain)
    shard = packed / "shard-00001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-700])
    refused(lambda: Shards(packed), "shard-00001.tar", "cut off", "copy it again")
    assert make_shards.main(["--reindex", str(packed)]) in (0, 2)
    shard.write_bytes(data[:2000])
    assert make_shards.main(["--reindex", str(packed)]) == 2
    shard.unlink()
    refused(lambda: Shards(packed), "shard-00001.tar", "missing")


def test_a_shard_that_shrinks_while_it_is_read(plain: Path) -> None:
    packed = pack(plain)
    shards = Shards(packed)
    for path in packed.glob("*.tar"):
        os.truncate(path, 600)
    refused(lambda: shards.read(0), "a.jpg", "ends before")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "out") as writer:
        writer.add("a.jpg", b"1")
        refused(lambda: writer.add("a.jpg", b"2"), "a.jpg", "two files")
        refused(lambda: writer.add("../a.jpg", b"2"), "no relative path")
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-0000{number}.tar", "w") as tar:
            tar.add(tmp_path / "out" / INDEX, "a.jpg")
    refused(lambda: make_shards.reindex(tmp_path), "a.jpg", "shard-00000.tar and shard-00001.tar")


def test_nothing_is_overwritten_and_nothing_half_written(plain: Path, tmp_path: Path, monkeypatch: Any) -> None:
    packed = pack(plain)
    assert make_shards.main([str(plain), "--output", str(packed)]) == 2
    refused(lambda: ShardWriter(packed), "holds shards already")
    assert make_shards.main([str(tmp_path / "none"), "--output", str(tmp_path / "x")]) == 2
    (tmp_path / "empty").mkdir()
    assert make_shards.main([str(tmp_path / "empty"), "--output", str(tmp_path / "x")]) == 2

    def interrupted() -> None:
        with ShardWriter(tmp_path / "cut") as writer:
            writer.add("a.jpg", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list((tmp_path / "cut").iterdir())
    with pytest.raises(SystemExit):
        make_shards.main([str(plain), "--output", str(tmp_path / "x"), "--shard-size", "much"])
    with pytest.raises(SystemExit):
        make_shards.main([str(plain)])
