"""Corpus of lists and packed sets for classification: read as documented, or refused in one line with their name."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.corpus_files import picture

from vistrain.data.classification.class_folders import ImageFolder, ImageList
from vistrain.data.classification.sets import CIFAR10, MNIST
from vistrain.errors import DataError

LISTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "its columns are none"),
    "head alone": (b"file,label\n", "has no images"),
    "other columns": (b"path,class\na.png,1\n", "its columns are path, class"),
    "no head": (b"a.png,1\n", "its columns are"),
    "semicolons": (b"file;label\na.png;1\n", "its columns are file;label"),
    "no label": (b"file,label\na.png\n", "line 2 has no file or no label"),
    "empty label": (b"file,label\na.png, \n", "line 2 has no file or no label"),
    "no file": (b"file,label\n,1\n", "line 2 has no file or no label"),
    "missing file": (b"file,label\nz.png,1\n", "1 of 1 listed images are not in"),
    "file of zeros": (b"file,label\n" + b"a\0.png,1\n", "list.csv: "),
    "far field": (b'file,label\n"' + b"x" * 200_000 + b'",1\n', "is no CSV file"),
    "utf-16": ("file,label\na.png,1\n".encode("utf-16"), "UTF-16"),
    "latin-1": (b"file,label\na.png,\xe9\n", "not UTF-8"),
    "zeros": (bytes(60), "begins with zeros"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(60), "not a text file"),
    "page": (b"<!DOCTYPE html><html></html>", "its columns are <!DOCTYPE html>"),
    "outside": (b"file,label\n../a.png,1\n", ""),
}


def listed(folder: Path, content: bytes) -> ImageList:
    picture().save(folder / "a.png")
    (folder / "list.csv").write_bytes(content)
    return ImageList("list.csv", "list.csv", root=str(folder), workers=0)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = LISTS[name]
    with pytest.raises(DataError) as caught:
        listed(tmp_path, content).split("train")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"file,label\na.png,1\n", ("1",)),
        (b"\xef\xbb\xbffile,label\r\na.png,1\r\n", ("1",)),
        (b"label,more,file\n1,x,a.png\n", ("1",)),
        (b'file,label\n"a.png","[/red]"\n', ("[/red]",)),
        ("file,label\na.png,²\n".encode(), ("²",)),
        (b"file,label\na.png," + b"9" * 30 + b"\na.png,5\n", ("5", "9" * 30)),
        (b"file,labels\na.png,b|a\n", ("a", "b")),
    ],
)
def test_a_list_is_read(tmp_path: Path, content: bytes, labels: tuple[str, ...]) -> None:
    data = listed(tmp_path, content)
    assert data.labels.names == labels
    assert len(data.split("train")) == content.count(b"a.png")


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder", "loop"])
def test_a_list_is_a_plain_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "list.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else kind)
    with pytest.raises(DataError, match=r"list\.csv: cannot be read"):
        ImageList("list.csv", "list.csv", root=str(tmp_path), workers=0).split("train")


@pytest.mark.parametrize("classes", [b"a\na\n", b"", b"a\n", b"a\nb\nc\n", b"\xff\xfea\0", bytes(9)])
def test_a_list_of_classes_fits_its_folders(tmp_path: Path, classes: bytes) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        picture().save(tmp_path / "train" / name / "0.png")
    (tmp_path / "classes.txt").write_bytes(classes)
    with pytest.raises(DataError, match=r"classes\.txt: ") as caught:
        ImageFolder(root=str(tmp_path), val=None, classes="classes.txt", workers=0).split("train")
    assert "\n" not in str(caught.value)


def idx(shape: tuple[int, ...], data: bytes, kind: bytes = b"\0\0\x08") -> bytes:
    return kind + bytes([len(shape)]) + b"".join(struct.pack(">I", n) for n in shape) + data


GOOD = (idx((2, 28, 28), bytes(2 * 784)), idx((2,), b"\1\2"))
PACKED: dict[str, tuple[bytes, bytes, str]] = {
    "empty images": (b"", GOOD[1], "is no IDX file"),
    "short head": (b"\0\0\x08\x03", GOOD[1], "is no IDX file"),
    "floats": (idx((2, 28, 28), bytes(1568), b"\0\0\x0d"), GOOD[1], "is no IDX file"),
    "no axes": (b"\0\0\x08\0", GOOD[1], "is no IDX file"),
    "cut": (GOOD[0][:-1], GOOD[1], "holds 1567 of 1568 bytes"),
    "more": (GOOD[0] + b"x", GOOD[1], "holds 1569 of 1568 bytes"),
    "giant": (idx((2**32 - 1, 2**32 - 1, 2**32 - 1), bytes(9)), GOOD[1], "holds 9 of"),
    "flat": (idx((1568,), bytes(1568)), GOOD[1], "holds no images with labels"),
    "fewer labels": (GOOD[0], idx((1,), b"\1"), "do not pair up"),
    "label 10": (GOOD[0], idx((2,), b"\1\x0a"), "do not pair up"),
    "page": (b"<html>", GOOD[1], "is no IDX file"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_a_packed_set_is_refused_in_one_line(tmp_path: Path, name: str, packed: bool) -> None:
    for kind, content in zip(("images-idx3", "labels-idx1"), PACKED[name][:2], strict=True):
        path = tmp_path / f"train-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError) as caught:
        MNIST(root=str(tmp_path), workers=0).split("train")
    assert PACKED[name][2] in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(GOOD[0], mtime=0)[:-9], b"\x1f\x8b\x08" + bytes(40), b""],
    ids=["text", "cut", "zeros", "empty"],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(GOOD[1]))
    with pytest.raises(DataError, match=r"ubyte\.gz: "):
        MNIST(root=str(tmp_path), workers=0).split("train")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no pickle", pickle.dumps(5), pickle.dumps({}), pickle.dumps({"data": b"", "labels": [1]}),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
        pickle.dumps({"data": np.zeros((1, 5), np.uint8), "labels": [1]}),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": "x"}), pickle.dumps(print),
    ],
)  # fmt: skip
def test_a_pickled_set_is_refused(tmp_path: Path, content: Any) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        CIFAR10(root=str(tmp_path), workers=0).split("train")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
