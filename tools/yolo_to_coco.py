"""Converts YOLO labels (one text file per image) to COCO JSON. Images stay where they are.

    python tools/yolo_to_coco.py path/to/data.yaml --output data/mine

reads the splits (train, val, test) and class names of the data file and writes data/mine/train.json, val.json, ...
A split is a folder of images, a list file of image paths, or several of these; the labels of images/a/1.jpg are in
labels/a/1.txt. Rows are `class cx cy width height` or, for masks, `class x1 y1 x2 y2 ...`, as shares of the image's
size. An image without a label file has no objects. Without a data file, a folder with images/train, labels/train, ...
and --names will do:

    python tools/yolo_to_coco.py path/to/folder --names cat dog --output data/mine

Category ids are YOLO's class numbers plus 1. Sizes are those after the EXIF orientation, as in YOLO's own reader.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from coco_writer import Box, ConversionError, Labelled, config_lines, image_size, run, write_coco

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("source", type=Path, help="data file (YAML), or a folder that holds images/ and labels/")
    made.add_argument("--output", type=Path, required=True, help="folder for the JSON files")
    made.add_argument("--names", nargs="+", help="class names in the order of YOLO's numbers, for a folder")
    made.add_argument(
        "--images", type=Path, help="folder that file names are relative to (default: the one that holds all)"
    )
    return made


def convert(arguments: argparse.Namespace) -> list[str]:
    """Writes the JSON files; returns what to print."""
    files, names = _from_folder(arguments) if arguments.source.is_dir() else _from_yaml(arguments.source)
    if not any(files.values()):
        raise ConversionError(f"{arguments.source}: no images found")
    every = [path for split in files.values() for path in split]
    images = arguments.images.resolve() if arguments.images else Path(os.path.commonpath([p.parent for p in every]))
    for path in every:
        if not path.is_relative_to(images):
            raise ConversionError(f"{path}: not below the image folder {images}")
    splits = {name: [_read(path, images, names) for path in paths] for name, paths in files.items() if paths}
    return [
        *write_coco(splits, names, arguments.output),
        "",
        "use it with",
        config_lines(images, arguments.output, list(splits)),
    ]


def _from_folder(arguments: argparse.Namespace) -> tuple[dict[str, list[Path]], list[str]]:
    root = arguments.source.resolve()
    if not arguments.names:
        raise ConversionError(f"{root}: a folder says no class names; give them with --names, or give the data file")
    if not (root / "images").is_dir():
        raise ConversionError(f"{root / 'images'}: no such folder")
    return {
        name: _images(root / "images" / name) for name in SPLITS if (root / "images" / name).is_dir()
    }, arguments.names


def _from_yaml(path: Path) -> tuple[dict[str, list[Path]], list[str]]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file or folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or "names" not in content:
        raise ConversionError(f"{path}: has no 'names'; a YOLO data file names its classes")
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ConversionError(f"{path}: class numbers {sorted(names)} do not count from 0")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or len(set(map(str, names))) != len(names):
        raise ConversionError(f"{path}: 'names' must list each class once")
    root = path.resolve().parent / (content.get("path") or "")
    found: dict[str, list[Path]] = {}
    for split in SPLITS:
        sources = content.get(split) or []
        sources = sources if isinstance(sources, list) else [sources]
        found[split] = sorted({image for source in sources for image in _images(root / str(source))})
    return found, [str(name) for name in names]


def _images(source: Path) -> list[Path]:
    """The images of a folder (and those below it), or of a list file whose lines may be relative to it."""
    if source.is_dir():
        return sorted(p for p in source.resolve().rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if source.is_file():
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
        return sorted({(source.parent / line).resolve() for line in lines if line})
    raise ConversionError(f"{source}: no such image folder or list")


def _read(path: Path, images: Path, names: list[str]) -> Labelled:
    width, height = image_size(path, turned=True)
    labels = _label_file(path)
    boxes = []
    if labels.is_file():
        for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                boxes.append(_box(f"{labels}, line {number}", line.split(), (width, height), names))
    return Labelled(path.relative_to(images).as_posix(), (width, height), boxes)


def _label_file(image: Path) -> Path:
    """The last `images` folder of the path becomes `labels`; without one, the label lies beside the image."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _box(where: str, cells: list[str], size: tuple[int, int], names: list[str]) -> Box:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        raise ConversionError(f"{where}: {' '.join(cells)!r} is not a row of numbers") from None
    if not all(map(math.isfinite, values)):
        raise ConversionError(f"{where}: coordinates that are not finite")
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ConversionError(f"{where}: {len(values)} numbers; 5 are needed for a box, 7, 9, 11, ... for a mask")
    if values[0] != int(values[0]) or not 0 <= values[0] < len(names):
        raise ConversionError(f"{where}: class {cells[0]}, but there are {len(names)} names (0 to {len(names) - 1})")
    width, height = size
    name = names[int(values[0])]
    if len(values) == 5:
        w, h = values[3] * width, values[4] * height
        return Box(name, (values[1] * width - w / 2, values[2] * height - h / 2, w, h))
    xs, ys = [x * width for x in values[1::2]], [y * height for y in values[2::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    return Box(name, (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)), polygon=polygon)


if __name__ == "__main__":
    sys.exit(run(convert, parser().parse_args()))
