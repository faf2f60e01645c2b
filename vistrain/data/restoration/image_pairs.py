"""Which files are images of a set, and which are their degraded versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vistrain.data.base.images import SUFFIXES
from vistrain.data.base.storage import files_below, is_file, is_folder
from vistrain.errors import DataError

ORIGINALS = "HR"  # the folder of originals in benchmark sets, beside those of low-resolution images


@dataclass(frozen=True)
class ImageSet:
    """Images, and where their degraded versions are, relative to the data's root.

    Attributes:
        truth: a folder (with the folders in it; where there is a folder `HR` in it, that one, as in the benchmark sets
            of super-resolution), or a pattern (`GoPro/train/*/sharp/*.png`).
        low: None degrades on the fly. A folder holds files of the same names, `NAME.png` or `NAMEx4.png` (4 the scale),
            of any image suffix; a text with `{name}` is the path of NAME's version; a mapping replaces parts of the
            truth's path (`{sharp: blur}`).
    """

    truth: str
    low: str | dict[str, str] | None = None


@dataclass(frozen=True)
class Pair:
    """One image: its name (relative path without suffix, `/` as `.`), its file, and that of the degraded one."""

    name: str
    truth: Path
    low: Path | None


def find_pairs(root: Path, images: ImageSet, scale: int = 1) -> list[Pair]:
    """The images of a set, sorted by name.

    Args:
        root: folder that paths are relative to.
        images: the set.
        scale: for names such as `babyx4.png`.

    Raises:
        DataError: there are none, or one has no degraded version.
    """
    where = root / images.truth
    if is_folder(where / ORIGINALS):
        where = where / ORIGINALS
    if is_folder(where):
        base, files = where, _images(where)
    else:
        fixed = re.split(r"[*?\[]", images.truth)[0]
        base = root / fixed.rpartition("/")[0]
        files = [p for p in _matching(root, images.truth, base) if p.suffix.lower() in SUFFIXES]
    files = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(base).parts))
    if not files:
        remedy = f"correct data or data.root (now {root}), or set VISTRAIN_DATA"
        raise DataError(str(where), "no images" if is_folder(where) else "no such folder", remedy)
    listed: dict[Path, dict[str, Path]] = {}
    pairs = []
    for path in files:
        name = path.relative_to(base).with_suffix("").as_posix()
        pairs.append(Pair(name.replace("/", "."), path, _low(root, images.low, path, name, scale, listed)))
    return pairs


def _images(folder: Path) -> list[Path]:
    """Image files below a folder, none if there is no such folder."""
    try:
        return [folder / name for name in files_below(folder) if Path(name).suffix.lower() in SUFFIXES]
    except OSError:
        return []


def _matching(root: Path, pattern: str, base: Path) -> list[Path]:
    """Files of a pattern relative to a root, all of them below `base`; in shards, where `**` is as `*`, too."""
    if base.is_dir() and (plain := list(root.glob(pattern))):
        return plain
    parts = len(Path(pattern).parts)
    files = [p.relative_to(root) for p in _images(base)]
    return [root / p for p in files if len(p.parts) == parts and p.match(pattern)]


def _low(
    root: Path,
    given: str | Mapping[str, str] | None,
    truth: Path,
    name: str,
    scale: int,
    listed: dict[Path, dict[str, Path]],
) -> Path | None:
    if given is None:
        return None
    if isinstance(given, Mapping):
        text = truth.relative_to(root).as_posix() if truth.is_relative_to(root) else truth.as_posix()
        for old, new in given.items():
            text = text.replace(old, new)
        found = root / text
        path = found if found != truth and is_file(found) else None
        wanted = str(found)
    elif "{name}" in given:
        found = root / given.replace("{name}", name)
        path, wanted = found if is_file(found) else None, str(found)
    else:
        folder = root / given
        if folder not in listed:  # one listing, whatever the number of files
            listed[folder] = {p.relative_to(folder).with_suffix("").as_posix(): p for p in _images(folder)}
        path = listed[folder].get(name) or listed[folder].get(f"{name}x{scale}")
        wanted = f"{folder}/{name}.png or {name}x{scale}.png"
    if path is None:
        raise DataError(str(truth), f"has no degraded version {wanted}", "complete the folder, or correct data")
    return path
