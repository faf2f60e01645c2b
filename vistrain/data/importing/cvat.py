"""CVAT's own layout, "CVAT for images 1.1" (https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/).

Its other exports are read by the readers of their layouts: COCO, YOLO, Pascal VOC.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

from vistrain.data.importing.export import (
    Export,
    Labelled,
    Mask,
    Notes,
    Options,
    Shape,
    distinct,
    ellipse,
    flat,
    number,
    numbers,
    points_of,
    split_of,
    turned,
    whole_size,
)
from vistrain.data.importing.files import Pictures, read_xml, walk
from vistrain.errors import DataError

SHAPES = ("box", "polygon", "ellipse", "mask")
NO_AREA = ("points", "polyline", "skeleton", "cuboid", "tag")
REMEDY = "export again as 'CVAT for images 1.1', with its images"


def read_cvat(source: Path, options: Options) -> Export:
    """Reads `annotations.xml` and the pictures beside it; subsets are splits.

    Args:
        source: the file, or the folder that the archive was unpacked into.
        options: `images` counts.

    Raises:
        DataError: there is no such file, it is of a video or of something else, or there are no pictures.
    """
    file = source
    if source.is_dir():
        found = [path for path in walk(source) if path.suffix.lower() == ".xml"]
        named = [path for path in found if path.name == "annotations.xml"] or found
        if len(named) != 1:
            raise DataError(str(source), f"holds {len(named)} XML files, not one annotations.xml", REMEDY)
        file = named[0]
    root = read_xml(file)
    if root.tag != "annotations":
        raise DataError(str(file), f"its root is <{root.tag}>, not <annotations>", REMEDY)
    if root.find("track") is not None:
        raise DataError(str(file), "holds the tracks of a video, not pictures", REMEDY)
    notes = Notes()
    listed = [(label.findtext("name") or "").strip() for label in root.findall("meta//labels/label")]
    classes = distinct(list(dict.fromkeys(name for name in listed if name)), notes) or None
    pictures = Pictures(options.images or file.parent)
    kept = []
    for image in root.findall("image"):
        name, subset = image.get("name", ""), image.get("subset", "")
        try:
            path = pictures.find(f"{subset}/{name}", file.parent)
        except DataError as error:
            notes.add(f"picture left out: {error.problem}", name)
            continue
        size = whole_size(image.get("height"), image.get("width"))
        drawn = sorted(image, key=lambda item: number(item.get("z_order", "0")) or 0.0)  # later ones lie on top
        labelled = Labelled(path, split_of(subset) or subset, stated=size)
        shapes = [_shape(item, name, notes, labelled.damage) for item in drawn]
        labelled.shapes = [shape for shape in shapes if shape is not None]
        for label in sorted({shape.name for shape in labelled.shapes} - set(classes)) if classes else ():
            labelled.damage.add("object of a label that the file does not list", f"{label} in {name}")
        kept.append(labelled)
    return Export(kept, classes, notes)


def _shape(item: Element, picture: str, notes: Notes, damage: Notes) -> Shape | None:
    label, where = item.get("label", "").strip(), f"{item.get('label', '?')} in {picture}"
    if item.tag in NO_AREA:
        notes.add(f"{item.tag}, which is no object with an area; left out", where)
        return None
    if item.tag not in SHAPES:
        notes.add(f"<{item.tag}>, which is not known; left out", where)
        return None
    shape = _outline(item, label)
    if shape is None:
        damage.add(f"{item.tag} whose numbers cannot be read", where)
    return shape


def _mask(item: Element, label: str, values: tuple[float, ...]) -> Shape | None:
    """The pixels of a box, row by row, in runs of which the first is outside (`0, 3` begins inside)."""
    runs = numbers(item.get("rle", "").split(","))
    if runs is None or min(*values, *runs) < 0 or not all(v.is_integer() for v in (*values, *runs)):
        return None
    left, top, width, height = map(int, values)
    if sum(runs) != width * height:
        return None
    whole = tuple(map(int, runs))
    box = (float(left), float(top), float(left + width), float(top + height))
    return Shape(label, box, mask=Mask((left, top, width, height), whole))


def _outline(item: Element, label: str) -> Shape | None:
    if item.tag == "polygon":
        points = points_of([pair.split(",") for pair in item.get("points", "").split(";") if pair.strip()])
        return Shape.outlined(label, flat(points)) if points is not None and len(points) >= 3 else None
    keys = {"box": ("xtl", "ytl", "xbr", "ybr"), "ellipse": ("cx", "cy", "rx", "ry")}
    values = numbers([item.get(key) for key in keys.get(item.tag, ("left", "top", "width", "height"))])
    degrees = number(item.get("rotation", "0"))
    if values is None or degrees is None:
        return None
    if item.tag == "mask":
        return _mask(item, label, values)
    if item.tag == "ellipse":
        x, y, across, down = values
        return Shape.outlined(label, flat(turned(ellipse((x, y), across, down), (x, y), degrees)))
    left, top, right, bottom = values
    if degrees % 360 == 0:
        return Shape(label, (left, top, right, bottom))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return Shape.outlined(label, flat(turned(corners, ((left + right) / 2, (top + bottom) / 2), degrees)))
