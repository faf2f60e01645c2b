"""The one reader of panoptic annotations in COCO's layout (https://cocodataset.org/#format-data): a JSON file, and for
each image a PNG whose colours are numbers of segments, R + 256 G + 65536 B; 0 is void.

| finding                                           | here                                                      |
|---------------------------------------------------|-----------------------------------------------------------|
| no images, or no annotations                      | refused                                                   |
| repeated id of an image, category, segment        | refused                                                   |
| unlisted category id, `isthing` not 0 or 1        | refused                                                   |
| `file_name` that is absolute or climbs with `..`  | refused                                                   |
| annotation of an image that is not listed         | skipped                                                   |
| image without an annotation                       | left out (detectron2, panopticapi)                        |
| crowd                                             | no target (Mask2Former); excused in evaluation            |
| segment that the PNG lacks                        | an empty target; missed in evaluation (panopticapi)       |
| pixels whose number the JSON lacks                | void                                                      |
| PNG of another size than the image                | refused                                                   |
| width or height that no image has                 | refused (where they are listed; they are not needed)      |
| width or height that the PNG does not have        | the image is refused (where they are listed)              |
| id that is text here and an integer there         | refused                                                   |

`vistrain check` counts them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from vistrain.data.base.storage import read_json
from vistrain.data.coco.reader import SIZES, refuse_size
from vistrain.data.segmentation.label_files import open_label_file
from vistrain.errors import DataError
from vistrain.metrics.coco_values import crowd_flag, is_id, shown

MOST = 1 << 24  # numbers of segments are below it
ALL = "`vistrain check` lists all"
BARE = "image without an annotation, left out"
NO_IMAGE = "annotation of an image that is not listed, skipped"


@dataclass(frozen=True)
class Category:
    """A class.

    Attributes:
        id: in the file.
        name: of the class.
        thing: whether it is counted one by one.
        color: 0..255, or None.
    """

    id: int
    name: str
    thing: bool
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Segments:
    """What a file lists in a few arrays, which forked workers share.

    Attributes:
        categories: in the file's order.
        ids: of the I images, as the file has them: integers or text.
        images: their file names, as the file has them, with `/`.
        masks: those of the PNGs.
        first: `[I + 1]`: the segments of image i are `first[i]:first[i + 1]`.
        numbers, classes: `[S]` int64: the number of each segment in the PNG, and its category id.
        crowds: `[S]` bool.
        sizes: `[I, 2]` int64: height and width that are listed of each image, 0 where they are not.
        skipped: finding -> the first few examples, and how many there are.
    """

    categories: tuple[Category, ...]
    ids: list[int | str]
    images: list[str]
    masks: list[str]
    first: np.ndarray
    numbers: np.ndarray
    classes: np.ndarray
    crowds: np.ndarray
    sizes: np.ndarray
    skipped: Mapping[str, tuple[list[str], int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, category ids and crowds of an image's segments, `[N]` each."""
        mine = slice(int(self.first[index]), int(self.first[index + 1]))
        return self.numbers[mine], self.classes[mine], self.crowds[mine]

    def refuse_other_size(self, index: int, path: Path, size: tuple[int, ...]) -> None:
        """Refuses an image whose PNG, `path`, has another height and width, `size`, than the file lists.

        Raises:
            DataError: it has.
        """
        height, width = self.sizes[index].tolist()
        if (height or size[0], width or size[1]) != size[:2]:
            listed = f"{width or size[1]}x{height or size[0]}"
            problem = f"is {size[1]}x{size[0]} pixels, its JSON says {listed} of image {self.ids[index]}"
            raise DataError(str(path), problem, "correct width and height in the JSON; or is it another image's?")


def read_panoptic(path: Path) -> Segments:
    """Reads an annotation file and checks every entry.

    Raises:
        DataError: the file is missing, no JSON, or holds what the table at the top of this module calls refused.
    """
    listed, faults = examined(read_json(path, what="panoptic annotation file"), path)
    if faults:
        first = faults[0]
        more = f" (and {len(faults) - 1} more faults; {ALL})" if len(faults) > 1 else ""
        raise DataError(first.where, first.problem + more, first.remedy)
    return listed


def examined(content: Any, path: Path, truth: bool = True) -> tuple[Segments, list[DataError]]:
    """What a panoptic file lists, and all that is refused of it; entries that are refused are left out.

    Args:
        content: of the file.
        path: for messages.
        truth: whether it lists images; predictions need not, and their annotations' names are those of the PNGs.
    """
    faults: list[DataError] = []
    none = np.zeros(0, np.int64)
    nothing = Segments((), [], [], [], np.zeros(1, np.int64), none, none, none.astype(bool), none.reshape(0, 2))
    for section in ("annotations", "categories", *(("images",) if truth else ())):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            remedy = "a panoptic file has images, annotations with segments_info, and categories"
            faults.append(DataError(str(path), f"has no list {section!r}", remedy))
    if faults:
        return nothing, faults
    categories = _categories(content["categories"], path, faults)
    known = {category.id for category in categories}
    images = _images(content["images"], path, faults) if truth else None
    spelt = {str(key): key for key in images or ()}
    rows: dict[int | str, tuple[str, list[tuple[int, int, bool]]]] = {}
    skipped: dict[str, tuple[list[str], int]] = {}
    for position, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{position}]"
        try:
            key, name = _named(entry, "image_id", where)
            if key in rows:
                raise DataError(where, f"image {key} is annotated twice", "keep one of them")
            if images and key not in images and (meant := spelt.get(str(key))) is not None:
                kinds = ("text", "an integer") if isinstance(key, str) else ("an integer", "text")
                problem = f"image_id {shown(key)} is {kinds[0]}, the image's id {shown(meant)} is {kinds[1]}"
                raise DataError(where, problem, "write ids as integers in both")
            segments = _segments(entry.get("segments_info"), known, f"{path}: image {key}")
        except DataError as fault:
            faults.append(fault)
            continue
        if images is not None and key not in images:
            _skip(skipped, NO_IMAGE, str(key))
        else:
            rows[key] = name, segments
    for key, image in (images or {}).items():
        if key not in rows:
            _skip(skipped, BARE, image[0])
    if not rows and not faults:
        faults.append(DataError(str(path), "annotates no image", "is it the right file?"))
    flat = np.array([s for _, segments in rows.values() for s in segments], np.int64).reshape(-1, 3)
    first = np.cumsum([0, *(len(segments) for _, segments in rows.values())])
    entries = [(images or {}).get(key, (name, 0, 0)) for key, (name, _) in rows.items()]
    names = [name for name, *_ in entries]
    sizes = np.array([size for _, *size in entries], np.int64).reshape(-1, 2)
    masks = [name for name, _ in rows.values()]
    columns = flat[:, 0], flat[:, 1], flat[:, 2].astype(bool)
    return Segments(categories, list(rows), names, masks, first, *columns, sizes, skipped), faults


def _skip(skipped: dict[str, tuple[list[str], int]], finding: str, example: str) -> None:
    examples, count = skipped.get(finding, ([], 0))
    skipped[finding] = [*examples, example][:3], count + 1


def _categories(entries: list[Any], path: Path, faults: list[DataError]) -> tuple[Category, ...]:
    found: dict[int, Category] = {}
    for position, entry in enumerate(entries):
        where = f"{path}: categories[{position}]"
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            faults.append(DataError(where, f"is {shown(entry)}", "id, name and isthing are needed"))
        elif entry["id"] in found:
            faults.append(DataError(where, f"category id {entry['id']} is used twice", "number the categories anew"))
        elif entry.get("isthing") not in (0, 1):
            problem = f"isthing of {entry['name']!r} is {shown(entry.get('isthing'))}"
            faults.append(DataError(where, problem, "1 for what is counted one by one, 0 for stuff"))
        else:
            color = entry.get("color")
            good = isinstance(color, list) and len(color) == 3 and all(c in range(256) for c in color)
            rgb = (color[0], color[1], color[2]) if good and isinstance(color, list) else None
            found[entry["id"]] = Category(entry["id"], entry["name"], bool(entry["isthing"]), rgb)
    if not entries:
        faults.append(DataError(str(path), "lists no categories"))
    return tuple(found.values())


def _images(entries: list[Any], path: Path, faults: list[DataError]) -> dict[int | str, tuple[str, int, int]]:
    """File name, height and width (0: not listed) of each image."""
    found: dict[int | str, tuple[str, int, int]] = {}
    for position, entry in enumerate(entries):
        where = f"{path}: images[{position}]"
        try:
            key, name = _named(entry, "id", where)
            if key in found:
                raise DataError(where, f"image id {key} is used twice", "number the images anew")
            refuse_size(f"{path}: image {key}", entry, [side for side in SIZES if side in entry])
            found[key] = name, int(entry.get("height", 0)), int(entry.get("width", 0))
        except DataError as fault:
            faults.append(fault)
    if not entries:
        faults.append(DataError(str(path), "lists no images", "is it the right file?"))
    return found


def _named(entry: Any, key: str, where: str) -> tuple[int | str, str]:
    """Id and file name of an entry.

    Raises:
        DataError: it has none, or the name leads out of its folder.
    """
    if not isinstance(entry, dict):
        raise DataError(where, f"is {shown(entry)}, not an object")
    identity: Any = entry.get(key)
    name = entry.get("file_name")
    if not is_id(identity) and not (isinstance(identity, str) and identity):
        raise DataError(where, f"{key!r} is {shown(identity)}, neither an integer nor a name")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(where, f"file_name is {shown(name)}, not a name")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        raise DataError(where, f"file_name {shown(name)} points outside its folder", "names must be relative to it")
    return identity, name


def _segments(entries: Any, known: set[int], where: str) -> list[tuple[int, int, bool]]:
    """Number, category id and crowd of each segment.

    Raises:
        DataError: an entry is refused.
    """
    if not isinstance(entries, list):
        raise DataError(where, f"segments_info is {shown(entries)}, not a list")
    found: dict[int, tuple[int, int, bool]] = {}
    for entry in entries:
        number: Any = entry.get("id") if isinstance(entry, dict) else None
        if not is_id(number) or not 0 < number < MOST:
            raise DataError(where, f"a segment is {shown(entry)}", f"its id must be 1 to {MOST - 1}, as the PNG has it")
        if number in found:
            raise DataError(where, f"the segment {number} is listed twice", "each colour of the PNG is one segment")
        category = entry.get("category_id")
        if not is_id(category) or category not in known:
            problem = f"category_id {shown(category)} of the segment {number} is not listed under categories"
            raise DataError(where, problem, "list it, or correct it")
        crowd = crowd_flag(entry.get("iscrowd"))
        if crowd is None:
            raise DataError(where, f"iscrowd of the segment {number} is {shown(entry['iscrowd'])}, neither 0 nor 1")
        found[number] = number, category, bool(crowd)
    return list(found.values())


def read_numbers(path: str | Path) -> np.ndarray:
    """The number of each pixel's segment in a panoptic PNG, int32 `[H, W]`; 0 is void.

    Raises:
        DataError: the file is missing or damaged, or holds more than 8 bits a channel.
    """
    image = open_label_file(path)
    if image.mode not in ("RGB", "RGBA", "P", "L", "1"):  # a program may have packed few colours more tightly
        raise DataError(str(path), f"is no panoptic PNG: its pixels are {image.mode}", "colours of 8 bits are needed")
    colours = np.array(image.convert("RGB"), np.int32)
    return colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16


def write_numbers(path: Path, numbers: np.ndarray) -> None:
    """Write the numbers of segments, integers below 2^24 `[H, W]`, as a panoptic PNG."""
    planes = [(numbers >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    Image.fromarray(np.stack(planes, -1)).save(path, format="PNG")


def segment_map(numbers: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, int]:
    """A map of positions: i + 1 where a pixel belongs to the i-th segment that is listed, else 0.

    Args:
        numbers: `[H, W]`, see `read_numbers`.
        listed: `[N]`, no two the same.

    Returns:
        uint8 `[H, W]` (int16, int32 for many segments), and how many pixels have a number that is not listed.
    """
    kind = np.uint8 if len(listed) < 255 else np.int16 if len(listed) < 32767 else np.int32
    order = np.argsort(listed)
    ordered = np.concatenate([listed[order], [-1]]).astype(numbers.dtype)
    place = np.searchsorted(ordered[:-1], numbers)
    known = ordered[place] == numbers
    found = np.where(known, np.concatenate([order + 1, [0]])[place], 0).astype(kind)
    return found, int((~known & (numbers != 0)).sum())
