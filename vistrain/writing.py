"""Writing a file whole or not at all, and JSON of whatever names there are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vistrain.errors import DataError
from vistrain.regular_files import refuse_to_replace


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A neighbouring path to write to, which takes the name `path` when the block ends; its folder is made.

    A reader finds the old file or the new one, never half of one; after an error the old one is as it was.

    Raises:
        DataError: the file cannot be written (a full disk, no permission, a file where a folder should be).
    """
    path = Path(path)
    # Not after the file's own name, which may be as long as a name can be.
    digest = hashlib.sha1(os.fsencode(path.name)).hexdigest()[:16]
    partial = path.with_name(f".{digest}.{os.getpid()}.partial")
    try:
        refuse_to_replace(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(str(path), f"cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # where even the folder cannot be made, there is nothing to remove
            partial.unlink(missing_ok=True)


def json_line(value: Any) -> str:
    """A value as JSON on one line, to be read by people, too.

    Names of files that are no UTF-8 hold half characters, which no encoding takes: those are escaped, and read back as
    they were.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
