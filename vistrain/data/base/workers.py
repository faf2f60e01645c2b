"""What a loader's processes need: their own signals and threads, and room in shared memory."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import cv2
import torch

from vistrain.errors import DataError

SHARED_MEMORY = Path("/dev/shm")
LAST_SECONDS = 600  # that a worker outlives a SIGTERM


def start_worker(worker: int) -> None:
    """One thread per loader process: there is a process per core already.

    Signals that tell a run to stop often reach its whole process group. The worker stays, as the run still needs it to
    get to the end of the step; it ends with the run.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.set_wakeup_fd(-1)  # the run's, which is told of its own signals alone
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_SECONDS))


def check_shared_memory(needed: int, workers: int) -> None:
    """Refuses to start loader processes whose batches would not fit into shared memory; later it would be a bus error.

    Args:
        needed: bytes that may be in flight at once.
        workers: loader processes per device; without any, nothing is shared.

    Raises:
        DataError: less is free; Docker gives 64 MB unless told otherwise.
    """
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise DataError(
            str(SHARED_MEMORY),
            f"{free / 2**20:.0f} MB of shared memory are free, {workers} data workers may need {needed / 2**20:.0f} MB",
            f"start the container with --shm-size={-(-needed // 2**30) + 1}g or --ipc=host, or lower data.workers",
        )
