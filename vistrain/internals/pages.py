"""Of Linux: memory that is a file's, and may be given back at any time since the file has it."""

from __future__ import annotations

import bisect
import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["FileMemory"]


class FileMemory:
    """Places in this process's memory that are a file's; elsewhere than on Linux there are none known.

    Args:
        file: the file; None: there are none.
        addresses: of numbers that nobody changes; what holds none of them is left alone.
    """

    def __init__(self, file: Path | None, addresses: Iterable[int]) -> None:
        self._ranges: list[tuple[int, int]] = []
        if file is None or sys.platform != "linux":
            return
        wanted, known = str(file.resolve()), sorted(addresses)
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[5] == wanted:
                start, end = (int(part, 16) for part in parts[0].split("-"))
                if bisect.bisect_left(known, start) < bisect.bisect_left(known, end):
                    self._ranges.append((start, end))

    def give_back(self) -> int:
        """Let go of all of it: whoever reads it again, reads the file. Bytes that were asked for."""
        if self._ranges:
            advise = ctypes.CDLL(None, use_errno=True).madvise
            for start, end in self._ranges:
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(mmap.MADV_DONTNEED))
        return sum(end - start for start, end in self._ranges)
