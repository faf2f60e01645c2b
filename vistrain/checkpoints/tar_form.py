"""Torch's first file format (before 0.1.10): a tar of three pickles, which torch itself reads only by executing them.

Members: `storages` (numbers), `tensors` (views of them) and `pickle` (what was saved, with tensors as numbers). Nothing
is unpacked to a disk.
"""

from __future__ import annotations

import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vistrain.checkpoints.numpy_pickle import ForbiddenName
from vistrain.internals.pickles import PlainUnpickler

_TYPES = {
    "Half": torch.float16, "Float": torch.float32, "Double": torch.float64, "Byte": torch.uint8, "Char": torch.int8,
    "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
}  # fmt: skip
_MOST_AXES = 64
MEMBERS = ("storages", "tensors", "pickle")


class _Kind(str):
    """Name of a class of torch's, which is not looked up."""


class _Unpickler(PlainUnpickler):
    """Reads numbers, texts, plain containers, and the names of torch's tensor classes."""

    def __init__(self, file: Any, tensors: dict[int, Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self.tensors = tensors

    def find_class(self, module: str, name: str) -> Any:
        """Names of tensor classes as texts, and `OrderedDict`; refuses every other name without importing it."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("torch", "torch.cuda") and name.removesuffix("Storage").removesuffix("Tensor") in _TYPES:
            return _Kind(name)
        raise ForbiddenName(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """The tensor with this number."""
        return (self.tensors or {})[int(pid)]


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar archive."""
    return head[257:262] == b"ustar"


def load(path: Path) -> Any:
    """What such a file holds.

    Raises:
        LookupError: it is another tar archive.
        ForbiddenName: it names what is no tensor.
        Exception: of many kinds, for damaged files.
    """
    with tarfile.open(path, "r:") as archive:
        storages = _storages(_member(archive, "storages"))
        tensors = _tensors(_member(archive, "tensors"), storages)
        return _Unpickler(_member(archive, "pickle"), tensors).load()


def _member(archive: tarfile.TarFile, name: str) -> BinaryIO:
    try:
        file = archive.extractfile(archive.getmember(name))
    except KeyError:
        file = None
    if file is None:
        raise KeyError(name)
    return file  # type: ignore[return-value]


def _storages(file: BinaryIO) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for _ in range(_Unpickler(file).load()):
        key, _, kind = _Unpickler(file).load()
        dtype = _TYPES[kind.removesuffix("Storage")]
        (count,) = struct.unpack("<q", file.read(8))
        data = file.read(count * dtype.itemsize) if count >= 0 else b""
        if len(data) != count * dtype.itemsize:
            raise EOFError(f"{len(data)} bytes for {count} numbers")
        found[key] = torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    for view, root, offset, count in _Unpickler(file).load():
        found[view] = found[root][offset : offset + count]
    return found


def _tensors(file: BinaryIO, storages: dict[int, Tensor]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for _ in range(_Unpickler(file).load()):
        key, storage, _ = _Unpickler(file).load()
        (axes,) = struct.unpack("<i4x", file.read(8))
        if not 0 <= axes <= _MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes")
        sizes, strides = (struct.unpack(f"<{axes}q", file.read(8 * axes)) for _ in range(2))
        (offset,) = struct.unpack("<q", file.read(8))
        found[key] = storages[storage].as_strided(sizes, strides, offset).clone()
    return found
