"""The one place where data sets open and list image files: a path may lead into tar shards (see `data.shards`).

In a shard folder `set`, the path `set/train/cat/1.jpg` means the member `train/cat/1.jpg`, so a data module reads
shards as soon as its paths point there. What the index of the nearest folder above a path lists, the shards answer for;
everything else is a plain file, so annotations and lists may lie beside the shards.
"""

from __future__ import annotations

import collections
import functools
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vistrain.data.base.shards import INDEX, REINDEX, Shards, shard_files
from vistrain.errors import DataError
from vistrain.regular_files import open_regular, read_regular


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        most: bytes that a plain file may have; None: any number.

    Raises:
        OSError: it is no plain file, or cannot be read, as `Path.read_bytes` raises it; see `regular_files`.
        DataError: shards are damaged, have no index, or do not hold the file.
    """
    found = _locate(path)
    if found is not None:
        shards, name = found
        position = shards.position(name)
        if position is not None:
            return shards.read(position)
    try:
        return read_regular(path, most)
    except (FileNotFoundError, NotADirectoryError) as error:
        if found is not None:
            problem = f"not there, and not among the {len(shards):,} files of the shards in {shards.folder}"
            raise DataError(str(path), problem, "correct the name, or make the shards anew with it") from error
        if _made_since(Path(path).parent):
            return read_bytes(path, most)
        _refuse_unindexed(Path(path).parent)
        raise


def open_file(path: str | Path) -> BinaryIO:
    """A file to read the beginning of.

    Raises:
        OSError, DataError: as `read_bytes`.
    """
    found = _locate(path)
    if found is None or found[0].position(found[1]) is None:
        return open_regular(path)
    return io.BytesIO(read_bytes(path))


def stamp(path: str | Path) -> tuple[int, int]:
    """Two numbers that differ where a file of that path has another content: bytes, and time or check sum.

    Raises:
        OSError, DataError: as `read_bytes`.
    """
    found = _locate(path)
    position = found[0].position(found[1]) if found is not None else None
    if found is None or position is None:
        state = Path(path).stat()
        return state.st_size, state.st_mtime_ns
    return int(found[0].index.size[position]), int(found[0].index.crc[position])


def is_file(path: str | Path) -> bool:
    """Whether a path is a file.

    Raises:
        DataError: there are shards, and their index is missing or damaged.
    """
    found = _locate(path)
    return (found is not None and found[0].position(found[1]) is not None) or Path(path).is_file()


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder.

    Raises:
        DataError: there are shards, and their index is missing or damaged.
    """
    if _shards_of(path) is not None or Path(path).is_dir():
        return True
    if _made_since(Path(path)):
        return is_folder(path)
    _refuse_unindexed(Path(path))
    return False


def file_names(folder: str | Path) -> set[str]:
    """Names of what lies in a folder (of shards, files alone); none if there is no such folder.

    Raises:
        DataError: as `is_folder`.
    """
    found = _shards_of(folder)
    if found is not None:
        return {name for name in found[0].below(found[1]) if "/" not in name}
    _refuse_unindexed(Path(folder))
    return set(os.listdir(folder)) if Path(folder).is_dir() else set()


def folder_names(folder: str | Path) -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
        OSError: there is no such folder, or it cannot be read.
        DataError: as `is_folder`.
    """
    found = _shards_of(folder)
    if found is not None:
        return sorted(found[0].folders(found[1]))
    _refuse_unindexed(Path(folder))
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def files_below(folder: str | Path) -> list[str]:
    """Paths of the files below a folder, at any depth and relative to it, sorted; nothing below hidden folders.

    Raises:
        OSError: a folder cannot be read.
        DataError: as `is_folder`.
    """
    shards = _shards_of(folder)
    if shards is not None:
        return sorted(n for n in shards[0].below(shards[1]) if not any(p.startswith(".") for p in n.split("/")[:-1]))
    _refuse_unindexed(Path(folder))
    found: list[str] = []
    for parent, folders, files in walk(folder, strict=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        base = os.path.relpath(parent, folder)
        prefix = "" if base == "." else f"{base}/"
        found += [prefix + f for f in files]
    return sorted(found)


def walk(folder: str | Path, strict: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """Like `os.walk`, behind links as well, and each folder once: links may lead in a circle, or to the same place.

    A folder that lies there itself is given under its own path; what links lead to comes after all those.

    Args:
        folder: where to begin.
        strict: raise what cannot be read; else it is left out.

    Yields:
        Path of a folder, names of the folders in it, sorted (what the caller removes is not walked), and of its files.

    Raises:
        OSError: a folder cannot be read, and `strict`.
    """

    def fail(error: OSError) -> None:
        if strict:
            raise error

    seen: set[str] = set()
    waiting = collections.deque([os.fspath(folder)])
    while waiting:
        for parent, folders, files in os.walk(waiting.popleft(), onerror=fail):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            yield parent, folders, files
            waiting += [path for path in (os.path.join(parent, name) for name in folders) if os.path.islink(path)]


def read_text(path: Path, remedy: str = "", what: str = "file") -> str:
    """The content of a plain text file, UTF-8.

    Args:
        path: the file.
        remedy: what to do where it is missing.
        what: kind of file, for the message then.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        with open_regular(path) as file:
            data = file.read(512)
            if not data.startswith(b"\0"):  # a file of holes would cost as much memory as it claims to have
                file.seek(0)
                data = file.read()
    except FileNotFoundError as error:
        raise DataError(str(path), f"no such {what}", remedy) from error
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(str(path), "not a text file in UTF-8: it begins as UTF-16 does", "save it as UTF-8")
    if data.startswith(b"\0"):
        raise DataError(str(path), "not a text file: it begins with zeros", "copy or download it again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not a text file (byte {error.start} is not UTF-8)", "save it as UTF-8") from error


def read_json(path: Path, remedy: str = "", what: str = "file") -> Any:
    """The content of a JSON file.

    Args:
        path, remedy, what: see `read_text`.

    Raises:
        DataError: it is missing, cannot be read, or is no JSON: line and column are given.
    """
    text = read_text(path, remedy, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(str(path), f"not valid JSON: {error.msg} at {place}", "cut off while copying?") from error
    except RecursionError as error:
        raise DataError(str(path), f"not a valid {what}: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(str(path), f"not valid JSON: {str(error)[:80]}") from error


def refuse_missing(files: Sequence[str], folder: Path, listing: Path, remedy: str) -> None:
    """Refuses a list that names files that are not there: none is missed after hours of training.

    One directory listing per folder, not a look at each file.

    Args:
        files: relative to the folder.
        folder: where they should be.
        listing: the file that names them.
        remedy: what to do.

    Raises:
        DataError: saying how many, and which is the first.
    """
    present: dict[str, set[str]] = {}
    missing = []
    for name in files:
        parent, base = os.path.split(name)
        if parent not in present:
            present[parent] = file_names(folder / parent)
        if base not in present[parent]:
            missing.append(name)
    if missing:
        problem = f"{len(missing)} of {len(files)} listed images are not in {folder} (first: {missing[0]})"
        raise DataError(str(listing), problem, remedy)


def _locate(path: str | Path) -> tuple[Shards, str] | None:
    """The shards of the nearest folder above a path that has an index, and the path's name in them."""
    folder, name = os.path.split(os.path.abspath(path))
    found = _nearest(folder)
    return None if found is None else (found[0], found[1] + name)


def _shards_of(folder: str | Path) -> tuple[Shards, str] | None:
    """The shards that hold anything below a folder, and its name in them."""
    found = _nearest(os.path.abspath(folder))
    if found is None or not found[0].has_folder(found[1].rstrip("/")):
        return None
    return found[0], found[1].rstrip("/")


@functools.lru_cache(maxsize=4096)  # the folders of ImageNet's classes, and then some
def _nearest(folder: str) -> tuple[Shards, str] | None:
    """The shards of the nearest folder at or above one, and its name in them, with a `/` at the end."""
    at, name = folder, ""
    while True:
        try:
            state = os.stat(os.path.join(at, INDEX))
        except OSError:
            parent, base = os.path.split(at)
            if parent == at:
                return None
            at, name = parent, f"{base}/{name}"
        else:
            return _opened(at, state.st_mtime_ns, state.st_size), name


@functools.lru_cache(maxsize=32)
def _opened(folder: str, changed: int, length: int) -> Shards:
    return Shards(folder)


def _made_since(folder: Path) -> bool:
    """Whether shards at or above a folder have been written since this process last looked there and found none."""
    at = os.path.abspath(folder)
    if _nearest(at) is not None:
        return False
    _nearest.cache_clear()
    return _nearest(at) is not None


def _refuse_unindexed(path: Path) -> None:
    """What is missed may be in shards whose index was not copied; said instead of `no such file`."""
    folder = next((p for p in (path, *path.parents) if p.is_dir()), path)
    if shard_files(folder) and not (folder / INDEX).exists():
        raise DataError(str(folder / INDEX), "no index of the shards in this folder", REINDEX.format(folder))
