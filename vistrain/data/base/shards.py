"""Images in indexed tar shards: a few large files instead of millions of small ones, with random access.

A shard folder holds plain tar files (`shard-00000.tar`, ...; `tar tf` lists them) and `shard-index.npz`, which says
where each member starts. `data.storage` reads from it by path, `tools/make_shards.py` writes it.
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np

from vistrain.errors import DataError
from vistrain.regular_files import open_regular
from vistrain.writing import whole_file

INDEX = "shard-index.npz"
SHARD = re.compile(r"shard-\d{5,}\.tar")
VERSION = 1
# What damaged bytes make NumPy and zipfile raise, each from deep inside a parser that assumes sound input.
DAMAGED = (
    OSError, ValueError, LookupError, TypeError, EOFError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
BLOCK = 512  # bytes; everything in a tar file is a multiple of them
REINDEX = "copy it from where the shards were made, or write it anew: python tools/make_shards.py --reindex {}"


@dataclass(frozen=True)
class Index:
    """Where each member lies. A few arrays: they load in an instant, and worker processes share them without copies.

    Attributes:
        shards: `[S]` bytes, file names of the tar files.
        lengths: `[S]` int64, bytes of each tar file.
        names: `[N]` bytes, members in ascending order, no two alike.
        shard: `[N]` int32, number of the member's tar file.
        offset: `[N]` int64, where in it the member's content starts.
        size: `[N]` int64, bytes of the content.
        crc: `[N]` uint32, CRC-32 of the content.
    """

    shards: np.ndarray
    lengths: np.ndarray
    names: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray

    @classmethod
    def of(cls, shards: list[tuple[str, int]], members: list[tuple[str, int, int, int, int]], folder: Path) -> Index:
        """From `(name, bytes)` of the tar files and `(name, shard, offset, size, crc)` of the members, in any order.

        Raises:
            DataError: there are no members, or two of one name.
        """
        if not members:
            raise DataError(str(folder), "no files in the shards")
        names = np.array([os.fsencode(m[0]) for m in members], np.bytes_)
        order = np.argsort(names, kind="stable")
        numbers = np.array([m[1:] for m in members], np.int64)[order]
        found = cls(
            np.array([os.fsencode(s[0]) for s in shards], np.bytes_),
            np.array([s[1] for s in shards], np.int64),
            names[order],
            numbers[:, 0].astype(np.int32),
            numbers[:, 1],
            numbers[:, 2],
            numbers[:, 3].astype(np.uint32),
        )
        found.refuse_twins(folder)
        return found

    def refuse_twins(self, folder: Path) -> None:
        """Raises:
        DataError: two members have one name.
        """
        again = np.flatnonzero(self.names[1:] == self.names[:-1])
        if len(again):
            one, other = (os.fsdecode(bytes(self.shards[self.shard[again[0] + i]])) for i in (0, 1))
            raise DataError(
                f"{folder}: {os.fsdecode(bytes(self.names[again[0]]))}",
                f"two members have this name (in {one} and {other}), and {len(again) - 1} more names are there twice",
                "give the files different names and make the shards anew",
            )

    def save(self, folder: Path) -> None:
        """Writes the index, whole or not at all; the same members give the same bytes.

        Raises:
            DataError: it cannot be written.
        """
        with whole_file(folder / INDEX) as partial, partial.open("wb") as file:
            np.savez(file, version=np.array(VERSION), **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Reads an index, and looks whether the tar files are there as a whole.

        Raises:
            DataError: the index is missing or damaged, or a tar file is missing or has another length.
        """
        path = folder / INDEX
        try:
            with open_regular(path) as file:
                with zipfile.ZipFile(file) as archive:
                    unpacked = sum(member.file_size for member in archive.infolist())
                if unpacked > path.stat().st_size:  # it is written uncompressed
                    raise ValueError(f"it unpacks to {unpacked:,} bytes")
                file.seek(0)
                with np.load(file, allow_pickle=False) as content:
                    version = int(content["version"])
                    index = cls(*(content[f.name] for f in fields(cls))) if version == VERSION else None
        except FileNotFoundError as error:
            raise DataError(str(path), "no index of the shards", REINDEX.format(folder)) from error
        except DAMAGED as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            raise DataError(str(path), f"damaged index of shards ({reason})", REINDEX.format(folder)) from error
        if index is None:
            raise DataError(
                str(path), f"is of version {version}, this vistrain reads {VERSION}", REINDEX.format(folder)
            )
        index._check(folder)
        return index

    def _check(self, folder: Path) -> None:
        if problem := self._damage():
            raise DataError(str(folder / INDEX), f"damaged index of shards ({problem})", REINDEX.format(folder))
        self.refuse_twins(folder)
        for name, length in zip(self.shards.tolist(), self.lengths.tolist(), strict=True):
            path = folder / os.fsdecode(name)
            there = path.stat().st_size if path.is_file() else None
            if there is None:
                raise DataError(str(path), "this shard is missing", "copy it again from where the shards were made")
            if there != length:
                problem = f"has {there:,} bytes, its index says {length:,}: cut off, or of another set"
                raise DataError(str(path), problem, "copy it again from where the shards were made")

    def _damage(self) -> str:
        """What cannot be in an index; empty where nothing is: readers believe it."""
        columns = (self.names, self.shard, self.offset, self.size, self.crc)
        if not all(isinstance(a, np.ndarray) for a in (*columns, self.shards, self.lengths)):
            return "its columns are no arrays"
        kinds = "".join(a.dtype.kind for a in (*columns, self.shards, self.lengths))
        if kinds != "SiiiuSi" or {a.ndim for a in (*columns, self.shards)} != {1}:
            return "its columns are of other types"
        if len({a.shape for a in columns}) != 1 or self.shards.shape != self.lengths.shape:
            return "its columns are of different lengths"
        if not all(SHARD.fullmatch(os.fsdecode(name)) for name in self.shards.tolist()):
            return "it names files that are no shards"
        if (self.names[1:] < self.names[:-1]).any():
            return "its names are not sorted"
        if len(self.names) and not 0 <= self.shard.min() <= self.shard.max() < len(self.shards):
            return "a member lies in a shard that is not listed"
        room = self.lengths[self.shard] - self.offset
        if (self.offset < 0).any() or (self.size < 0).any() or (self.size > room).any():
            return "a member lies outside its shard"
        return ""


class Shards:
    """A shard folder.

    Reading keeps no position (`pread`), so threads and forked workers may share an instance; tar files are opened when
    they are first read from.

    Args:
        folder: that holds the tar files and their index.

    Raises:
        DataError: see `Index.load`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index = Index.load(self.folder)
        self._files: dict[int, io.FileIO] = {}

    def __len__(self) -> int:
        return len(self.index.names)

    def position(self, name: str) -> int | None:
        """Where in the index a member stands; None if it is not there."""
        place = self._place(os.fsencode(name))
        return place if place < len(self) and bytes(self.index.names[place]) == os.fsencode(name) else None

    def read(self, position: int) -> bytes:
        """The content of the member at a position of the index.

        Raises:
            DataError: the tar file cannot be read, or ends before the member does.
        """
        index = self.index
        shard, offset, size = int(index.shard[position]), int(index.offset[position]), int(index.size[position])
        try:
            file = self._files.get(shard) or self._open(shard)
            data = os.pread(file.fileno(), size, offset)
            while len(data) < size:  # Linux reads at most 2 GiB at once, network file systems what they like
                more = os.pread(file.fileno(), size - len(data), offset + len(data))
                if not more:
                    raise DataError(self._member(position), "the shard ends before it does", "copy the shard again")
                data += more
        except OSError as error:
            remedy = "raise the limit of open files (ulimit -n), or make larger shards" if error.errno == 24 else ""
            raise DataError(self._member(position), f"cannot be read: {error.strerror or error}", remedy) from error
        return data

    def below(self, folder: str) -> list[str]:
        """Names of all members below a folder (`""`: of all), relative to it, in ascending order."""
        span = self._span(folder)
        cut = len(os.fsencode(folder)) + 1 if folder else 0
        return [os.fsdecode(name[cut:]) for name in self.index.names[span.start : span.stop].tolist()]

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, in ascending order of bytes."""
        span = self._span(folder)
        prefix = os.fsencode(f"{folder}/") if folder else b""
        found, place = [], span.start
        while place < span.stop:
            head, slash, _ = bytes(self.index.names[place])[len(prefix) :].partition(b"/")
            if slash:
                found.append(os.fsdecode(head))
            place = self._place(prefix + head + b"0") if slash else place + 1  # "0" comes right after "/"
        return found

    def has_folder(self, folder: str) -> bool:
        """Whether there is anything below a folder."""
        return len(self._span(folder)) > 0

    def damaged(self) -> Iterator[str | None]:
        """Reads all members in the order in which they lie: None, or what is wrong with one."""
        for position in np.lexsort((self.index.offset, self.index.shard)).tolist():
            try:
                is_right = zlib.crc32(self.read(position)) == int(self.index.crc[position])
            except DataError as error:
                yield str(error)
            else:
                yield None if is_right else f"{self._member(position)}: its content is not what was written"

    def _open(self, shard: int) -> io.FileIO:
        path = self.folder / os.fsdecode(bytes(self.index.shards[shard]))
        return self._files.setdefault(shard, io.FileIO(path))  # of two threads, one's handle is dropped and closed

    def _place(self, name: bytes) -> int:
        names = self.index.names
        if len(name) <= names.itemsize:
            return int(np.searchsorted(names, np.array(name, names.dtype)))  # another type would copy all names
        # A longer name than any comes after all that are not greater than its beginning
        return int(np.searchsorted(names, np.array(name[: names.itemsize], names.dtype), "right"))

    def _span(self, folder: str) -> range:
        if not folder:
            return range(len(self))
        name = os.fsencode(folder)
        return range(self._place(name + b"/"), self._place(name + b"0"))

    def _member(self, position: int) -> str:
        shard = os.fsdecode(bytes(self.index.shards[self.index.shard[position]]))
        return f"{self.folder / shard}: {os.fsdecode(bytes(self.index.names[position]))}"


class ShardWriter:
    """Writes a shard folder; use it in a `with` block. The same files give the same bytes. The index comes last.

    Args:
        folder: made if it is not there.
        shard_size: bytes that a tar file does not exceed, unless one member does.

    Raises:
        DataError: the folder holds shards already, or (inside the block) it cannot be written.
    """

    def __init__(self, folder: str | Path, shard_size: int = 10**9) -> None:
        self.folder, self.shard_size = Path(folder), shard_size
        if shard_files(self.folder) or (self.folder / INDEX).exists():
            raise DataError(str(folder), "holds shards already", "remove them, or choose another folder")
        self._members: list[tuple[str, int, int, int, int]] = []
        self._names: set[str] = set()
        self._shards: list[tuple[str, int]] = []
        self._open = ExitStack()
        self._file: io.BufferedWriter | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                Index.of(self._shards, self._members, self.folder).save(self.folder)
        except BaseException:
            self._open.__exit__(*sys.exc_info())
            raise
        self._open.__exit__(kind, error, trace)  # after an error, the shard that was begun goes

    def add(self, name: str, data: bytes) -> None:
        """Appends a member.

        Args:
            name: relative path with `/`.
            data: its content.

        Raises:
            DataError: the name was there before, or is no relative path; or the disk is full.
        """
        if name in self._names:
            raise DataError(f"{self.folder}: {name}", "two files have this name", "list each file once")
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{self.folder}: {name!r}", "is no relative path inside the folder")
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644  # date, owner and group stay 0: the bytes depend on the files alone
        head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if self._file is not None and self._file.tell() + len(head) + len(data) + 3 * BLOCK > self.shard_size:
            self._finish()
        file = self._file or self._begin()
        try:
            file.write(head)
            self._members.append((name, len(self._shards), file.tell(), len(data), zlib.crc32(data)))
            file.write(data + bytes(-len(data) % BLOCK))
        except OSError as error:
            raise DataError(str(self.folder), f"cannot be written ({error.strerror or error})") from error
        self._names.add(name)

    def _begin(self) -> io.BufferedWriter:
        partial = self._open.enter_context(whole_file(self.folder / self._name()))
        self._file = self._open.enter_context(partial.open("wb"))
        return self._file

    def _finish(self) -> None:
        if self._file is not None:
            self._file.write(bytes(2 * BLOCK))  # the end of a tar file
            name, length = self._name(), self._file.tell()
            self._file = None
            self._open.close()
            self._shards.append((name, length))

    def _name(self) -> str:
        return f"shard-{len(self._shards):05d}.tar"


def reindex(folder: str | Path) -> Index:
    """The index of a folder of tar files, made by reading all of them.

    Raises:
        DataError: there are none, one is cut off or no tar file, or two members have one name.
    """
    folder = Path(folder)
    shards: list[tuple[str, int]] = []
    members: list[tuple[str, int, int, int, int]] = []
    for name in shard_files(folder):
        path = folder / name
        try:
            with tarfile.open(path, "r:") as tar, io.FileIO(path) as file:
                for info in filter(tarfile.TarInfo.isfile, tar):
                    data = os.pread(file.fileno(), info.size, info.offset_data)
                    if len(data) != info.size:
                        raise DataError(f"{path}: {info.name}", "the shard ends before it does", "copy the shard again")
                    members.append((info.name, len(shards), info.offset_data, info.size, zlib.crc32(data)))
        except (tarfile.TarError, OSError) as error:
            raise DataError(str(path), f"damaged tar file ({error})", "copy the shard again") from error
        shards.append((name, path.stat().st_size))
    return Index.of(shards, members, folder)


def shard_files(folder: Path) -> list[str]:
    """Names of the tar files in a folder that are named as shards are, sorted; none if there is no such folder."""
    return sorted(n for n in os.listdir(folder) if SHARD.fullmatch(n)) if folder.is_dir() else []
