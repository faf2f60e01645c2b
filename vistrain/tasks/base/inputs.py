"""Which pictures files, folders and patterns name, and where what is made of them goes."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vistrain.errors import DataError
from vistrain.writing import whole_file

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


@dataclass(frozen=True)
class ImageFile:
    """A picture to look at.

    Attributes:
        path: where it is.
        name: relative path below what was asked for, with `/`; no two files share one.
    """

    path: Path
    name: str


def find_images(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[ImageFile]:
    """The pictures that files, folders and patterns name, each once, sorted by name.

    Args:
        inputs: a folder is searched with the folders in it, for the usual suffixes, without hidden files; a pattern
            knows `*`, `?`, `[...]` and `**`.
        exclude: a folder to leave out when searching one around it (pictures of an earlier run).

    Raises:
        DataError: an input does not exist, or holds no picture.
    """
    found: dict[Path, None] = {}
    bases: list[Path] = []
    for one in inputs:
        base, paths = _expand(str(one), exclude)
        bases.append(Path(os.path.abspath(base)))
        found.update(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    root = Path(os.path.commonpath(bases)) if bases else Path()
    names = {path: path.relative_to(root).as_posix() for path in found}
    return [ImageFile(path, name) for path, name in sorted(names.items(), key=lambda item: _natural(item[1]))]


def picture_paths(files: Sequence[ImageFile], folder: Path, lossless: bool = False) -> list[Path]:
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
        while name.lower() in taken:  # lower: some file systems do not tell `A.png` from `a.png`
            name = f"{Path(name).with_suffix('')}_{Path(name).suffix}"
        taken.add(name.lower())
        paths.append(folder / name)
        if os.path.realpath(paths[-1]) in inputs:
            raise DataError(str(paths[-1]), "the picture would replace an input", "choose another --output")
    return paths


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


def _expand(given: str, exclude: Path | None) -> tuple[Path, list[Path]]:
    """The base that relative names start from, and the pictures."""
    path = Path(given).expanduser()
    if path.is_dir():
        around = exclude is not None and not path.resolve().is_relative_to(exclude.resolve())
        paths = list(_walk(path, exclude if around else None))
        if not paths:
            raise DataError(
                given, "holds no pictures", f"looked for {', '.join(SUFFIXES)}, in the folders below as well"
            )
        return path, paths
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(str(path)):
        raise DataError(given, "no such file or folder", "give a picture, a folder, or a pattern in quotes")
    matches = [Path(m) for m in glob.glob(str(path), recursive=True)]
    paths = [p for p in matches if p.is_file() and p.suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(given, f"none of the {len(matches)} matches is a picture" if matches else "nothing matches")
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])), paths


def _walk(folder: Path, exclude: Path | None) -> Iterator[Path]:
    left_out = exclude.resolve() if exclude else None
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and Path(parent, f).resolve() != left_out)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent, name)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `image2` before `image10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
