"""The one rule for the class names that a user writes: in class files, on the command line, in `dataset.json`."""

from __future__ import annotations

from collections.abc import Sequence

from vistrain.errors import DataError


def refuse_names(names: Sequence[str], where: str) -> None:
    """Refuse class names of which nobody could say which class they mean.

    Args:
        names: of all classes.
        where: the file or option that has them.

    Raises:
        DataError: one is empty, or stands there twice.
    """
    seen: set[str] = set()
    for number, name in enumerate(names):
        if not name.strip():
            raise DataError(where, f"the class of number {number} has no name", "name each class")
        if name in seen:
            raise DataError(where, f"the class {name!r} stands there twice", "name each class once")
        seen.add(name)
