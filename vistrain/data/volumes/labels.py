"""The classes of voxels: their names, the values that files have for them, the regions that are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vistrain.errors import ConfigError, DataError
from vistrain.structures import LabelSpace

IGNORED = 255
FEW = 1 << 20  # different values that are counted one by one


class VoxelLabels:
    """From values in label files to class channels.

    Args:
        classes: name -> value; the first is the background.
        regions: name -> the classes that it is made of, larger regions first; none: each class but the first.
        ignore: values that carry no annotation.

    Raises:
        ConfigError: fewer than two classes, more than 255, one without a name, a value twice, or a region of
            a class that is not there.
    """

    def __init__(
        self,
        classes: Mapping[str, int],
        regions: Mapping[str, Sequence[str]] | None = None,
        ignore: Sequence[int] = (),
    ) -> None:
        self.names, self.values = tuple(classes), tuple(classes.values())
        self.ignore, self.ignored = tuple(ignore), IGNORED
        if not 2 <= len(self.names) <= IGNORED:
            raise ConfigError("data.classes", f"{len(self.names)} classes", "name the background and 1 to 254 others")
        if not all(name.strip() for name in self.names):
            raise ConfigError("data.classes", "a class has no name", "name each class")
        everything = [*self.values, *self.ignore]
        if twice := sorted({value for value in everything if everything.count(value) > 1}):
            raise ConfigError(
                "data.classes", f"the value {twice[0]} is there twice", "a value is one class, or ignored"
            )
        members = []
        for name, parts in (regions or {}).items():
            if not parts or (unknown := [part for part in parts if part not in classes]):
                problem = f"{name!r} is made of {', '.join(map(repr, unknown)) if parts else 'nothing'}"
                raise ConfigError("data.regions", problem, f"there are the classes {', '.join(self.names)}")
            members.append((name, tuple(self.names.index(part) for part in parts)))
        self.regions = tuple(members) or None

    @property
    def space(self) -> LabelSpace:
        """The classes as networks number them; the ignore index is always 255, as outside of a case."""
        return LabelSpace(self.names, self.values, ignore_index=IGNORED, regions=self.regions)

    def channels(self, values: np.ndarray, where: str) -> np.ndarray:
        """Class channels uint8 of values as stored; 255 where they are ignored.

        Raises:
            DataError: a value is none.
        """
        known = dict(zip(self.values, range(len(self.values)), strict=True)) | dict.fromkeys(self.ignore, IGNORED)
        low, high = int(values.min()), int(values.max())
        many = high - low > FEW  # a table of all values between would be long
        if many:
            found, places = np.unique(values, return_inverse=True)
            present = found.tolist()
        else:
            present = (np.flatnonzero(np.bincount((values - low).ravel())) + low).tolist()
        if unknown := [value for value in present if value not in known]:
            listed = ", ".join(map(str, unknown[:5]))
            count = int(np.isin(values, unknown).sum())
            problem = f"{count} voxels have the label {listed}, which is no class"
            remedy = f"classes are {dict(zip(self.names, self.values, strict=True))}; or write data.ignore"
            raise DataError(where, problem, remedy)
        if many:
            return np.array([known[value] for value in present], np.uint8)[places].reshape(values.shape)
        table = np.zeros(high - low + 1, np.uint8)
        for value in present:
            table[value - low] = known[value]
        return table[values - low]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return {"classes": dict(zip(self.names, self.values, strict=True)), "ignore": list(self.ignore)}
