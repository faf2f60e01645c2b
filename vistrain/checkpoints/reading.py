"""Reading checkpoint files without ever executing them.

What a file is, is decided by its content, not by its suffix: people rename. Nothing here imports or calls a name that
a file asks for; a name is either on the short list below or the file is refused.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import sys
import tarfile
import tokenize
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vistrain.checkpoints import hdf5, numpy_pickle, tar_form
from vistrain.checkpoints.fetching import is_remote, without_digest
from vistrain.errors import WeightsError
from vistrain.regular_files import open_regular, read_regular

# What damaged or hostile bytes make the readers raise, each from deep inside a parser that assumes sound input.
_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    tarfile.TarError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    OSError,
)

_TRUST = (
    "nothing was executed; if you trust its source, the repository's `python tools/convert_pickle.py FILE -o OUTPUT` "
    "takes its tensors out, in a process of its own"
)
_UNPACK = "unpack it, and name the checkpoint file in it"
_FETCH = "download it again"

# Weights hardly compress. Archives of zeros do: small ones are none of our business.
_RATIO, _SMALL = 4, 2**28  # times the size of the file, and bytes, that an archive may unpack to
_DEEP, _MANY = 32, 10**6  # levels of dictionaries, and their items; a dictionary may hold itself

_CHECKPOINT = re.compile(r"\.(pth|pt|ckpt|pkl|h5|npz|safetensors|bin)(\.tar)?$")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")

# First bytes of torch's format before 1.6: the pickled magic number 0x1950A86A20F9469CFC6C.
_LEGACY_TORCH = re.compile(rb"\x80.\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)


class _Inert:
    """Stands in for something in a checkpoint that is no weight: takes any arguments, keeps nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict:
    """Stands in for subclasses of dict. Becomes an OrderedDict, since torch's reader fills no other subclass."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


# Reviewed: what honest checkpoints carry beside tensors. The packages need not be installed, and are not imported if
# they are: torch's reader looks names up in this list. NumPy too is inert here: in torch files its arrays are
# histories, metrics and random states.
_INERT = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.dtypes.{name}DType" for name in ("Float16", "Float32", "Float64", "Int32", "Int64", "UInt32", "Bool")),
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.WindowsPath",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.str",
    "builtins.getattr",  # methods of HistoryBuffer, in files of mmengine
)
_INERT_DICTS = (
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "detectron2.config.config.CfgNode",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    "collections.defaultdict",
)
_STAND_INS: list[Any] = [
    (argparse.Namespace, "argparse.Namespace"),  # the standard library's plain bag of attributes, inert as it is
    *((_Inert, name) for name in _INERT),
    *((_InertDict, name) for name in _INERT_DICTS),
]


def load_file(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, executing nothing that it contains.

    Understands torch files (all three formats, `weights_only=True`), safetensors, `.npz` archives (no pickle), pickles
    of NumPy arrays (detectron2's `.pkl`) and Keras's `.h5`. Objects that are no weights come back as empty stand-ins.

    Args:
        path: the file; its content decides the format.
        mapped: tensors of a torch or safetensors file may lie in the file itself, and are not to be changed or kept.

    Returns:
        The file's top-level dictionary; arrays of `.npz` and `.pkl` files have become tensors.

    Raises:
        WeightsError: the file is missing, damaged, not a checkpoint, or needs code execution to be read.
    """
    path = Path(path)
    head = _read_head(path)
    if head.startswith(b"PK"):
        content = _load_zip(path, mapped)
    elif head[4:9] == b"\0\0\0\0{":  # length of the header in 8 bytes, which may begin like a pickle; then JSON
        content = _load_safetensors(path)
    elif _LEGACY_TORCH.match(head):
        content = _load_torch(path)
    elif head.startswith(b"\x80"):
        content = _load_numpy_pickle(path)
    elif head.startswith(hdf5.SIGNATURE):
        content = _load_hdf5(path)
    elif tar_form.is_tar(head):
        content = _load_tar(path)
    elif head.startswith(_PACKED):
        raise WeightsError(str(path), "is a packed archive, not a checkpoint", _UNPACK)
    else:
        known = "known: torch, safetensors, npz, pkl, h5"
        raise WeightsError(str(path), "is not a checkpoint in any known format", known)
    if not isinstance(content, dict):
        raise WeightsError(str(path), f"holds one {type(content).__name__} where a dictionary of weights is expected")
    return content


def refuse_unreadable(path: str | Path) -> None:
    """Refuse what has no chance to be a checkpoint, by the beginning of the file; what is of a network is not fetched.

    Raises:
        WeightsError: there is no such file, it cannot be read, is empty, a web page or a git-lfs pointer.
    """
    if not is_remote(path):
        _read_head(Path(without_digest(path)).expanduser())


def _read_head(path: Path) -> bytes:
    """The first bytes of a file that has a chance to be a checkpoint."""
    try:
        with open_regular(path) as file:
            head = file.read(512)
    except IsADirectoryError as error:
        raise WeightsError(str(path), "is a folder", "name the checkpoint file in it") from error
    except FileNotFoundError as error:
        raise WeightsError(str(path), "no such file", "check the path, or download the file there") from error
    except OSError as error:
        raise WeightsError(str(path), f"cannot be read ({error.strerror})") from error
    text = head.lstrip().lower()
    if not head:
        raise WeightsError(str(path), "is empty", _FETCH)
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise WeightsError(str(path), "is a web page, not a checkpoint: the download failed", _FETCH)
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            str(path), "is a git-lfs pointer, not the file itself", "run `git lfs pull` in its repository"
        )
    return head


def _load_zip(path: Path, mapped: bool) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    names = [member.filename for member in members]
    unpacked, size = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > max(_RATIO * size, _SMALL):
        problem = f"unpacks to {unpacked / 2**30:.1f} GiB, from {size / 2**20:.1f} MiB: no weights do"
        raise WeightsError(str(path), problem, _FETCH)
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(str(path), "is a TorchScript program, not weights", _TRUST)
    if any(name.endswith(".npy") for name in names):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: _tensor(arrays[name], name, path) for name in arrays.files}
        except _DAMAGED as error:
            raise _damaged(path, error) from error
    if not any(name.endswith("data.pkl") for name in names) and any(_CHECKPOINT.search(name) for name in names):
        raise WeightsError(str(path), "is an archive with a checkpoint in it", _UNPACK)
    # Torch maps what is packed or of another byte order without a word, and wrongly.
    plain = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    return _load_torch(path, mapped and plain and _order_of(path, names) == sys.byteorder)


def _order_of(path: Path, names: list[str]) -> str:
    """Byte order of the numbers in a torch file; files that do not say it are little-endian."""
    name = next((name for name in names if name.endswith("/byteorder")), None)
    if name is None:
        return "little"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return file.read(16).decode("ascii", "replace")
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _load_torch(path: Path, mapped: bool = False) -> Any:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            if path.suffix.lower() == ".safetensors":  # torch believes a name, and this file is none
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _DAMAGED as error:
        # weights_only refusals and damage reach us as the same UnpicklingError; its text tells them apart.
        name = re.search(r"(?:GLOBAL|unrecognized function) <?([\w.]+)", str(error))
        if name:
            raise _refused(path, name[1]) from error
        raise _damaged(path, error) from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    import safetensors
    import safetensors.torch  # comes with timm; here, so that reading torch files does not need it

    try:
        return dict(safetensors.torch.load_file(path, device="cpu"))
    except (safetensors.SafetensorError, *_DAMAGED) as error:
        raise _damaged(path, error) from error


def _load_hdf5(path: Path) -> dict[str, Any]:
    try:
        arrays = hdf5.arrays(path, max(_RATIO * path.stat().st_size, _SMALL))
        return {name: _tensor(array, name, path) for name, array in arrays.items()}
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _load_tar(path: Path) -> Any:
    try:
        return tar_form.load(path)
    except numpy_pickle.ForbiddenName as error:
        raise _refused(path, str(error)) from error
    except _DAMAGED as error:
        if isinstance(error, KeyError) and error.args and error.args[0] in tar_form.MEMBERS:
            raise WeightsError(str(path), "is a tar archive, not a checkpoint", _UNPACK) from error
        raise _damaged(path, error) from error


def _load_numpy_pickle(path: Path) -> Any:
    try:
        content = numpy_pickle.loads(read_regular(path))
        _counted(content)
    except numpy_pickle.ForbiddenName as error:
        raise _refused(path, str(error)) from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    return _tensors(content, "", path)


def _tensors(content: Any, name: str, path: Path) -> Any:
    """Turns the arrays of nested dictionaries into tensors."""
    if isinstance(content, dict):
        return {key: _tensors(value, f"{name}.{key}".lstrip("."), path) for key, value in content.items()}
    return _tensor(content, name, path) if isinstance(content, np.ndarray) else content


def _counted(content: Any, depth: int = 0) -> int:
    """Items of nested dictionaries, one that is named several times counted each time."""
    if not isinstance(content, dict):
        return 1
    if depth > _DEEP:
        raise ValueError(f"dictionaries nested more than {_DEEP} deep")
    total = 1
    for value in content.values():
        total += _counted(value, depth + 1)
        if total > _MANY:
            raise ValueError(f"more than {_MANY:,} items")
    return total


def _tensor(array: np.ndarray, name: str, path: Path) -> Any:
    if array.dtype.kind not in "fiub":
        return array.tolist() if array.dtype.kind in "SU" else None
    try:
        # A copy in native byte order: pickled arrays may be read-only or big-endian.
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))
    except TypeError as error:
        raise WeightsError(str(path), f"{name}: torch has no type for {array.dtype}") from error


def _refused(path: Path, name: str) -> WeightsError:
    return WeightsError(str(path), f"needs code execution to be read (it names `{name}`) and was refused", _TRUST)


def _damaged(path: Path, error: BaseException) -> WeightsError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return WeightsError(str(path), f"is damaged or cut short ({reason})", _FETCH)
