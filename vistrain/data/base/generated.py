"""Generated sets on disk: there as a whole or not at all, whichever of several processes is first."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vistrain import processes
from vistrain.errors import DataError

log = logging.getLogger(__name__)


@contextmanager
def whole_folder(folder: Path, count: int, noun: str = "images") -> Iterator[Path]:
    """A draft beside a folder's place, to be filled inside the block; it is renamed into its place at the end.

    Where another process was faster, its folder stays: the same arguments generate the same files. Drafts that killed
    processes of this machine left behind are removed first.

    Args:
        folder: to be made.
        count: of what is generated, which is said first: it takes its time.
        noun: what that is.

    Raises:
        DataError: the folder cannot be written.
    """
    log.info("generating %d %s, once, in %s", count, noun, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beginning = f".{folder.name}-{socket.gethostname()}-"
        _remove_left(folder.parent, beginning)
        draft = Path(tempfile.mkdtemp(prefix=f"{beginning}{os.getpid()}-", dir=folder.parent))
        try:
            draft.chmod(0o755)  # mkdtemp's folders are private, data sets are shared
            yield draft
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():
            return
        problem = f"cannot write the generated data: {error.strerror or error}"
        remedy = "set VISTRAIN_DATA or data.root to a folder that can be written"
        raise DataError(str(folder), problem, remedy) from error


def _remove_left(place: Path, beginning: str) -> None:
    """Remove drafts whose name goes on with the number of a process that is no more."""
    for draft in place.iterdir():
        number = draft.name.removeprefix(beginning).partition("-")[0]
        if draft.name.startswith(beginning) and number.isdigit() and processes.started_at(int(number)) is None:
            shutil.rmtree(draft, ignore_errors=True)
