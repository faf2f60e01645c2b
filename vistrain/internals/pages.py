"""Of Linux: memory that is a file's, and may be given back at any time since the file has it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["FileMemory"]


class FileMemory:
    """The places in this process's memory that are files; elsewhere than on Linux there are none known.

    Args:
        files: those that are meant.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        wanted = {str(file.resolve()) for file in files}
        self._ranges: list[tuple[int, int]] = []
        if wanted and sys.platform == "linux":
            for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
                parts = line.split(maxsplit=5)
                if len(parts) == 6 and parts[5] in wanted:
                    start, _, end = parts[0].partition("-")
                    self._ranges.append((int(start, 16), int(end, 16)))

    def give_back(self, start: int, size: int) -> bool:
        """Let go of the whole pages between two addresses; whoever reads them again, reads the file.

        Args:
            start: address of the first byte, of numbers that nobody has changed.
            size: bytes.

        Returns:
            whether it is a file's memory, and was let go of; other memory is never touched.
        """
        if not any(low <= start and start + size <= high for low, high in self._ranges):
            return False
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length <= 0:
            return False
        advise = ctypes.CDLL(None, use_errno=True).madvise
        return int(advise(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_DONTNEED))) == 0
