"""Standard output and error that a command outlives: `| head`, a closed terminal, a full disk behind `>`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Enduring:
    """A text stream that goes quiet where it can no longer be written.

    What cannot be encoded (names of files that are no UTF-8) is written with backslashes.

    Args:
        stream: that is written to; all else that is asked of this one is asked of it.

    Attributes:
        failure: why it went quiet, or None.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding or "ascii"
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._go_quiet(error)
        except ValueError:  # closed meanwhile
            pass
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand over what was written, or do nothing."""
        try:
            self.stream.flush()
        except OSError as error:
            self._go_quiet(error)
        except ValueError:
            pass

    def _go_quiet(self, error: OSError) -> None:
        """Point the descriptor to nowhere: also what still waits in buffers, and what C writes, goes there."""
        self.failure = self.failure or error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    @property
    def was_cut_off(self) -> bool:
        """Whether the reader had enough (`| head`), which is no failure."""
        return self.failure is not None and self.failure.errno in (errno.EPIPE, errno.EIO)


@contextmanager
def enduring() -> Iterator[Enduring]:
    """Inside, standard output and error are `Enduring`, also where they were closed from the start.

    Yields:
        Standard output.
    """
    _open_descriptors()
    before = sys.stdout, sys.stderr
    output, error = (Enduring(stream or open(os.devnull, "w", encoding="utf-8")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, error)
    try:
        yield output
    finally:
        output.flush()
        error.flush()
        sys.stdout, sys.stderr = before


def _open_descriptors() -> None:
    """Open 0, 1 and 2 to nowhere where they are closed: a checkpoint that is opened as 1 would be printed into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
