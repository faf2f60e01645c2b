"""Opening what a user names for reading: plain files alone, so that nothing waits for a pipe or reads without end."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Opening a pipe that nobody writes to would wait for ever; plain files do not know the flag.
if sys.platform == "win32":
    _FLAGS = os.O_RDONLY | os.O_BINARY
else:
    _FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: str | Path) -> BinaryIO:
    """A plain file, opened for reading; links are followed.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device, which `strerror` says.
    """
    try:
        impossible = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:  # half a character
        impossible = True
    if impossible:  # nothing on a disk is called so
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    _refuse(path, os.stat(path).st_mode)  # before opening: a device may do something when it is opened
    handle = os.open(path, _FLAGS)
    try:
        _refuse(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """The content of a plain file.

    Args:
        path: the file.
        most: bytes that it may have; None: any number.

    Raises:
        OSError: see `open_regular`; or it is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"it has {size / 2**30:.1f} GiB, of which {most / 2**30:g} are read", str(path))
        return file.read()


def refuse_to_replace(path: str | Path) -> None:
    """Refuse to put a file in the place of a device, a pipe or a folder; what is not there, or a plain file, is fine.

    Raises:
        OSError: something else is there, which `strerror` says.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        _refuse(path, os.stat(path).st_mode)


def _refuse(path: str | Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise OSError(errno.EINVAL, f"it is {kind}, not a plain file", str(path))
