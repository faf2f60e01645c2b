"""The training pipeline of super-resolution (decode, random crop, degrade, batch) against one on PIL images.

    python tools/benchmark_restoration_data.py --output runs/benchmark_restoration_data

Both read the same PNG files (made here) and deliver batches of low-resolution and true patches as uint8 tensors. They
take turns in this process on one thread; CPU time is measured. PIL's side is what one writes with it: open, crop, turn,
resize. It degrades with Pillow's bicubic filter, which treats borders otherwise (see layers/imresize.py) but costs
about the same. Ours is measured in each way of `data.cache`:

- `decoding each time` (false, and `auto` for sets that are too large for memory): PNG decoding is nearly all there is
  to do, and it is libpng's on both sides;
- `first epoch` of `cache: true`, in which the decoded copies are written;
- `decoded copies` (true, as the DF2K configs have it): every later epoch;
- `in memory` (`auto` for sets up to 256 MiB): every epoch but the first.

Printed is the median of repeats; written are benchmark_restoration_data.json and benchmark_restoration_data.png.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from benchmarking import write
from PIL import Image

from vistrain.data.restoration.decoded import Reader
from vistrain.data.restoration.degradations import Bicubic
from vistrain.data.restoration.image_pairs import ImageSet, find_pairs
from vistrain.data.restoration.samples import RestorationDataset, collate_pairs

SCALE, PATCH, BATCH = 4, 64, 16


def make_images(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """PNG files about as hard to compress as photographs (about 1.5 bytes a pixel)."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.zeros((*size, 3), np.float32)
        for grain, strength in ((6, 110), (24, 60), (96, 40), (320, 45)):
            noise = rng.random((grain * size[0] // size[1] + 1, grain, 3), np.float32) * strength
            pixels += cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
        pixels += rng.normal(0, 1.5, pixels.shape)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def pillow(paths: list[Path], draw: np.random.Generator) -> list[torch.Tensor]:
    """A batch by Pillow: decode, crop, turn, resize."""
    lows, truths = [], []
    side = PATCH * SCALE
    for path in paths:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        left, top = (int(draw.integers(n - side + 1)) for n in image.size)
        truth = image.crop((left, top, left + side, top + side))
        if draw.random() < 0.5:
            truth = truth.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        truth = truth.rotate(90 * int(draw.integers(4)))
        low = truth.resize((PATCH, PATCH), Image.Resampling.BICUBIC)
        for kept, made in ((lows, low), (truths, truth)):
            kept.append(torch.from_numpy(np.array(made)).permute(2, 0, 1))
    return [torch.stack(lows), torch.stack(truths)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("runs/benchmark_restoration_data")
    parser.add_argument("--output", type=Path, default=default, help="folder (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of one batch (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    results = {}
    cases = {"sub-images 480x480": (480, 480), "2K images 1356x2040": (1356, 2040)}
    for case, size in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = make_images(Path(folder), BATCH, size)
            pairs = [(p.name, p) for p in find_pairs(Path(folder), ImageSet("."), SCALE)]
            common = (pairs, SCALE, "rgb", Bicubic(SCALE), PATCH, True, 1)
            copies = Path(folder, "copies")
            ours = {
                "decoding each time": RestorationDataset(*common),
                "first epoch": RestorationDataset(*common, Reader("rgb", "files", copies)),
                "decoded copies": RestorationDataset(*common, Reader("rgb", "files", Path(folder, "kept"))),
                "in memory": RestorationDataset(*common, Reader("rgb", "memory")),
            }
            draw = np.random.default_rng(0)
            sides: dict[str, Callable[[], object]] = {"PIL": lambda paths=paths, draw=draw: pillow(paths, draw)}
            for name, data in ours.items():
                sides[f"vistrain, {name}"] = lambda data=data: collate_pairs([data[i, i] for i in range(BATCH)])
            times: dict[str, list[float]] = {name: [] for name in sides}
            for repeat in range(-1, arguments.repeats):  # the first round warms up, and fills the cache
                shutil.rmtree(copies, ignore_errors=True)
                for name, run in sides.items():
                    start = time.process_time()
                    run()
                    if repeat >= 0:
                        times[name].append((time.process_time() - start) / BATCH * 1000)
        for name, values in times.items():
            ratio = round(median(b / a for a, b in zip(values, times["PIL"], strict=True)), 2)
            results[f"{case}: {name}"] = {"ms per patch": round(median(values), 2), "times as fast as PIL": ratio}
            print(f"{case}: {name}: {results[f'{case}: {name}']}")
    bars = {name: result["times as fast as PIL"] for name, result in results.items() if not name.endswith("PIL")}
    title = f"decode, crop {PATCH * SCALE}x{PATCH * SCALE}, reduce {SCALE} times, batch: times as fast as PIL, one core"
    write(arguments.output, "benchmark_restoration_data", {"results": results}, bars, title)


if __name__ == "__main__":
    main()
