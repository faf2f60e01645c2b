"""What the converters share: numbering images, categories and annotations, and writing COCO JSON. Imports no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ConversionError(Exception):
    """Something in the source that cannot be converted; the message names the file."""


@dataclass
class Box:
    """One object.

    Attributes:
        category: class name.
        bbox: x, y, width, height in pixels, from the image's top left corner.
        iscrowd: whether evaluation and training should ignore it.
        polygon: x1, y1, x2, y2, ... in pixels, or empty.
    """

    category: str
    bbox: tuple[float, float, float, float]
    iscrowd: bool = False
    polygon: list[float] = field(default_factory=list)


@dataclass
class Labelled:
    """An image with its objects.

    Attributes:
        file_name: relative to the images folder, with forward slashes.
        size: width, height in pixels.
        boxes: its objects.
    """

    file_name: str
    size: tuple[int, int]
    boxes: list[Box]


def image_size(path: Path, turned: bool) -> tuple[int, int]:
    """Width and height of an image, from its header alone.

    Args:
        path: the file.
        turned: as a viewer shows it, that is after its EXIF orientation.

    Raises:
        ConversionError: it is missing or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if turned and image.getexif().get(0x0112) in TURNED else (width, height)
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such image file") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ConversionError(f"{path}: not a readable image ({error})") from None


def write_coco(splits: dict[str, list[Labelled]], categories: Sequence[str], output: Path) -> list[str]:
    """Writes `<output>/<split>.json` for each split.

    Ids do not depend on the order of reading: categories are numbered from 1 as given, images from 1 in the order of
    their names over all splits, annotations from 1 within each split.

    Args:
        splits: name -> images; names must not repeat within a split.
        categories: class names in the order of their ids.
        output: folder, made if absent.

    Returns:
        A line per split that says what is in it, boxes without area left out.
    """
    output.mkdir(parents=True, exist_ok=True)
    number = {name: i for i, name in enumerate(categories, 1)}
    image_number = {f: i for i, f in enumerate(sorted({x.file_name for s in splits.values() for x in s}), 1)}
    lines = []
    for split, images in splits.items():
        annotations: list[dict[str, Any]] = []
        flat = 0
        for image in sorted(images, key=lambda x: image_number[x.file_name]):
            for box in image.boxes:
                if not (box.bbox[2] > 0 and box.bbox[3] > 0):
                    flat += 1
                    continue
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_number[image.file_name],
                        "category_id": number[box.category],
                        "bbox": [round(v, 3) for v in box.bbox],
                        "area": round(box.bbox[2] * box.bbox[3], 3),
                        "iscrowd": int(box.iscrowd),
                        "segmentation": [[round(v, 3) for v in box.polygon]] if box.polygon else [],
                    }
                )
        content = {
            "images": [
                {"id": image_number[x.file_name], "file_name": x.file_name, "width": x.size[0], "height": x.size[1]}
                for x in sorted(images, key=lambda x: image_number[x.file_name])
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in number.items()],
        }
        (output / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
        counts = Counter(a["category_id"] for a in annotations)
        per_class = ", ".join(f"{name} {counts[i]}" for name, i in number.items())
        crowds = sum(a["iscrowd"] for a in annotations)
        extra = [f"{crowds} to be ignored"] * bool(crowds) + [f"{flat} boxes without area left out"] * bool(flat)
        note = f" ({', '.join(extra)})" if extra else ""
        lines.append(f"{output / split}.json: {len(images)} images, {len(annotations)} objects{note}: {per_class}")
    return lines


def config_lines(images: Path, output: Path, splits: Sequence[str]) -> str:
    """The `data:` section that uses the converted set."""
    chosen = [(key, key if key in splits else None) for key in ("train", "val", "test")]
    if len(splits) and not chosen[0][1]:
        chosen = [("train", splits[0]), ("val", splits[-1])]
    lines = ["data:", "  type: data.CocoDetection", f"  root: {output}"]
    lines += [f"  {key}: {{images: {images.resolve()}, annotations: {name}.json}}" for key, name in chosen if name]
    return "\n".join(lines)


def run(convert: Callable[[argparse.Namespace], list[str]], arguments: argparse.Namespace) -> int:
    """Converts, prints the outcome, and turns an expected failure into one line and exit code 2."""
    try:
        print("\n".join(convert(arguments)))
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
