"""Cityscapes' polygons as label files: drawn one over the other, as cityscapesScripts draws them.

Official code: github.com/mcordts/cityscapesScripts, MIT (preparation/json2labelImg.py, helpers/labels.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vistrain.data.base.images import refuse_large
from vistrain.data.base.storage import read_json
from vistrain.errors import DataError

# Label ids by name, those that are not evaluated, too.
LABEL_IDS = {
    "unlabeled": 0, "ego vehicle": 1, "rectification border": 2, "out of roi": 3, "static": 4, "dynamic": 5,
    "ground": 6, "road": 7, "sidewalk": 8, "parking": 9, "rail track": 10, "building": 11, "wall": 12, "fence": 13,
    "guard rail": 14, "bridge": 15, "tunnel": 16, "pole": 17, "polegroup": 18, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28,
    "caravan": 29, "trailer": 30, "train": 31, "motorcycle": 32, "bicycle": 33, "license plate": -1,
}  # fmt: skip


def read_cityscapes_polygons(path: str | Path) -> Image.Image:
    """The label ids that a `*_gtFine_polygons.json` says, 8 bits grey; 0 where nothing is drawn.

    Later objects lie over earlier ones. A group (`cargroup`) is its class; what is deleted, and licence plates, are not
    drawn.

    Raises:
        DataError: it is no such file, or names a class that Cityscapes does not have.
    """
    content = read_json(Path(path))
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        raise DataError(str(path), "has no list `objects`", "is it a file of Cityscapes' polygons?")
    width, height = content.get("imgWidth"), content.get("imgHeight")
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise DataError(str(path), f"imgWidth and imgHeight are {width!r} and {height!r}", "two numbers of pixels")
    refuse_large(path, height, width)
    image = Image.new("L", (width, height), LABEL_IDS["unlabeled"])
    drawer = ImageDraw.Draw(image)
    for position, entry in enumerate(content["objects"]):
        label, points = _object(path, position, entry)
        if label >= 0 and len(points) > 1 and not entry.get("deleted"):
            drawer.polygon(points, fill=label)
    return image


def _object(path: str | Path, position: int, entry: Any) -> tuple[int, list[tuple[float, float]]]:
    name = entry.get("label") if isinstance(entry, dict) else None
    known = name if name in LABEL_IDS else str(name).removesuffix("group")
    if known not in LABEL_IDS:
        raise DataError(str(path), f"object {position} is called {name!r}, which is no class of Cityscapes")
    try:
        return LABEL_IDS[known], [(float(x), float(y)) for x, y in entry["polygon"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(str(path), f"object {position} ({name}) has no polygon of pairs of numbers") from error
