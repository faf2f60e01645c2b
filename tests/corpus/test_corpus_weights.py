"""Corpus of checkpoints and shard indices: refused in one line that names the file, whatever they hold."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vistrain.checkpoints import load_file, load_weights
from vistrain.checkpoints.loading import read_state_dict
from vistrain.data.base.shards import INDEX, Shards, ShardWriter
from vistrain.errors import DataError, WeightsError


def network() -> nn.Module:
    """A convolution, a batch norm and a buffer of integers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.register_buffer("places", torch.arange(6))
    return model


WEIGHT = "0.weight"


def state(**fields: Any) -> dict[str, Any]:
    return {**network().state_dict(), **{WEIGHT if key == "weight" else key: value for key, value in fields.items()}}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def holding_itself(kind: str) -> Any:
    if kind == "list":
        content: Any = []
        content.append(content)
        return {"a": content}
    content = {}
    content["model" if kind == "wrapper" else "own"] = content
    return content


def doubled(levels: int) -> dict[str, Any]:
    """Dictionaries that name the next one under every wrapper's name."""
    content: dict[str, Any] = {"nothing": 1}
    for _ in range(levels):
        content = dict.fromkeys(("model", "state_dict", "params", "net", "network", "module", "weights"), content)
    return content


def deep(levels: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in range(levels):
        content = {"model": content}
    return content


def npz(compressed: bool, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def claiming(archive: bytes) -> bytes:
    """An archive whose first member says that it unpacks to 2 GiB."""
    entry = archive.find(b"PK\x01\x02")
    return archive[: entry + 24] + struct.pack("<I", 2**31 - 1) + archive[entry + 28 :]


def npy(shape: str, dtype: str = "<f4", data: bytes = b"") -> bytes:
    """An array file whose head claims what it likes."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


ONES = torch.ones(4, 3, 3, 3)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nan": (lambda: saved(state(weight=ONES * float("nan"))), "not finite"),
    "infinity": (lambda: saved(state(weight=ONES * float("inf"))), "not finite"),
    "nan in a buffer": (lambda: saved(state(**{"1.running_mean": torch.full((4,), float("nan"))})), "not finite"),
    "integers": (lambda: saved(state(weight=ONES.int())), "of another kind of number: 0.weight (int32)"),
    "bytes": (lambda: saved(state(weight=ONES.byte())), "of another kind of number"),
    "booleans": (lambda: saved(state(weight=ONES.bool())), "of another kind of number"),
    "floats for places": (lambda: saved(state(places=torch.rand(6))), "of another kind of number: places"),
    "complex": (lambda: saved(state(weight=ONES.to(torch.complex64))), "is complex"),
    "float8": (lambda: saved(state(weight=ONES.to(torch.float8_e4m3fn))), "needs scales"),
    "sparse": (lambda: saved(state(weight=ONES.to_sparse())), "is sparse"),
    "quantised": (
        lambda: saved(state(weight=torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8))), "is quantised"
    ),
    "meta": (lambda: saved(state(weight=torch.empty(4, 3, 3, 3, device="meta"))), "without content"),
    "repeated value": (lambda: saved(state(weight=torch.ones(1).expand(10**6, 10**6))), "but holds 4 bytes"),
    "other shape": (lambda: saved(state(weight=torch.ones(5, 3, 3, 3))), "1 of another shape"),
    "missing": (lambda: saved({k: v for k, v in state().items() if k != WEIGHT}), "1 missing"),
    "more": (lambda: saved(state(more=ONES)), "1 unexpected"),
    "nothing": (lambda: saved({}), "no state dict in it; it holds nothing"),
    "texts": (lambda: saved({"a": "b", "c": 1.5}), "no state dict"),
    "long keys": (lambda: saved({"k" * 10**6: 1}), "no state dict"),
    "list": (lambda: saved([ONES]), "holds one list"),
    "tensor": (lambda: saved(ONES), "holds one Tensor"),
    "number": (lambda: saved(7), "holds one int"),
    "holds itself": (lambda: saved(holding_itself("dict")), "no state dict"),
    "wraps itself": (lambda: saved(holding_itself("wrapper")), "no state dict"),
    "list of itself": (lambda: saved(holding_itself("list")), ""),
    "doubled": (lambda: saved(doubled(40)), "no state dict"),
    "deep": (lambda: saved(deep(400)), ""),
    "pickle of itself": (lambda: pickle.dumps(holding_itself("dict")), "nested more than"),
    "pickle of a list of itself": (lambda: pickle.dumps(holding_itself("list")), "no state dict"),
    "doubled pickle": (lambda: pickle.dumps(doubled(40)), "nested more than"),
    "doubled pickle, less": (lambda: pickle.dumps(doubled(12)), "more than"),
    "pickle that remembers much": (lambda: b"\x80\x02}r\xff\xff\xff\x7f.", "no state dict"),
    "pickle of a far place": (lambda: b"\x80\x04j\xff\xff\xff\x7f.", "is damaged"),
    "pickle of a long text": (lambda: b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "is damaged"),
    "pickle of long bytes": (lambda: b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00.", "is damaged"),
    "pickle of a long number": (lambda: b"\x80\x02\x8b\xff\xff\xff\x7f.", "is damaged"),
    "pickle of a call": (lambda: b"\x80\x02cos\nsystem\n(S'true'\ntR.", "needs code execution"),
    "pickle of builtins": (lambda: b"\x80\x02c__builtin__\neval\n(S'1'\ntR.", "needs code execution"),
    "pickle of an extension": (lambda: b"\x80\x02\x82\x01.", "is damaged"),
    "pickle without an end": (lambda: b"\x80\x02}", "is damaged"),
    "pickle of nothing": (lambda: b"\x80\x02.", "is damaged"),
    "pickle of protocol 200": (lambda: b"\x80\xc8}.", "is damaged"),
    "zip bomb": (lambda: claiming(zipped(("archive/data.pkl", bytes(999)))), "unpacks to 2.0 GiB"),
    "npz bomb": (lambda: claiming(npz(True, a=np.zeros(99))), "unpacks to 2.0 GiB"),
    "zip of a text": (lambda: zipped(("readme.txt", b"hello")), "is damaged"),
    "zip of nothing": (lambda: zipped(), "is damaged"),
    "torchscript": (lambda: zipped(("a/constants.pkl", b""), ("a/data.pkl", b"")), "TorchScript"),
    "npz of objects": (lambda: npz(False, a=np.array([{}], object)), "is damaged"),
    "npz that claims much": (lambda: zipped(("a.npy", npy("(1000000, 1000000)"))), "is damaged"),
    "npz of a negative shape": (lambda: zipped(("a.npy", npy("(-5,)"))), "is damaged"),
    "npz of text as shape": (lambda: zipped(("a.npy", npy("'x'"))), "is damaged"),
    "npz of a call": (lambda: zipped(("a.npy", npy("__import__('os')"))), "is damaged"),
    "npz of dates": (lambda: npz(False, a=np.array(["2020-01-01"], "datetime64[D]")), "no state dict"),
    "npz of complex": (lambda: npz(False, a=np.ones(3, np.complex64)), "no state dict"),
    "npz of no array": (lambda: zipped(("a.npy", b"no array")), "is damaged"),
    "safetensors of a long head": (lambda: struct.pack("<Q", 2**31) + b"{}" + bytes(20), "is damaged"),
    "safetensors outside": (
        lambda: struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(62),
        "is damaged",
    ),
    "safetensors of words": (lambda: struct.pack("<Q", 8) + b"{" + bytes(7), "is damaged"),
    "empty": (lambda: b"", "is empty"),
    "page": (lambda: b"<!DOCTYPE html>", "is a web page"),
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "json": (lambda: b'{"a": 1}', "is not a checkpoint"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(60), ""),
    "gguf": (lambda: b"GGUF" + bytes(60), "is not a checkpoint"),
    "onnx": (lambda: b"\x08\x07\x12\x07pytorch", "is not a checkpoint"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(60), "is a packed archive"),
    "cut": (lambda: saved(state())[:-200], "is damaged"),
    "legacy, cut": (lambda: saved(state(), _use_new_zipfile_serialization=False)[:-50], "is damaged"),
    "middle is zeros": (lambda: saved(state())[:300] + bytes(400) + saved(state())[700:], ""),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of torch, about what is deprecated
@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(make())
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "nothing"])
def test_only_plain_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    for read in (load_file, read_state_dict):
        with pytest.raises(WeightsError, match=r"weights\.pth: (cannot be read|is a folder|no such file)"):
            read(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(state(weight=ONES.to(dtype)), tmp_path / "a.pth")
    model = network()
    load_weights(model, tmp_path / "a.pth")
    assert torch.equal(model.state_dict()[WEIGHT], ONES)


def shards(folder: Path) -> dict[str, np.ndarray]:
    """A shard folder of two files, and the columns of its index."""
    with ShardWriter(folder) as writer:
        writer.add("a.txt", b"first")
        writer.add("b.txt", b"second")
    with np.load(folder / INDEX) as index:
        return dict(index)


def put(array: np.ndarray, value: Any) -> np.ndarray:
    return np.array([value, *array.tolist()[1:]], array.dtype)


COLUMNS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, Any]]] = {
    "shard far": lambda c: {"shard": put(c["shard"], 9)},
    "shard negative": lambda c: {"shard": put(c["shard"], -1)},
    "offset far": lambda c: {"offset": put(c["offset"], 2**60)},
    "offset negative": lambda c: {"offset": put(c["offset"], -512)},
    "size far": lambda c: {"size": put(c["size"], 2**62)},
    "size negative": lambda c: {"size": put(c["size"], -5)},
    "size and offset overflow": lambda c: {"size": put(c["size"], 2**63 - 1), "offset": put(c["offset"], 2**63 - 1)},
    "names unsorted": lambda c: {"names": c["names"][::-1]},
    "names of text": lambda c: {"names": c["names"].astype(str)},
    "names twice": lambda c: {"names": put(c["names"], b"b.txt")},
    "one column shorter": lambda c: {"size": c["size"][:1]},
    "a table": lambda c: {"size": c["size"][None]},
    "floats": lambda c: {"offset": c["offset"].astype(float)},
    "objects": lambda c: {"offset": c["offset"].astype(object)},
    "shards elsewhere": lambda c: {"shards": np.array([b"../../etc/passwd"])},
    "shards missing": lambda c: {"shards": np.array([b"shard-00007.tar"])},
    "shards of numbers": lambda c: {"shards": np.array([5])},
    "lengths more": lambda c: {"lengths": np.array([1, 2])},
    "length other": lambda c: {"lengths": c["lengths"] + 512},
    "version of several": lambda c: {"version": np.array([1, 1])},
    "version of text": lambda c: {"version": np.array("one")},
    "version 2": lambda c: {"version": np.array(2)},
    "column missing": lambda c: {"crc": None},
}


@pytest.mark.parametrize("name", COLUMNS)
def test_an_index_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    columns = shards(tmp_path / "set")
    columns.update(COLUMNS[name](columns))
    np.savez(tmp_path / "set" / INDEX, **{key: value for key, value in columns.items() if value is not None})
    with pytest.raises(DataError) as caught:
        Shards(tmp_path / "set")
    assert str(caught.value).startswith(str(tmp_path / "set"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    shards(tmp_path / "set")
    (tmp_path / "set" / INDEX).write_bytes(content)
    with pytest.raises(DataError, match="damaged index of shards"):
        Shards(tmp_path / "set")


def test_an_index_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    columns = shards(tmp_path / "set")
    np.savez_compressed(tmp_path / "set" / INDEX, **columns, more=np.zeros(2**20))
    with pytest.raises(DataError, match="it unpacks to"):
        Shards(tmp_path / "set")


def test_an_index_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    shards(tmp_path / "set")
    (tmp_path / "set" / INDEX).unlink()
    os.mkfifo(tmp_path / "set" / INDEX)
    with pytest.raises(DataError, match="it is a pipe"):
        Shards(tmp_path / "set")
