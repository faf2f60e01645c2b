"""Decoded once, read often: training images kept in memory where they are few, as files where there is room."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from vistrain.data.base.images import image_size
from vistrain.data.base.storage import stamp
from vistrain.data.restoration.pixels import ColorName, read_pixels
from vistrain.errors import DataError
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

MEMORY = 256 * 2**20  # bytes of decoded images that each worker process may keep
SPARE = 2**30  # bytes that copies leave free on the disk
LOOKED_AT = 64  # headers from which the size of all images is estimated


class Reader:
    """Reads images as `read_pixels` does; some kinds decode each only once.

    Args:
        color: see `read_pixels`.
        keep: `no` decodes at every call; `memory` keeps the pixels in this process; `files` keeps a copy of each below
            `folder`, of which later only the parts are read that are looked at.
        folder: for `files`.
    """

    def __init__(self, color: ColorName, keep: Literal["no", "memory", "files"] = "no", folder: Path = Path()) -> None:
        self.color, self.keep, self.folder = color, keep, folder
        self.kept: dict[Path, np.ndarray] = {}

    def __call__(self, path: Path) -> np.ndarray:
        """uint8 `[H, W, C]`, read-only where it is kept.

        Raises:
            DataError: the file cannot be read.
        """
        if self.keep == "files":
            return self._from_copy(path)
        if self.keep == "no" or path not in self.kept:
            pixels = read_pixels(path, self.color)
            if self.keep == "no":
                return pixels
            pixels.flags.writeable = False
            self.kept[path] = pixels
        return self.kept[path]

    def _from_copy(self, path: Path) -> np.ndarray:
        try:
            state = stamp(path)
        except OSError as error:
            raise DataError(str(path), "no such image file") from error
        text = f"{path.absolute()} {state} {self.color}"
        key = hashlib.sha1(text.encode()).hexdigest()
        copy = self.folder / key[:2] / f"{key[2:]}.npy"
        if copy.is_file():
            with contextlib.suppress(OSError, ValueError, EOFError):  # a damaged copy is made anew
                array: np.ndarray = np.load(copy, mmap_mode="r", allow_pickle=False)
                return array
        pixels = read_pixels(path, self.color)
        try:
            with whole_file(copy) as partial, partial.open("wb") as file:
                np.save(file, pixels)
        except DataError as error:
            log.warning("%s; from now on images are decoded each time", error)
            self.keep = "no"
        return pixels


def choose_reader(paths: Sequence[Path], color: ColorName, cache: bool | Literal["auto"], folder: Path) -> Reader:
    """The way to read a set of images; what it costs is logged.

    Args:
        paths: all of them.
        color: see `read_pixels`.
        cache: True keeps decoded files, unless the disk has no room for them; `auto` keeps images in memory if all
            together take `MEMORY` bytes or less; False decodes each time.
        folder: for the files.
    """
    if not cache:
        return Reader(color)
    total = decoded_size(paths, color)
    if cache == "auto":
        if total <= MEMORY:
            return Reader(color, "memory")
        text = "%d images are decoded for every patch; data.cache=true keeps decoded copies (%s of disk), read faster"
        log.info(text, len(paths), _size(total))
        return Reader(color)
    have = sum(file.stat().st_size for file in folder.rglob("*.npy")) if folder.is_dir() else 0
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free - SPARE
    if total - have > free:
        text = "no room for decoded copies of %d images in %s: %s are needed, %s are free; images are decoded each time"
        log.warning(text, len(paths), folder, _size(total - have), _size(max(free, 0)))
        return Reader(color)
    if have < total:
        text = "decoded copies of %d images are kept in %s, %s in all; data.cache=false does without"
        log.info(text, len(paths), folder, _size(total))
    return Reader(color, "files", folder)


def decoded_size(paths: Sequence[Path], color: ColorName) -> int:
    """Bytes of all images decoded, about: from the headers of a few of them."""
    looked_at = paths[:: max(len(paths) // LOOKED_AT, 1)]
    areas = []
    for path in looked_at:
        try:
            height, width = image_size(path)
        except DataError:  # said when it is read
            continue
        areas.append(height * width)
    return int(np.mean(areas) * len(paths)) * (3 if color == "rgb" else 1) if areas else 0


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
