"""Generated sets on disk: there as a whole or not at all, whichever of several processes is first."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vistrain.errors import DataError

log = logging.getLogger(__name__)


@contextmanager
def whole_folder(folder: Path, count: int, noun: str = "images") -> Iterator[Path]:
    """A draft beside a folder's place, to be filled inside the block; it is renamed into its place at the end.

    Where another process was faster, its folder stays: the same arguments generate the same files.

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
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
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
