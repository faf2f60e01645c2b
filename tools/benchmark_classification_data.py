"""Images per second and core of ImageNet's training pipeline, against torchvision v2 on PIL images.

    python tools/benchmark_classification_data.py --output runs/benchmark_classification_data
    python tools/benchmark_classification_data.py --without-fast        # base dependencies: no simplejpeg

Both sides read the same JPEGs (500 x 375, made here; `--large` adds 2000 x 1500) and do the same: decode,
RandomResizedCrop to 224, flip, colour jitter 0.4 (and with `--hue` of the hue by 0.1), down to uint8 planes. They take
turns in this process on one thread; CPU time is measured, so other work on the machine matters little. Printed is the
median of repeats; written are JSON and a picture.
"""

from __future__ import annotations

import argparse
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
from torchvision.transforms import v2

from vistrain.data import ImageAugment
from vistrain.data.base import images
from vistrain.data.classification import sources
from vistrain.data.classification.module import LabelledImage, collate_images

SIDE = 224
SIZES = {"500x375": (375, 500), "2000x1500": (1500, 2000)}
MEAN = (0.485, 0.456, 0.406)


def make_images(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs of about the detail of photographs (500 x 375: 80 kB)."""
    height, width = size
    paths = []
    for number in range(count):
        rng = np.random.default_rng((number, height))
        pixels = np.zeros((height, width, 3), np.float32)
        for grain, strength in ((6, 110), (24, 60), (96, 40), (320, 45)):
            noise = rng.random((grain * 3 // 4, grain, 3), np.float32) * strength
            pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f"{height}-{number}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def sides(hue: float) -> dict[str, Callable[[Path, int], torch.Tensor]]:
    """Both pipelines, from a file and a seed to uint8 `[3, 224, 224]`."""
    augment = ImageAugment(interpolation="bilinear", color=0.4, hue=hue)
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, hue),
            v2.PILToTensor(),
        ]
    )

    def ours(path: Path, seed: int) -> torch.Tensor:
        encoded = sources.ImageFile(path)
        image = augment.apply(encoded, (SIDE, SIDE), MEAN, seed)
        return collate_images([LabelledImage(image, 0, encoded.size, (0,))])["image"][0]

    def torchvision(path: Path, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with Image.open(path) as opened:
            return steps(opened.convert("RGB"))

    return {"vistrain": ours, "torchvision": torchvision}


def measure(paths: list[Path], repeats: int, hue: float) -> dict[str, float]:
    """Milliseconds of CPU per image of both sides, and their ratio; medians of `repeats` rounds in turn."""
    runs = sides(hue)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):  # the first round warms up
        for name, run in runs.items():
            start = time.process_time()
            for number, path in enumerate(paths):
                run(path, (repeat + 1) * len(paths) + number)
            if repeat >= 0:
                times[name].append((time.process_time() - start) / len(paths) * 1000)
    ratio = median(b / a for a, b in zip(times["vistrain"], times["torchvision"], strict=True))
    return {**{f"{name}_ms": round(median(values), 2) for name, values in times.items()}, "ratio": round(ratio, 2)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hue", type=float, default=0.1)
    parser.add_argument("--large", action="store_true", help="photographs of 2000 x 1500, too")
    parser.add_argument("--without-fast", action="store_true", help="as if the extra `fast` were not installed")
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if arguments.without_fast:
        images.simplejpeg = sources.simplejpeg = None
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items() if arguments.large else list(SIZES.items())[:1]:
            paths = make_images(Path(folder), arguments.images, size)
            found[name] = measure(paths, arguments.repeats, arguments.hue)
            print(f"{name}: {found[name]}", flush=True)
    decoder = "simplejpeg" if sources.simplejpeg is not None else "base dependencies"
    content = {"decoder": decoder, "hue": arguments.hue, "images": arguments.images, "results": found}
    ratios = {f"{name}, {decoder}": values["ratio"] for name, values in found.items()}
    stem = "classification_data" + ("_base" if arguments.without_fast else "")
    write(arguments.output, stem, content, ratios, "ImageNet training pipeline per core, times torchvision v2 on PIL")


if __name__ == "__main__":
    main()
