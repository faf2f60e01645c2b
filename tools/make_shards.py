"""Packs image files into a few tar files with an index, which every data module reads in the place of the folder.

    python tools/make_shards.py data/coco --output data/coco_shards        # then: data.root=data/coco_shards
    python tools/make_shards.py data/imagenet --output data/imagenet_shards --shard-size 2GB
    python tools/make_shards.py data/coco --list val_images.txt --output data/part
    python tools/make_shards.py --verify data/coco_shards
    python tools/make_shards.py --reindex data/coco_shards

All images below the source go in, under their paths relative to it, in the order of their names; hidden ones stay out.
Lists and annotations (.json, .csv, .txt, .mat) are copied beside the shards, at their places. The same files give the
same bytes. At the end everything is read back and compared. A folder that holds anything is not written to. The tar
files are plain ones: `tar tf data/coco_shards/shard-00000.tar` lists what is inside.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from rich.progress import track

from vistrain.data.base.images import SUFFIXES
from vistrain.data.base.shards import Shards, ShardWriter, reindex
from vistrain.data.base.storage import files_below, read_bytes
from vistrain.errors import DataError, VistrainError

LISTS = (".json", ".csv", ".txt", ".mat")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
READERS = 8  # threads that read ahead: on network file systems opening a file takes longer than copying it


def bytes_of(text: str) -> int:
    """`1GB`, `500MB` or a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 1GB or 500MB")
    return int(float(found[1]) * UNITS[found[2]])


def find(source: Path, listing: Path | None) -> tuple[list[str], list[str], list[str]]:
    """Images, lists to copy, and what is left out, relative to the source.

    Raises:
        DataError: a folder or the listing cannot be read.
    """
    try:
        names = [n for n in files_below(source) if not n.rpartition("/")[2].startswith(".")]
        if listing is not None:
            lines = [line.strip() for line in listing.read_text(encoding="utf-8-sig").splitlines()]
            return [line for line in lines if line], [], []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(listing or source), f"cannot be read ({error})") from error
    images = [n for n in names if n.lower().endswith(SUFFIXES)]
    lists = [n for n in names if n.lower().endswith(LISTS)]
    return images, lists, sorted({*names} - {*images} - {*lists})


def read_all(source: Path, names: list[str]) -> Iterator[bytes]:
    """Contents in the order of the names, read ahead by a few threads."""
    waiting = iter(names)
    with ThreadPoolExecutor(READERS) as pool:
        while chunk := list(islice(waiting, 32 * READERS)):
            yield from pool.map(lambda name: read_bytes(source / name), chunk)


def pack(source: Path, output: Path, listing: Path | None, shard_size: int) -> int:
    """Writes the shards and says what it did; the number of images.

    Raises:
        DataError: there is nothing to pack, a file cannot be read, or the output is not empty or cannot be written.
    """
    if output.exists() and any(output.iterdir()):
        raise DataError(str(output), "is not empty", "nothing is overwritten: remove it, or choose another folder")
    if not source.is_dir():
        raise DataError(str(source), "no such folder")
    images, lists, rest = find(source, listing)
    if not images:
        raise DataError(str(listing or source), "no images", f"of {', '.join(SUFFIXES[:5])}, ...")
    try:
        with ShardWriter(output, shard_size) as writer:
            for name, data in track(zip(images, read_all(source, images), strict=True), "packing", len(images)):
                writer.add(name, data)
    except OSError as error:
        raise DataError(str(error.filename or source), f"cannot be read ({error.strerror or error})") from error
    for name in lists:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, output / name)
    if lists:
        print(f"copied beside the shards: {len(lists)} lists and annotation files, e.g. {lists[0]}")
    if rest:
        print(f"left out: {len(rest)} files that are neither images nor lists, e.g. {rest[0]}")
    return len(images)


def verify(folder: Path) -> int:
    """Reads every member back and names what is damaged; how many are.

    Raises:
        DataError: the index or a shard is missing or cut off.
    """
    shards = Shards(folder)
    damage = [found for found in track(shards.damaged(), "verifying", len(shards)) if found is not None]
    for found in damage[:20]:
        print(found, file=sys.stderr)
    whole = int(shards.index.lengths.sum())
    print(f"{folder}: {len(shards):,} files, {len(shards.index.shards)} shards, {whole:,} bytes, {len(damage)} damaged")
    return len(damage)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="folder of images, searched with the folders in it")
    parser.add_argument("--output", type=Path, help="folder for the shards, empty or made anew")
    parser.add_argument("--list", type=Path, help="pack these files alone: a text file, one path a line")
    parser.add_argument("--shard-size", type=bytes_of, default="1GB", help="of each tar file (default: %(default)s)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--verify", type=Path, metavar="FOLDER", help="read shards that are there, and compare")
    other.add_argument("--reindex", type=Path, metavar="FOLDER", help="write the index of shards that are there anew")
    arguments = parser.parse_args(argv)
    again = arguments.verify or arguments.reindex
    if (again is None) == (arguments.source is None or arguments.output is None):
        parser.error("give a source and --output, or --verify FOLDER, or --reindex FOLDER")
    try:
        if arguments.reindex:
            reindex(arguments.reindex).save(arguments.reindex)
        elif again is None:
            pack(arguments.source, arguments.output, arguments.list, arguments.shard_size)
        return 2 if verify(again or arguments.output) else 0
    except VistrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
