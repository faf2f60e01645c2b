"""Writing checkpoints that survive a full disk and a power cut."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vistrain.errors import WeightsError


def save_durably(content: Any, path: str | Path) -> None:
    """Writes with `torch.save` such that `path` is, at every instant, either the old file or the whole new one.

    The new file is written under a temporary name in the same folder, flushed to the disk, renamed, and the folder's
    entry is flushed too. When this returns, an older checkpoint may be removed.

    Args:
        content: what to save; plain containers and tensors, so that it can be read back with `weights_only=True`.
        path: the file to write; its folder is made if needed.

    Raises:
        WeightsError: the file cannot be written (disk full, no permission); an older file of that name is untouched.
    """
    path = Path(path)
    # The process id keeps two runs that share a folder from writing into one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch's zip writer turns the OSError of a failed write into a RuntimeError; the cause is on its chain.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise WeightsError(
            str(path),
            f"could not be saved ({cause.strerror or cause}); {_free(path.parent)} free",
            "make room; what was saved there before is untouched",
        ) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable. Windows cannot open folders, and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB"
    except OSError:
        return "unknown space"
