"""Which files of a kind folders and patterns name, and where pictures of what is found in them go."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vistrain.data.base.images import JPEG_SUFFIXES, SUFFIXES
from vistrain.data.base.storage import walk
from vistrain.errors import DataError
from vistrain.writing import whole_file

RECORD = "predictions.json"  # what prediction writes beside its pictures
LONGEST = 250  # bytes of a picture's name, with room for telling two apart


@dataclass(frozen=True)
class InputFile:
    """A file to look at.

    Attributes:
        path: where it is.
        name: relative path below what was asked for, with `/`; no two files share one.
    """

    path: Path
    name: str


def find_files(
    inputs: Sequence[str | Path], suffixes: tuple[str, ...], noun: str = "file", exclude: Path | None = None
) -> list[InputFile]:
    """The files of a kind that files, folders and patterns name, each once, sorted by name.

    Args:
        inputs: a folder is searched with the folders in it, for the suffixes, without hidden files; a pattern knows
            `*`, `?`, `[...]` and `**`. A file that is named itself may have any suffix.
        suffixes: what names of the kind end in, lower case (`.png`, `.nii.gz`).
        noun: what one such file is called, for messages.
        exclude: a folder to leave out when searching one around it (pictures of an earlier run); so are others of its
            name beside a list of predictions.

    Raises:
        DataError: an input does not exist, or holds no such file.
    """
    found: dict[Path, None] = {}
    bases: list[Path] = []
    for one in inputs:
        base, paths = _expand(str(one), suffixes, noun, exclude)
        bases.append(Path(os.path.abspath(base)))
        found.update(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    root = Path(os.path.commonpath(bases)) if bases else Path()
    names = {path: path.relative_to(root).as_posix() for path in found}
    return [InputFile(path, name) for path, name in sorted(names.items(), key=lambda item: _natural(item[1]))]


def find_images(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[InputFile]:
    """See `find_files`: pictures of the usual suffixes."""
    return find_files(inputs, SUFFIXES, "picture", exclude)


def picture_paths(files: Sequence[InputFile], folder: Path, lossless: bool = False) -> list[Path]:
    """Where pictures go: JPEG stays JPEG, all else becomes PNG; no two are the same, none is an input.

    Args:
        files: the inputs.
        folder: below which their relative names are kept.
        lossless: JPEG becomes PNG as well.

    Raises:
        DataError: a picture would replace an input.
    """
    kept = (".png",) if lossless else (*JPEG_SUFFIXES, ".png")
    taken: set[str] = set()
    inputs = {os.path.realpath(file.path) for file in files}
    paths = []
    for file in files:
        name = file.name if Path(file.name).suffix.lower() in kept else f"{file.name}.png"
        name = _short(name)
        while name.lower() in taken:  # lower: some file systems do not tell `A.png` from `a.png`
            name = f"{Path(name).with_suffix('')}_{Path(name).suffix}"
        taken.add(name.lower())
        paths.append(folder / name)
        if os.path.realpath(paths[-1]) in inputs:
            raise DataError(str(paths[-1]), "the picture would replace an input", "choose another --output")
    return paths


def bare_names(names: Sequence[str]) -> dict[str, str]:
    """What files that are made of others are called, before a suffix of their own: as those, without theirs; where
    several differ in that alone (`a.png` and `a.jpg`), each by its whole name. No two are the same.

    Args:
        names: relative paths, each once.
    """

    def bare(name: str) -> str:
        return str(Path(name).with_suffix(""))

    counts = Counter(bare(name).lower() for name in names)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        called = bare(name) if counts[bare(name).lower()] == 1 else name
        while called.lower() in taken:  # lower: some file systems do not tell `A` from `a`
            called += "_"
        taken.add(called.lower())
        found[name] = called
    return found


def save_picture(image: np.ndarray, path: Path) -> None:
    """Write a picture, whole or not at all, in the format of its suffix.

    Args:
        image: uint8 `[H, W, 3]`; as PNG also `[H, W]`, `[H, W, 2]` (grey and alpha) or `[H, W, 4]`.
        path: the file.

    Raises:
        DataError: it cannot be written.
    """
    is_jpeg = path.suffix.lower() in JPEG_SUFFIXES
    with whole_file(path) as partial:
        Image.fromarray(image).save(partial, **({"format": "JPEG", "quality": 92} if is_jpeg else {"format": "PNG"}))


def _short(name: str) -> str:
    """A relative path whose last part is no longer than file systems take, 255 bytes; a suffix may have been added."""
    folder, _, base = name.rpartition("/")
    data = os.fsencode(base)
    if len(data) <= LONGEST:
        return name
    end = os.fsencode(f"~{hashlib.sha1(data).hexdigest()[:8]}{Path(base).suffix}")
    base = (data[: LONGEST - len(end)] + end).decode("utf-8", "ignore")
    return f"{folder}/{base}" if folder else base


def _expand(given: str, suffixes: tuple[str, ...], noun: str, exclude: Path | None) -> tuple[Path, list[Path]]:
    """The base that relative names start from, and the files."""
    path = Path(given).expanduser()
    if path.is_dir():
        around = exclude is not None and not path.resolve().is_relative_to(exclude.resolve())
        paths = list(_walk(path, suffixes, exclude if around else None))
        if not paths:
            remedy = f"looked for {', '.join(suffixes)}, in the folders below as well"
            raise DataError(given, f"holds no {noun}s", remedy)
        return path, paths
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(str(path)):
        raise DataError(given, "no such file or folder", f"give a {noun}, a folder, or a pattern in quotes")
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    if "**" in path.parts:  # that of `glob` follows links in circles, in so many ways that it never ends
        below = base.glob(str(path.relative_to(base)))
        matches = [m for m in below if not any(part.startswith(".") for part in m.relative_to(base).parts)]
    else:
        matches = [Path(m) for m in glob.glob(str(path))]
    paths = [p for p in matches if p.is_file() and p.name.lower().endswith(suffixes)]
    if exclude is not None:
        folders = {p.parent for p in paths}
        made = {f for f in folders if any(_is_predicted(x, exclude) for x in (f, *f.parents) if base in x.parents)}
        paths = [p for p in paths if p.parent not in made]
    if not paths:
        raise DataError(given, f"none of the {len(matches)} matches is a {noun}" if matches else "nothing matches")
    return base, paths


def _is_predicted(folder: Path, exclude: Path) -> bool:
    """Whether a folder holds what was made of pictures: that to leave out, or another like it of an earlier run."""
    if folder.name == exclude.name and (folder.parent / RECORD).is_file():
        return True
    return folder.resolve() == exclude.resolve()


def _walk(folder: Path, suffixes: tuple[str, ...], exclude: Path | None) -> Iterator[Path]:
    for parent, folders, names in walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        if exclude is not None:
            folders[:] = [f for f in folders if not _is_predicted(Path(parent, f), exclude)]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield Path(parent, name)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `image2` before `image10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
