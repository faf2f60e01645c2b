"""Reading checkpoint files without ever executing them.

What a file is, is decided by its content, not by its suffix: people rename. Nothing here imports or calls a name that
a file asks for; a name is either on the short list below or the file is refused.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import tokenize
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vistrain.checkpoints import numpy_pickle
from vistrain.errors import WeightsError
from vistrain.regular_files import open_regular, read_regular

# What damaged or hostile bytes make the readers raise, each from deep inside a parser that assumes sound input.
_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
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
    "nothing was executed; in an environment that you trust, with its authors' code at hand, load it and save "
    "`model.state_dict()` alone with torch.save"
)
_FETCH = "download it again"

# Weights hardly compress. Archives of zeros do: small ones are none of our business.
_RATIO, _SMALL = 4, 2**28  # times the size of the file, and bytes, that an archive may unpack to
_DEEP, _MANY = 32, 10**6  # levels of dictionaries, and their items; a dictionary may hold itself

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


def load_file(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, executing nothing that it contains.

    Understands torch files (both formats, `weights_only=True`), safetensors, `.npz` archives (no pickle) and pickles
    of NumPy arrays (detectron2's `.pkl`). Objects that are no weights come back as empty stand-ins.

    Args:
        path: the file; its content decides the format.

    Returns:
        The file's top-level dictionary; arrays of `.npz` and `.pkl` files have become tensors.

    Raises:
        WeightsError: the file is missing, damaged, not a checkpoint, or needs code execution to be read.
    """
    path = Path(path)
    head = _read_head(path)
    if head.startswith(b"PK"):
        content = _load_zip(path)
    elif head[4:9] == b"\0\0\0\0{":  # length of the header in 8 bytes, which may begin like a pickle; then JSON
        content = _load_safetensors(path)
    elif _LEGACY_TORCH.match(head):
        content = _load_torch(path)
    elif head.startswith(b"\x80"):
        content = _load_numpy_pickle(path)
    else:
        raise WeightsError(str(path), "is not a checkpoint in any known format", "known: torch, safetensors, npz, pkl")
    if not isinstance(content, dict):
        raise WeightsError(str(path), f"holds one {type(content).__name__} where a dictionary of weights is expected")
    return content


def refuse_unreadable(path: str | Path) -> None:
    """Refuse what has no chance to be a checkpoint, by the beginning of the file.

    Raises:
        WeightsError: there is no such file, it cannot be read, is empty, a web page or a git-lfs pointer.
    """
    _read_head(Path(path))


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


def _load_zip(path: Path) -> Any:
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
    return _load_torch(path)


def _load_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        # weights_only refusals and damage reach us as the same UnpicklingError; its text tells them apart.
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
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
