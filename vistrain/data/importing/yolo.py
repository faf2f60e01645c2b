"""YOLO's layouts: a text file for each picture, a row for each object, sides as shares.

The rules of places are those of ultralytics (https://docs.ultralytics.com/datasets/detect/) and of Darknet, as CVAT,
Label Studio and Roboflow write them. Rows are `class cx cy w h`; with a polygon `class x1 y1 x2 y2 ...`; with key
points `class cx cy w h px py [visible] ...`, of which the box is taken; with a confidence `class cx cy w h confidence`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf

from vistrain.data.base.check import opened
from vistrain.data.base.class_names import refuse_names
from vistrain.data.importing.export import Export, Labelled, Notes, Options, Shape, distinct, numbers, split_of
from vistrain.data.importing.files import Pictures, is_picture, parts_of, read_words, walk
from vistrain.errors import DataError

KEYS = ("train", "val", "test")
NAME_FILES = ("classes.txt", "obj.names")
OUT_OF_RANGE = "object with coordinates far outside 0..1"
NO_LABELS = "picture without a label file, taken as one without objects"
Row = tuple[str, tuple[float, ...]]  # where, numbers


def read_yolo(source: Path, options: Options) -> Export:
    """Reads a data file (`data.yaml`, `obj.data`) and what it names, or a folder with a data file or class names.

    Args:
        source: the data file, or the folder around pictures and labels.
        options: `images`, `names` and `pixels` count.

    Raises:
        DataError: there is no such set, no class names, or no label file at all; of names that the user gives, one is
            empty or stands there twice. (What a tool wrote is told apart instead, see `distinct`.)
    """
    refuse_names(options.names, "--names")
    notes = Notes()
    data = _data_file(source) if source.is_dir() and not options.names else source
    if data.is_dir():
        splits, names, dimensions = _of_folder(data, options), _names_beside(data, options), None
    elif data.suffix == ".data":
        splits, names, dimensions = *_of_darknet(data, notes), None
    else:
        splits, names, dimensions = _of_yaml(data, notes)
    names = distinct(options.names or names, notes)
    pictures = [Labelled(path, split) for split, paths in splits.items() for path in paths]
    if not pictures:
        raise DataError(str(source), "names no pictures that are there")
    rows = _rows(pictures, source, notes)
    kinds = [_values(row, dimensions) for picture in pictures for row in rows.get(picture.path, [])]
    if not options.pixels:
        _refuse_pixels(source, kinds)
    for picture in pictures:
        of_it, damage = rows.get(picture.path, []), picture.damage
        shapes = [_shape(row, dimensions, names, options.pixels, damage) for row in of_it]
        picture.shapes = [shape for shape in shapes if shape is not None]
    return Export(pictures, names, notes, shares=not options.pixels, turned=True)


# -------------------------------------------------------------------- places


def _data_file(folder: Path) -> Path:
    """The data file of a folder, or the folder itself."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".yaml", ".yml", ".data"))
    named = [p for p in found if p.stem in ("data", "dataset", "obj")] or found
    return named[0] if len(named) == 1 else folder


def _names_beside(folder: Path, options: Options) -> list[str]:
    """Class names from `classes.txt` or `obj.names`, a name on each line."""
    file = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if file is None and not options.names:
        remedy = "give the data file, or names: --names cat dog"
        raise DataError(str(folder), f"no class names: neither a data file nor {' nor '.join(NAME_FILES)}", remedy)
    return [] if file is None else [line.strip() for line in read_words(file).strip().splitlines()]


def _of_folder(root: Path, options: Options) -> dict[str, list[Path]]:
    """All pictures below a folder; folders called train, valid, test say the split."""
    folder = options.images or root
    splits: dict[str, list[Path]] = {}
    for path in Pictures(folder).files:
        splits.setdefault(split_of(*path.relative_to(os.path.abspath(folder)).parts[:-1]), []).append(path)
    return splits


def _of_darknet(file: Path, notes: Notes) -> tuple[dict[str, list[Path]], list[str]]:
    """`obj.data`, as Darknet and CVAT write it: `key = value` lines."""
    pairs = (line.partition("=") for line in read_words(file).splitlines())
    content = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    names = _there(file.parent, content.get("names", "obj.names"))
    if names is None:
        raise DataError(str(file), f"its names file {content.get('names', 'obj.names')} is not there")
    splits = _split_pictures(file, {"val" if k == "valid" else k: v for k, v in content.items()}, file.parent, notes)
    return splits, [line.strip() for line in read_words(names).strip().splitlines()]


def _of_yaml(file: Path, notes: Notes) -> tuple[dict[str, list[Path]], list[str], tuple[int, int] | None]:
    """Pictures by split, class names, and number and dimensions of key points."""
    if not file.is_file():
        raise DataError(str(file), "no such file or folder")
    try:
        # Scalars stay the words that are written: `no`, `on` and `1e3` are names of classes, too.
        content: Any = yaml.load(read_words(file), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(str(file), f"not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(str(file), "holds no keys such as train and names", "is it a YOLO data file?")
    stated = str(content.get("path") or "")
    root = file.parent / os.path.expanduser(stated)
    if not root.is_dir():
        notes.add("`path` of the data file is not there, its own folder is taken", stated)
        root = file.parent
    if "val" not in content and "valid" in content:
        content["val"] = content["valid"]
    points = numbers(content.get("kpt_shape"))
    dimensions = None if points is None or len(points) != 2 else (int(points[0]), int(points[1]))
    return _split_pictures(file, content, root, notes), _names(file, content, notes), dimensions


def _names(file: Path, content: Mapping[str, Any], notes: Notes) -> list[str]:
    names, count = content.get("names"), numbers([content.get("nc")])
    if names is None and count is not None and 0 < count[0] <= 1e5:
        notes.add("no `names`: classes are called by their numbers", str(file.name))
        return [f"class_{i}" for i in range(int(count[0]))]
    if isinstance(names, dict):
        keys = numbers(list(names))
        if keys is None or sorted(keys) != list(range(len(keys))):
            raise DataError(str(file), f"class numbers {', '.join(map(str, names))} do not count from 0")
        names = [name for _, name in sorted(zip(keys, names.values(), strict=True), key=lambda pair: pair[0])]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(str(file), "has no list `names`", "a YOLO data file names its classes, from number 0 on")
    if count is not None and int(count[0]) != len(names):
        notes.add("`nc` is not the number of `names`, the names count", f"{int(count[0])} and {len(names)}")
    return names


def _split_pictures(file: Path, content: Mapping[str, Any], root: Path, notes: Notes) -> dict[str, list[Path]]:
    """Of each split the pictures that its folders and lists name."""
    splits: dict[str, list[Path]] = {}
    missing: list[str] = []
    for key in KEYS:
        sources = content.get(key) or []
        if key in content and not sources:
            notes.add("split without a folder or list, skipped", key)
        for source in sources if isinstance(sources, list) else [sources]:
            if not isinstance(source, str):
                raise DataError(f"{file}: {key}", f"{source!r} is no folder or list of pictures")
            place = _there(root, source) or _there(file.parent, source)
            if place is None:
                missing.append(f"{key}: {source}")
                notes.add("split whose folder or list is not there, skipped", f"{key} ({source})")
            else:
                splits.setdefault(key, []).extend(_pictures(place, notes))
    if not splits:
        problem = f"not there: {', '.join(missing)} (looked in {root})" if missing else "names no train, val or test"
        raise DataError(str(file), problem, "correct the paths in it, or its `path`")
    return {key: list(dict.fromkeys(paths)) for key, paths in splits.items()}


def _there(root: Path, written: str) -> Path | None:
    """A file or folder that a data file or list names, absolute (links are kept: labels are found by names of folders).

    Where it is not there, its first parts are left out one by one: Roboflow writes `../train/images` for `train/images`
    (as ultralytics knows), CVAT `data/obj_train_data/1.jpg`, and others whole paths of another computer.
    """
    direct = Path(os.path.abspath(root / os.path.expanduser(written.replace("\\", "/"))))
    if direct.exists():
        return direct
    parts = parts_of(written)
    ends = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((Path(os.path.abspath(path)) for path in ends if path.exists()), None)


def _pictures(place: Path, notes: Notes) -> list[Path]:
    """Those of a folder and the folders in it, or of a list."""
    if place.is_dir():
        return [path for path in walk(place) if is_picture(path)]
    found = []
    for line in filter(None, map(str.strip, read_words(place).splitlines())):
        path = _there(place.parent, line)
        if path is None:
            notes.add(f"picture of {place.name} that is not there, left out", line)
        else:
            found.append(path)
    return found


def _labels_of(picture: Path) -> list[Path]:
    """Where the labels of a picture may be: in `labels` for the last `images` of its path, else beside it."""
    parts = list(picture.parts)
    places = []
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
        places.append(Path(*parts).with_suffix(".txt"))
    return [*places, picture.with_suffix(".txt")]


# -------------------------------------------------------------------- rows


def _rows(pictures: list[Labelled], source: Path, notes: Notes) -> dict[Path, list[Row]]:
    """The rows of numbers of each picture that has labels; pictures whose labels cannot be read are taken out."""
    found: dict[Path, list[Row]] = {}
    broken: dict[Path, list[tuple[str, str]]] = {}
    seen, bad, without = set[Path](), set[Path](), []
    shared = Counter[Path]()
    unique = list(dict.fromkeys(picture.path for picture in pictures))
    for path, result in opened(unique, _read_labels, "reading labels"):
        if isinstance(result, DataError):
            notes.add(f"picture left out: its label file is {result.problem}", _place(path))
            bad.add(path)
            seen.update(_labels_of(path))
        elif result is None:
            without.append(path)
        else:
            label, lines = result
            seen.add(label)
            shared[label] += 1
            damage = Notes()
            found[path] = _numbers_of(label, lines, notes, damage)
            broken[path] = damage.items
    if not found and not bad:
        places = " or ".join(map(str, _labels_of(unique[0])))
        raise DataError(str(source), f"none of {len(unique)} pictures has a label file", f"looked for {places}")
    for label, count in shared.items():
        if count > 1:
            notes.add("label file of several pictures, of all of which it is taken", f"{_place(label)} ({count})")
    for path in without:
        notes.add(NO_LABELS, _place(path))
    for folder in sorted({label.parent for label in seen if "labels" in label.parts}):
        for extra in sorted(folder.glob("*.txt")):
            if extra not in seen and extra.name not in NAME_FILES:
                notes.add("label file without a picture, skipped", extra.name)
    pictures[:] = [picture for picture in pictures if picture.path not in bad]
    for picture in pictures:  # one may be in several splits
        picture.damage.items += broken.get(picture.path, [])
    return found


def _place(path: Path) -> str:
    """A file's name, with the folders that tell splits apart: one name may be in several."""
    return "/".join(path.parts[-3:])


def _read_labels(picture: Path) -> tuple[Path, list[str]] | None:
    label = next((path for path in _labels_of(picture) if path.is_file()), None)
    return None if label is None else (label, read_words(label).splitlines())


def _numbers_of(label: Path, lines: list[str], notes: Notes, damage: Notes) -> list[Row]:
    rows: dict[str, Row] = {}
    for count, line in enumerate(lines, 1):
        text, where = " ".join(line.split()), f"{_place(label)}, line {count}"
        values = numbers(text.split())
        if not text:
            continue
        if values is None:
            damage.add("row that is not of finite numbers", where)
        elif text in rows:
            notes.add("row that is there twice, taken once", where)
        else:
            rows[text] = (where, values)
    return list(rows.values())


def _values(row: Row, dimensions: tuple[int, int] | None) -> tuple[float, ...]:
    """The coordinates of the box (4) or polygon (6 and more) of a row; none where it is neither."""
    values, count = row[1][1:], len(row[1])
    if count < 5:
        return ()
    if dimensions is not None and count == 5 + dimensions[0] * dimensions[1]:
        return values[:4]
    flags = values[6::3]  # of key points x, y, visible: 0, 1 or 2
    has_flags = (count - 5) % 3 == 0 and set(flags) <= {0.0, 1.0, 2.0}
    if count in (5, 6) or (has_flags and (count % 2 == 0 or 2.0 in flags)):
        return values[:4]
    return values if count % 2 == 1 else ()


def _refuse_pixels(source: Path, rows: list[tuple[float, ...]]) -> None:
    """Raises a DataError where most rows can be no shares."""
    beyond = [row for row in rows if _is_beyond(row)]
    if beyond and 2 * len(beyond) > len(rows):
        problem = f"{len(beyond)} of {len(rows)} objects have coordinates such as {max(beyond[0]):g}, not shares 0..1"
        raise DataError(str(source), problem, "if they are pixels, add --pixels")


def _is_beyond(values: tuple[float, ...]) -> bool:
    return bool(values) and not (min(values) > -0.5 and max(values) < 1.5)


def _shape(row: Row, dimensions: tuple[int, int] | None, names: list[str], pixels: bool, damage: Notes) -> Shape | None:
    where, cells = row
    values = _values(row, dimensions)
    if not values:
        damage.add(f"row of {len(cells)} numbers, which is no box, polygon or key points", where)
    elif cells[0] != int(cells[0]) or not 0 <= cells[0] < len(names):
        damage.add(f"class {cells[0]:g}, but there is no name for it (classes: {', '.join(names)})", where)
    elif not pixels and _is_beyond(values):
        damage.add(OUT_OF_RANGE, where)
    elif len(values) == 4:
        x, y, w, h = values
        return Shape(names[int(cells[0])], (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    else:
        return Shape.outlined(names[int(cells[0])], values)
    return None
