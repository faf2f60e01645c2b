"""Outlines of objects as label files: a class for every pixel, with one rule for where objects overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from vistrain.data.base.check import opened
from vistrain.data.importing.export import Notes, Placed, Shape, printable
from vistrain.errors import DataError
from vistrain.writing import whole_file

Overlap = Literal["last", "smallest"]

# What lies on top where an export says nothing of it: tools that draw one object over the other do so in order.
USUAL: Mapping[str, Overlap] = {"labelme": "last", "cvat": "last", "labelstudio": "last"}
REST = "background"
IGNORED_8, IGNORED_16 = 255, 65535
CLASS_FILE, MASKS = "classes.txt", "masks"


def write_masks(
    placed: Mapping[str, Sequence[Placed]], classes: Sequence[str], output: Path, overlap: Overlap, notes: Notes
) -> list[str]:
    """Writes `<output>/masks/NAME.png` for each picture, `classes.txt`, and `<split>.txt` with the names of a split.

    Values are 0 for what belongs to no object, and 1, 2, ... for the classes in their order; a class called
    `background` is 0, too. Objects to be ignored are 255 (65535 with 255 classes or more). A pixel belongs to an object
    if its outline covers or touches it, as LabelMe has it, or its mask holds it; an object of neither is its box.

    Args:
        placed: split -> pictures with their objects, in the order of the export.
        classes: names, in the order of their numbers.
        output: folder, made if absent.
        overlap: which of several objects a pixel belongs to: the `last` one of the export, or the `smallest` by area.
        notes: receives what was read in another way than it is written.

    Returns:
        What to print, line by line.

    Raises:
        DataError: a file cannot be written, or a picture's name is no text.
    """
    names = [name for name in classes if name.casefold() != REST]
    value = {name: names.index(name) + 1 if name in names else 0 for name in classes}
    kind = np.uint8 if len(names) < IGNORED_8 else np.uint16
    ignored = IGNORED_8 if kind == np.uint8 else IGNORED_16
    lines = []
    for split, pictures in placed.items():
        ordered = sorted(pictures, key=lambda p: p.name)
        pixels, contested, total = Counter[int](), 0, 0
        stems = [str(Path(p.name).with_suffix("")) for p in ordered]
        for stem in stems:
            refuse_surrogates(stem, output, "the picture")
        if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
            raise DataError(twice[0], "two pictures have this name but for their suffixes", "rename one of them")

        def draw(picture: Placed) -> tuple[Counter[int], int]:
            mask, several = label_map(picture, value, overlap, ignored)
            target = output / MASKS / Path(picture.name).with_suffix(".png")
            with whole_file(target) as partial:
                Image.fromarray(mask.astype(kind)).save(partial, format="PNG")
            values, counts = np.unique(mask, return_counts=True)
            return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True))), several

        for picture, result in opened(ordered, draw, f"drawing {split}"):
            if isinstance(result, DataError):
                raise result
            pixels += result[0]
            contested, total = contested + result[1], total + picture.size[0] * picture.size[1]
            for shape in picture.shapes:
                if not shape.is_outlined:
                    notes.add("object without an outline: its box was filled", f"{shape.name} in {picture.name}")
        with whole_file(output / f"{split}.txt") as partial:
            partial.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
        there = {REST: pixels[0], **{name: pixels[v] for name, v in value.items() if v}}
        shares = ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in there.items())
        lines.append(printable(f"{output / split}.txt: {len(ordered)} masks in {output / MASKS}: {shares}"))
        rule = "the last of the export" if overlap == "last" else "the smallest"
        lines.append(f"  {100 * contested / total:.2f} % of the pixels lie in several objects: {rule} has them")
    with whole_file(output / CLASS_FILE) as partial:
        partial.write_text("".join(f"{v}\t{n}\n" for v, n in enumerate((REST, *names))), encoding="utf-8")
    return lines


def refuse_surrogates(name: str, where: Path, what: str) -> None:
    """Refuse a name that no text file can hold.

    Args:
        name: of a class, or of a file.
        where: the export, for the message.
        what: it is the name of.

    Raises:
        DataError: it has half of a UTF-16 pair, or a byte that is not UTF-8.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in name):
        raise DataError(str(where), f"{what} {printable(name)!r} has a name that is no text", "rename it")


def label_map(picture: Placed, value: Mapping[str, int], overlap: Overlap, ignored: int) -> tuple[np.ndarray, int]:
    """The class of each pixel of a picture, and how many pixels lie in objects of several classes.

    Args:
        picture: with its objects.
        value: of each class.
        overlap, ignored: see `write_masks`.

    Returns:
        int32 `[H, W]`, and a number of pixels.
    """
    height, width = picture.size
    found, covered = np.zeros((height, width), np.int32), np.zeros((height, width), bool)
    several = np.zeros((height, width), bool)
    shapes = [(shape, outline(shape, height, width)) for shape in picture.shapes]
    if overlap == "smallest":
        shapes.sort(key=lambda pair: -int(pair[1].sum()))
    for shape, inside in shapes:
        number = ignored if shape.ignored else value[shape.name]
        several |= inside & covered & (found != number)
        found[inside] = number
        covered |= inside
    return found, int(several.sum())


def outline(shape: Shape, height: int, width: int) -> np.ndarray:
    """The pixels of an object, bool `[height, width]`; parts of an outline are put together."""
    if shape.mask is not None:
        x, y, across, down = shape.mask.box
        found = np.zeros((height, width), bool)
        found[y : y + down, x : x + across] = shape.mask.pixels()
        return found
    image = Image.new("1", (width, height))
    drawer = ImageDraw.Draw(image)
    for polygon in shape.polygons:
        drawer.polygon(list(zip(polygon[::2], polygon[1::2], strict=True)), fill=1, outline=1)
    if not shape.polygons:
        left, top, right, bottom = (round(v) for v in shape.box)
        drawer.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), fill=1)
    return np.array(image)
