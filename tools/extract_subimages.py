"""Cuts large images into overlapping squares, which training reads faster than whole 2K images.

    python tools/extract_subimages.py DIV2K/DIV2K_train_HR --output DIV2K/DIV2K_train_HR_sub
    python tools/extract_subimages.py DIV2K/DIV2K_train_LR_bicubic/X4 --output DIV2K/X4_sub --crop 120 --step 60

The defaults are those of BasicSR (480 pixels, 240 apart, and a last row and column flush with the border). Degraded
images are cut with crop and step divided by the scale, and come out with the same names (`0001x4.png` becomes
`0001_s001x4.png`). Images smaller than the square are kept whole. What cannot be read is named and skipped, and the
exit code is then 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.progress import track

from vistrain.data.base.images import SUFFIXES
from vistrain.data.restoration.pixels import read_pixels
from vistrain.errors import DataError
from vistrain.processes import available_cores

SCALE = re.compile(r"x\d+$")


def starts(side: int, crop: int, step: int, least: int) -> list[int]:
    """Where squares start along a side of so many pixels; one at 0 if the side is not longer than the square."""
    if side <= crop:
        return [0]
    places = list(range(0, side - crop + 1, step))
    return [*places, side - crop] if side - (places[-1] + crop) >= least else places


def cut(path: Path, source: Path, output: Path, crop: int, step: int, least: int) -> str | int:
    """Cut one image; the number of squares, or what is wrong with it."""
    try:
        image = read_pixels(path)
    except DataError as error:
        return str(error)
    if (image == image[..., :1]).all():
        image = image[..., :1]
    scale = SCALE.search(path.stem)
    stem = path.stem[: scale.start()] if scale else path.stem
    folder = output / path.parent.relative_to(source)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = image.shape[:2]
    squares = [(y, x) for y in starts(height, crop, step, least) for x in starts(width, crop, step, least)]
    for number, (y, x) in enumerate(squares, 1):
        part = np.ascontiguousarray(image[y : y + crop, x : x + crop]).squeeze()
        name = f"{stem}_s{number:03d}{scale.group() if scale else ''}.png"
        # Little compression: the files are read a thousand times
        Image.fromarray(part).save(folder / name, compress_level=1)
    return len(squares)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of images, searched with the folders in it")
    parser.add_argument("--output", type=Path, required=True, help="folder, made if needed")
    parser.add_argument("--crop", type=int, default=480, help="side of the squares (default: %(default)s)")
    parser.add_argument("--step", type=int, default=240, help="pixels from one to the next (default: %(default)s)")
    parser.add_argument("--least", type=int, default=1, help="least rest for one more square (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.crop < 1 or arguments.step < 1:
        parser.error("--crop and --step must be 1 or more")
    files = sorted(p for p in arguments.source.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        parser.error(f"no images in {arguments.source}")
    if arguments.output.resolve().is_relative_to(arguments.source.resolve()):
        parser.error("--output lies in the source: a second run would cut its own squares")
    cv2.setNumThreads(1)
    job = partial(
        cut, source=arguments.source, output=arguments.output, crop=arguments.crop, step=arguments.step,
        least=arguments.least,
    )  # fmt: skip
    if arguments.workers > 1:
        with ProcessPoolExecutor(arguments.workers) as pool:
            results = list(track(pool.map(job, files, chunksize=4), "cutting", total=len(files)))
    else:
        results = [job(path) for path in files]
    problems = [r for r in results if isinstance(r, str)]
    print(f"{len(files) - len(problems)} images, {sum(r for r in results if isinstance(r, int))} squares")
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
