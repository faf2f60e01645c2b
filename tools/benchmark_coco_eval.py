"""COCO evaluation through `CocoBox`: pycocotools against faster-coco-eval, on the same synthetic records.

    python tools/benchmark_coco_eval.py --images 5000 --detections 100

Both run alternately in one process; the ratio is the median of the repeats. All twelve numbers must be equal to the
last bit, or the exit code is 1. Writes `coco_eval.json` and `coco_eval.png` into `--output`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from benchmarking import alternate, medians, write

from vistrain.metrics.coco import CocoBox
from vistrain.structures import LabelSpace

SIZE = 640.0  # pixels of an image's side
BACKENDS = ("pycocotools", "faster_coco_eval")


def synthetic(
    images: int, detections: int, classes: int, seed: int
) -> tuple[dict[str, Any], LabelSpace, list[dict[str, Any]]]:
    """Ground truth with 7.3 objects an image (as val2017), and records in which about half the objects are found."""
    random = np.random.default_rng(seed)
    labels = LabelSpace(tuple(f"class {i}" for i in range(classes)), tuple(range(1, classes + 1)))
    truth: dict[str, Any] = {
        "images": [{"id": i + 1, "height": int(SIZE), "width": int(SIZE)} for i in range(images)],
        "categories": [{"id": i, "name": n} for i, n in zip(labels.ids, labels.names, strict=True)],
        "annotations": [],
    }
    records = []
    for image in truth["images"]:
        count = min(int(random.poisson(7.3)), detections)
        sides = random.lognormal(4.2, 0.9, (count, 2)).clip(4, SIZE)
        corners = random.uniform(0, 1, (count, 2)) * (SIZE - sides)
        objects = np.concatenate([corners, sides], axis=1)
        categories = random.integers(1, classes + 1, count)
        for box, category in zip(objects.tolist(), categories.tolist(), strict=True):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(random.random() < 0.012),
                }
            )
        found = objects * random.normal(1, 0.06, (count, 4))
        alarms = np.concatenate(
            [random.uniform(0, SIZE / 2, (detections - count, 2)), random.lognormal(4.2, 0.9, (detections - count, 2))],
            1,
        )
        records.append(
            {
                "id": image["id"],
                "boxes": np.concatenate([found, alarms]).astype(np.float32),
                "scores": np.concatenate([random.beta(4, 2, count), random.beta(1, 6, len(alarms))]).astype(np.float32),
                "categories": np.concatenate([categories, random.integers(1, classes + 1, len(alarms))]),
            }
        )
    return truth, labels, records


def main() -> int:
    """Runs the comparison and writes its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--detections", type=int, default=100, help="for each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()

    truth, labels, records = synthetic(arguments.images, arguments.detections, arguments.classes, arguments.seed)
    numbers: dict[str, dict[str, float]] = {}

    def run(backend: str) -> None:
        numbers[backend] = CocoBox(truth, labels, backend).compute(records)

    times = alternate({backend: partial(run, backend) for backend in BACKENDS}, arguments.repeats, warm_up=0)
    ratio = statistics.median(slow / fast for slow, fast in zip(*times.values(), strict=True))
    equal = numbers[BACKENDS[0]] == numbers[BACKENDS[1]]
    report = {
        "images": arguments.images,
        "detections": arguments.images * arguments.detections,
        "objects": len(truth["annotations"]),
        "classes": arguments.classes,
        "seconds": times,
        "median_seconds": medians(times),
        "ratio": ratio,
        "numbers_equal_to_the_last_bit": equal,
        "numbers": numbers[BACKENDS[0]],
        "versions": {name: version(name) for name in ("pycocotools", "faster-coco-eval", "numpy")},
    }
    title = f"COCO evaluation, {report['detections']:,} detections, pycocotools / faster-coco-eval (time)"
    write(arguments.output, "coco_eval", report, {"evaluation": ratio}, title)
    print(f"{title}: {ratio:.1f}; median seconds {medians(times)}")
    print("numbers equal to the last bit" if equal else f"numbers differ: {numbers}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
