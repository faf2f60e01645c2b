"""A copy of an annotation file with what `vistrain check` refuses and a program can mend: ids, sizes, flags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from vistrain.data.coco.reader import SIZES
from vistrain.errors import DataError
from vistrain.metrics.coco_values import crowd_flag, is_id, is_number, shown


def repaired(
    content: Mapping[str, Any], size_of: Callable[[str], tuple[int, int]]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Annotations with integer ids that are used once, and images with sizes.

    Ids that are right stay. Text and floats that stand for an integer become it, where it is free; all else gets the
    next number. What a program cannot know stays as it is: which of two different images of one id is meant.

    Args:
        content: `images`, `annotations`, `categories` in COCO's format; not modified. What is not a list stays.
        size_of: height and width of the file of a name; DataError where it cannot be read.

    Returns:
        The copy, and of each kind of mending how often it was done; nothing where nothing was.
    """
    done: Counter[str] = Counter()
    made = dict(content)
    numbers: dict[str, dict[str, int]] = {}
    for section, same in (("images", "file_name"), ("categories", "name")):
        entries = content.get(section)
        if isinstance(entries, list):
            made[section], numbers[section] = _numbered(entries, section, same, done)
    if isinstance(made.get("images"), list):
        made["images"] = [_sized(image, size_of, done) for image in made["images"]]
    if isinstance(content.get("annotations"), list):
        made["annotations"] = _annotations(content["annotations"], numbers, done)
    return made, dict(done)


def _numbered(entries: list[Any], section: str, same: str, done: Counter[str]) -> tuple[list[Any], dict[str, int]]:
    """Entries with ids of their own, and of each spelling of an id the number that stands for it."""
    numbers: dict[str, int] = {}
    first: dict[str, Any] = {}
    kept = []
    for entry in entries:
        spelling = _spelling(entry.get("id")) if isinstance(entry, dict) and "id" in entry else None
        if spelling is not None and spelling in first and entry.get(same) == first[spelling].get(same):
            done[f"{section} listed twice, once now"] += 1
            continue
        if spelling is not None:
            first.setdefault(spelling, entry)
        kept.append(entry)
    used = {e["id"] for e in kept if isinstance(e, dict) and is_id(e.get("id"))}
    made = []
    for entry in kept:
        if not isinstance(entry, dict) or is_id(entry.get("id")):
            made.append(entry)
            if isinstance(entry, dict):
                numbers[_spelling(entry["id"])] = entry["id"]
            continue
        spelling = _spelling(entry.get("id"))
        number = _free(spelling, used)
        used.add(number)
        if "id" in entry:
            numbers[spelling] = number
        done[f"ids of {section} made integers"] += 1
        made.append({**entry, "id": number})
    return made, numbers


def _annotations(entries: list[Any], numbers: Mapping[str, Mapping[str, int]], done: Counter[str]) -> list[Any]:
    used: set[int] = set()
    known = {e["id"] for e in entries if isinstance(e, dict) and is_id(e.get("id"))}
    made = []
    for given in entries:
        if not isinstance(given, dict):
            made.append(given)
            continue
        entry = dict(given)
        if not is_id(entry.get("id")) or entry["id"] in used:
            entry["id"] = _free("", known)
            known.add(entry["id"])
            done["annotations numbered anew"] += 1
        used.add(entry["id"])
        for key, section in (("image_id", "images"), ("category_id", "categories")):
            number = numbers.get(section, {}).get(_spelling(entry.get(key)))
            if number is not None and not (is_id(entry.get(key)) and entry[key] == number):
                entry[key] = number
                done[f"{key}s made integers"] += 1
        flag = crowd_flag(entry.get("iscrowd"))
        if flag is not None and entry.get("iscrowd", 0) is not flag:
            entry["iscrowd"] = flag
            done["iscrowd made 0 or 1"] += 1
        made.append(entry)
    return made


def _sized(image: Any, size_of: Callable[[str], tuple[int, int]], done: Counter[str]) -> Any:
    if not isinstance(image, dict) or all(is_number(image.get(side)) and image[side] >= 1 for side in SIZES):
        return image
    try:
        height, width = size_of(str(image.get("file_name")))
    except DataError:  # said by the check of the file
        return image
    done["sizes read from the files"] += 1
    return {**image, "width": width, "height": height}


def _spelling(value: Any) -> str:
    """An id as text: 7, 7.0 and "7" are spelled alike."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value.strip() if isinstance(value, str) else shown(value)


def _free(spelling: str, used: set[int]) -> int:
    """The number that a spelling stands for, or the next one, if it is used."""
    try:
        number = int(spelling)
    except ValueError:
        number = 0
    return number if number > 0 and is_id(number) and number not in used else max(used, default=0) + 1
