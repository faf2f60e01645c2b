"""Images per second and core of the COCO training pipeline, against torchvision v2 on PIL images.

    python tools/benchmark_data.py --output runs/benchmark_data
    python tools/benchmark_data.py --against ../older        # a worktree of an older commit takes turns, too

Both sides read the same JPEGs (640 x 480, made here) and do the same operations with the same random choices: decode,
flip, resize and crop as the DETR recipe says, boxes included, down to the uint8 planes that a batch is made of.
They take turns in this process on one thread; CPU time is measured, so other work on the machine matters little.
Printed is the median of repeats; written are benchmark_data.json and benchmark_data.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from benchmarking import Elsewhere, machine, serve
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as v2

from vistrain.data.base.images import read_image, simplejpeg
from vistrain.data.detection.collate import Sample, collate
from vistrain.data.detection.transforms import DetrAugment, output_size
from vistrain.pictures import bars

WIDTH, HEIGHT, OBJECTS = 640, 480, 7  # COCO's most common size, and its mean number of objects
Side = Callable[[Path, np.ndarray, DetrAugment, int], torch.Tensor]
VARIANTS = {"flip + multi-scale": DetrAugment(crop=0), "flip + multi-scale | crop": DetrAugment()}


def make_images(folder: Path, count: int) -> list[Path]:
    """JPEGs of about the size and detail of COCO's (100 kB)."""
    paths = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for grain, strength in ((6, 110), (24, 60), (96, 40), (320, 45)):
            noise = rng.random((grain * 3 // 4, grain, 3), np.float32) * strength
            pixels += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for _ in range(12):
            corner, side = rng.integers(0, (WIDTH, HEIGHT)), rng.integers(20, 200, 2)
            end = tuple(int(v) for v in corner + side)
            cv2.rectangle(pixels, tuple(int(v) for v in corner), end, rng.uniform(0, 255, 3).tolist(), -1)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def ours(path: Path, boxes: np.ndarray, augment: DetrAugment, seed: int) -> torch.Tensor:
    """uint8 `[3, h, w]` by vistrain."""
    sample = Sample(read_image(path), 0, (HEIGHT, WIDTH), boxes, np.zeros(len(boxes), np.int64))
    return collate([augment.apply(sample, seed)])["image"][0]


def torchvision(path: Path, boxes: np.ndarray, augment: DetrAugment, seed: int) -> torch.Tensor:
    """uint8 `[3, h, w]` by torchvision v2 on a PIL image; draws what `DetrAugment.apply` draws."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    rng = np.random.default_rng(seed)
    truth = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH))

    def resize(short: int, long: int | None) -> None:
        nonlocal image, truth
        size = list(output_size(image.height, image.width, short, long))
        image, truth = v2.resize(image, size), v2.resize(truth, size)

    if rng.random() < augment.flip:
        image, truth = v2.horizontal_flip(image), v2.horizontal_flip(truth)
    if rng.random() < augment.crop:
        resize(int(rng.choice(augment.crop_resize)), None)
        least, greatest = augment.crop_range
        width, height = (int(rng.integers(min(least, n), min(greatest, n) + 1)) for n in image.size)
        top, left = int(rng.integers(image.height - height + 1)), int(rng.integers(image.width - width + 1))
        image = v2.crop(image, top, left, height, width)
        truth = v2.clamp_bounding_boxes(v2.crop(truth, top, left, height, width))
        truth = tv_tensors.wrap(truth[(truth[:, 2:] > truth[:, :2]).all(1)], like=truth)
    resize(int(rng.choice(augment.scales)), augment.long_side)
    return v2.pil_to_tensor(image)


def boxes_of_an_image() -> np.ndarray:
    """`[7, 4]` xyxy."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.6, (OBJECTS, 2)) * (WIDTH, HEIGHT)
    boxes = np.concatenate([corner, corner + rng.uniform(10, 200, (OBJECTS, 2))], 1).astype(np.float32)
    return boxes.clip(0, (WIDTH, HEIGHT, WIDTH, HEIGHT))


def turn(side: Side, paths: list[Path], augment: DetrAugment, first_seed: int) -> float:
    """Milliseconds of CPU per image of one round."""
    boxes, start = boxes_of_an_image(), time.process_time()
    for number, path in enumerate(paths):
        side(path, boxes, augment, first_seed + number)
    return (time.process_time() - start) / len(paths) * 1000


def measure(paths: list[Path], variant: str, repeats: int, elsewhere: Elsewhere | None) -> dict[str, float]:
    """Milliseconds of CPU per image of all sides and their ratios to ours, medians of `repeats` rounds in turn."""
    augment = VARIANTS[variant]
    sides: dict[str, Callable[[int], float]] = {
        "vistrain": lambda seed: turn(ours, paths, augment, seed),
        "torchvision": lambda seed: turn(torchvision, paths, augment, seed),
    }
    if elsewhere is not None:
        sides["before"] = lambda seed: elsewhere(list(VARIANTS).index(variant), seed)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-1, repeats):  # the first round warms up
        for name, side in sides.items():
            taken = side((repeat + 1) * len(paths))
            if repeat >= 0:
                times[name].append(taken)
    found = {f"{name}_ms": round(median(values), 2) for name, values in times.items()}
    for name, key in (("torchvision", "ratio"), ("before", "before_ratio")):
        if name in times:
            found[key] = round(median(b / a for a, b in zip(times["vistrain"], times[name], strict=True)), 3)
    return found


def check_equal(paths: list[Path], augment: DetrAugment) -> int:
    """The largest difference in grey levels between both sides' images; sizes must agree."""
    boxes = np.array([[10, 20, 300, 400]], np.float32)
    worst = 0
    for seed, path in enumerate(paths):
        a, b = (side(path, boxes, augment, seed).short() for side in (ours, torchvision))
        if a.shape != b.shape:
            raise SystemExit(f"not the same operations: {tuple(a.shape)} and {tuple(b.shape)} for seed {seed}")
        worst = max(worst, int((a - b).abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/benchmark_data"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=32, help="images per round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of another commit, to compare with")
    parser.add_argument("--serve", type=Path, metavar="IMAGES", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if arguments.serve is not None:
        images, variants = sorted(arguments.serve.iterdir()), list(VARIANTS.values())
        serve(lambda variant, seed: turn(ours, images, variants[int(variant)], int(seed)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(make_images(Path(folder), arguments.images))
        elsewhere = arguments.against and Elsewhere(arguments.against, __file__, serve=folder)
        for name, augment in VARIANTS.items():
            difference = check_equal(paths, augment)
            found = measure(paths, name, arguments.repeats, elsewhere)
            results[name] = {**found, "largest_difference": difference}
    arguments.output.mkdir(parents=True, exist_ok=True)
    packages = {p: version(p) for p in ("torchvision", "opencv-python-headless", "pillow")}
    packages["decoder"] = "torchvision" if simplejpeg is None else f"simplejpeg {version('simplejpeg')}"
    rounds = {"images": arguments.images, "repeats": arguments.repeats}
    content = {"machine": {**machine(), **packages}, **rounds, "results": results}
    (arguments.output / "benchmark_data.json").write_text(json.dumps(content, indent=1))
    speeds = {}
    for name, result in results.items():
        for side in ("vistrain", "torchvision"):
            speeds[f"{name}: {side}"] = round(1000 / result[f"{side}_ms"], 1)
        print(
            f"{name}: vistrain {result['vistrain_ms']} ms, v2 on PIL {result['torchvision_ms']} ms per image"
            f" and core: {result['ratio']} times as fast (pixels differ by at most {result['largest_difference']})"
        )
        if "before_ms" in result:
            print(f"{name}: before {result['before_ms']} ms, {result['before_ratio']} times ours")
    title = "COCO training pipeline, decode to uint8 planes, one core"
    print(bars(speeds, arguments.output / "benchmark_data.png", title, "images / s"))


if __name__ == "__main__":
    main()
