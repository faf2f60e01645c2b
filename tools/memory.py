"""What the benchmarks share to measure peak memory on a processor; each measurement wants a process of its own."""

from __future__ import annotations

import ctypes
import gc
import resource
import threading
from collections.abc import Callable
from pathlib import Path


def peak_of(work: Callable[[], object], repeats: int = 2) -> float:
    """MiB that this process needs at most for `work`, run `repeats` times, beyond what it holds already."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building things left behind must not serve what is measured
    before, peak, done = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(repeats):
        work()
    done.set()
    watcher.join()
    return peak - before


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
