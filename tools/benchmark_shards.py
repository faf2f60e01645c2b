"""Reading images from plain files, from indexed tar shards and from memory: the same images, in the same random order.

    python tools/benchmark_shards.py --output runs/benchmark_shards
    python tools/benchmark_shards.py --cold pages        # every round starts without the files' pages in memory
    sudo python tools/benchmark_shards.py --cold all     # and without the kernel's memory of folders (root)

20,000 JPEGs of 20 to 100 kB are generated into a temporary folder (of 200 different ones, so decoding costs what it
costs for photographs of such sizes) and packed by tools/make_shards.py. The three sides take turns in this process, on
one thread: the bytes alone, then bytes and decoding (of a part of them). Without `--cold` the files are in the page
cache, as for a set that fits into memory, and the ratios say nothing about disks; the time is then CPU time, the
kernel's included, so that other work on the machine does not count. With `--cold` it is time that passes. Numbers for a
network file system need a run there: `--folder` names where the files are made, and found again by the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import make_shards
import numpy as np
import torch
from benchmarking import write
from rich.progress import track

from vistrain.data.base.images import read_image
from vistrain.data.base.shards import Shards
from vistrain.data.base.storage import is_file, read_bytes

DIFFERENT = 200
PER_FOLDER = 1000
DROP = Path("/proc/sys/vm/drop_caches")


def encode(number: int, low: int = 20_000, high: int = 100_000) -> bytes:
    """A JPEG of 4:3 whose length lies between the bounds, evenly spread over the numbers."""
    rng = np.random.default_rng(number)
    wanted = low + (high - low) * (number % DIFFERENT + 0.5) / DIFFERENT
    height = round((wanted * 2.5) ** 0.5)  # 60 kB are 516x387 pixels, much as in COCO and ImageNet
    width = height * 4 // 3
    pixels = np.zeros((height, width, 3), np.float32)
    for grain, strength in ((6, 110), (24, 60), (96, 40), (320, 25)):
        noise = rng.random((grain * 3 // 4 + 1, grain, 3), np.float32) * strength
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels += rng.normal(0, 4, pixels.shape)
    image = pixels.clip(0, 255).astype(np.uint8)
    best = b""
    for quality in range(98, 20, -2):
        best = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(best) <= wanted:
            break
    return best


def make_files(folder: Path, count: int) -> list[str]:
    """Writes the plain files, a thousand to a folder; their names."""
    images = [encode(n) for n in track(range(min(DIFFERENT, count)), "generating")]
    names = name_files(count)
    for number, name in enumerate(track(names, "writing")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images[number % len(images)])
    return names


def name_files(count: int) -> list[str]:
    """The files' names."""
    return [f"{number // PER_FOLDER:03d}/{number:06d}.jpg" for number in range(count)]


def prepare(plain: Path, packed: Path, count: int) -> list[str]:
    """Plain files and shards, unless they are there; the files' names."""
    names = name_files(count)
    if not is_file(packed / names[-1]):
        make_files(plain, count)
        with contextlib.redirect_stdout(io.StringIO()):
            make_shards.main([str(plain), "--output", str(packed), "--shard-size", "250MB"])
    return names


def cool(kind: str | None, folders: list[Path]) -> None:
    """Takes the files' pages, or all that the kernel remembers of files, out of memory."""
    if kind is None:
        return
    os.sync()
    if kind == "all":
        DROP.write_text("3")
        return
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(
    sides: dict[str, Callable[[str], Any]], names: list[str], repeats: int, kind: str | None, folders: list[Path]
) -> dict[str, list[float]]:
    """Images per second of each side and round; the sides take turns."""
    clock = time.process_time if kind is None else time.perf_counter
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(-1, repeats):  # the first round warms up
        order = np.random.default_rng(repeat + 1).permutation(names).tolist()
        for side, read in sides.items():
            cool(kind, folders)
            start = clock()
            for name in order:
                read(name)
            if repeat >= 0:
                rates[side].append(len(order) / (clock() - start))
    return rates


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("runs/benchmark_shards")
    parser.add_argument("--output", type=Path, default=default, help="folder (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: a temporary folder)")
    parser.add_argument("--count", type=int, default=20_000, help="images (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=1_000, help="images to decode, too (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--cold", choices=("pages", "all"), help="forget the files before each measurement")
    arguments = parser.parse_args()
    if arguments.cold == "all" and not os.access(DROP, os.W_OK):
        parser.error("--cold all needs root")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        plain, packed = folder / "plain", folder / "shards"
        names = prepare(plain, packed, arguments.count)
        memory = {name: (plain / name).read_bytes() for name in names}
        size = sum(map(len, memory.values())) / len(names)
        readers: dict[str, Callable[[str], bytes]] = {
            "plain files": lambda name: read_bytes(plain / name),
            "shards": lambda name: read_bytes(packed / name),
            "memory": memory.__getitem__,
        }
        decoders: dict[str, Callable[[str], Any]] = {
            f"{side}, decoded": lambda name, read=read: read_image(name, data=read(name))
            for side, read in readers.items()
        }
        common = (arguments.repeats, arguments.cold, [plain, packed])
        rates = measure(readers, names, *common) | measure(decoders, names[: arguments.decode], *common)
        start = time.perf_counter()
        Shards(packed)
        opening = time.perf_counter() - start
    results = {}
    for side, values in rates.items():
        base = rates["plain files, decoded" if side.endswith("decoded") else "plain files"]
        ratio = median(a / b for a, b in zip(values, base, strict=True))
        results[side] = {"images per second": round(median(values)), "times plain files": round(ratio, 2)}
        print(f"{side}: {results[side]}")
    state = {None: "page cache warm", "pages": "pages dropped", "all": "all caches dropped"}[arguments.cold]
    clock = "CPU time" if arguments.cold is None else "time that passed"
    facts = {"images": len(names), "mean bytes": round(size), "state": state, "clock": clock, "opening s": opening}
    print(facts)
    bars = {side: found["times plain files"] for side, found in results.items() if not side.startswith("plain")}
    title = f"{len(names):,} images of {size / 1000:.0f} kB, one thread, {state}: times plain files' rate"
    write(arguments.output, "benchmark_shards", {**facts, "results": results}, bars, title)


if __name__ == "__main__":
    main()
