"""Which files make a pair: a first image, a second one, and the displacements between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vistrain.data.base.images import SUFFIXES as PICTURES
from vistrain.data.base.storage import file_names
from vistrain.data.correspondence.displacement_files import SUFFIXES as FIELDS
from vistrain.errors import ConfigError, DataError


@dataclass(frozen=True)
class PairSplit:
    """Where the files of a split are, relative to the root.

    Each is a folder, whose files are told by their names without suffix; or a pattern with one `*` in its last part,
    whose files are told by what it stands for (`image_2/*_10.png` and `image_2/*_11.png`).

    Args:
        first, second: of the images.
        truth: of the displacements; it says which pairs there are.
    """

    first: str
    second: str
    truth: str


@dataclass(frozen=True)
class PairFiles:
    """The files of a pair.

    Attributes:
        name: what its files have in common.
        first, second, truth: them.
    """

    name: str
    first: Path
    second: Path
    truth: Path


def find_pairs_of(root: Path, split: PairSplit, key: str) -> list[PairFiles]:
    """The pairs of a split, by name.

    Args:
        root: folder of the set.
        split: its files.
        key: dotted, for errors.

    Raises:
        ConfigError: a pattern has several `*`, or one outside of its last part.
        DataError: a folder is missing, there is no file of displacements, or one of them has no image.
    """
    truth = _listed(root, split.truth, FIELDS, f"{key}.truth")
    images = {part: _listed(root, where, PICTURES, f"{key}.{part}")
              for part, where in (("first", split.first), ("second", split.second))}  # fmt: skip
    for part, found in images.items():
        missing = sorted(set(truth) - set(found))
        if missing:
            problem = f"has no {part} image of {missing[0]}"
            problem += f", nor of {len(missing) - 1} others" if len(missing) > 1 else ""
            remedy = f"complete it, or correct {key}; {truth[missing[0]]} is there"
            raise DataError(str(root / getattr(split, part)), problem, remedy)
    return [PairFiles(name, images["first"][name], images["second"][name], truth[name]) for name in sorted(truth)]


def _listed(root: Path, where: str, suffixes: tuple[str, ...], key: str) -> dict[str, Path]:
    """Files by what tells them apart."""
    folder, pattern = root / where, ""
    if "*" in where:
        folder, pattern = folder.parent, folder.name
        if pattern.count("*") != 1 or "*" in str(Path(where).parent):
            raise ConfigError(key, f"{where!r} has not one * in its last part", "write a folder, or folder/*_10.png")
    names = file_names(folder)
    before, _, after = pattern.partition("*")
    found: dict[str, Path] = {}
    for name in sorted(names):
        told = Path(name).stem
        if pattern:
            if not (name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)):
                continue
            told = name[len(before) : len(name) - len(after)]
        if not name.lower().endswith(suffixes) or name.startswith("."):
            continue
        if told in found:
            raise DataError(str(folder), f"has {found[told].name} and {name}", "keep one of them")
        found[told] = folder / name
    if not found:
        problem = f"has no {', '.join(suffixes)} file" if names else "no such folder, or an empty one"
        raise DataError(str(root / where), problem, f"correct {key}, or data.root")
    return found
