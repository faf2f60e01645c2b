"""Writing checkpoints that survive a full disk and a power cut."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vistrain.errors import WeightsError
from vistrain.regular_files import refuse_to_replace


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
    # One fixed name, so that what a killed run left behind is overwritten and never piles up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        refuse_to_replace(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:  # buffered: a bare file may write less than it is given, unseen by torch
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = _cause(error)
        if cause is None:
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


def _cause(error: BaseException | None) -> OSError | None:
    """The failed write behind an error: torch's zip writer turns it into a RuntimeError and keeps it on the chain."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


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
