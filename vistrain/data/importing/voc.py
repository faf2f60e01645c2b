"""Pascal VOC's layout (http://host.robots.ox.ac.uk/pascal/VOC/): an XML file for each picture.

VOC's coordinates are pixels that count from 1 and include the last one: a box over the whole of a 500 pixel wide image
has xmin 1 and xmax 500, and becomes x 0 and width 500 (as detectron2 reads it). Most other tools that write the layout
mean edges counted from 0; where an xmin or ymin is below 1, they do.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from vistrain.data.base.check import opened
from vistrain.data.importing.export import Export, Labelled, Notes, Options, Shape, numbers, split_of, whole_size
from vistrain.data.importing.files import Pictures, read_words, read_xml, walk
from vistrain.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(source: Path, options: Options) -> Export:
    """Reads `Annotations/*.xml` with the lists of `ImageSets/Main`; without lists, all XML files below a folder.

    Without lists, folders called train, valid, test say the split (Roboflow), and pictures may lie beside the XML
    (LabelImg) or anywhere below the folder (Label Studio).

    Args:
        source: the folder, or one around a single such set (`VOCdevkit`).
        options: `images`, `count_from` and `difficult` count.

    Raises:
        DataError: there is no such set.
    """
    if not source.is_dir():
        raise DataError(str(source), "no such folder", "give the one that holds the XML files, or Annotations")
    notes = Notes()
    root = _root(source)
    pictures = Pictures(options.images or (root / "JPEGImages" if (root / "JPEGImages").is_dir() else root))
    lists = root / "ImageSets" / "Main"
    files = _listed(root, lists, notes) if lists.is_dir() else _all(root)
    kept: list[Labelled] = []
    for (split, path), result in opened(files, lambda item: _annotation(item[1]), "reading annotations"):
        if isinstance(result, DataError):
            notes.add(f"annotation file left out with its picture: {result.problem}", path.name)
            continue
        try:
            picture = _picture(pictures, path, result)
        except DataError as error:
            notes.add(f"annotation left out: {error.problem}", path.name)
            continue
        size = whole_size(result.findtext("size/height"), result.findtext("size/width"))
        labelled = Labelled(picture, split, stated=size)
        found = [_shape(item, path, options, notes, labelled.damage) for item in result.findall("object")]
        labelled.shapes = [shape for shape in found if shape is not None]
        kept.append(labelled)
    if not lists.is_dir():
        known, stems = {labelled.path for labelled in kept}, {path.stem for _, path in files}
        for extra in pictures.files:
            if extra not in known and extra.stem not in stems:
                notes.add("picture without an annotation file, left out", extra.name)
    _count_from(kept, options, notes)
    return Export(kept, None, notes)


def _root(source: Path) -> Path:
    """The folder itself, or the one set below it."""
    if (source / "Annotations").is_dir():
        return source
    inner = [p.parent for depth in ("*", "*/*") for p in sorted(source.glob(f"{depth}/ImageSets")) if p.is_dir()]
    if len(inner) > 1:
        names = ", ".join(str(path.relative_to(source)) for path in inner)
        raise DataError(str(source), f"holds {len(inner)} sets: {names}", "give one of them")
    return inner[0] if inner else source


def _listed(root: Path, lists: Path, notes: Notes) -> list[tuple[str, Path]]:
    """(split, XML file) of what the lists name; lists of single classes (`cat_train.txt`) do not count."""
    found: list[tuple[str, Path]] = []
    texts = {path.stem: read_words(path).splitlines() for path in sorted(lists.glob("*.txt"))}
    whole = {name: rows for name, rows in texts.items() if not _is_of_a_class(name, rows)}
    if not whole:
        raise DataError(str(lists), "holds no lists of pictures (*.txt)")
    for name, rows in whole.items():
        split = split_of(name) or ("" if name == "default" else name)  # CVAT calls a subset without a name so
        names = [row.strip() for row in rows if row.strip()]
        if not names:
            notes.add("list that names no picture", f"{name}.txt")
        for stem, count in Counter(names).items():
            if count > 1:
                notes.add(f"listed more than once in {name}.txt, taken once", stem)
            found.append((split, root / "Annotations" / f"{_stem(root, stem)}.xml"))
    return found


def _is_of_a_class(name: str, rows: list[str]) -> bool:
    first = rows[0].split() if rows else []
    return len(first) == 2 and first[1] in ("-1", "0", "1") and not (split_of(name) or name in ("trainval", "default"))


def _stem(root: Path, row: str) -> str:
    """What a row of a list names: names may hold blanks, and some tools write a suffix, folders or a second column."""
    folder = root / "Annotations"
    words = [row, row.rsplit(None, 1)[0], row.split()[0]]
    words += [word.rpartition(".")[0] for word in words]
    words += [word.replace("\\", "/").rpartition("/")[2] for word in words]
    return next((word for word in words if word and (folder / f"{word}.xml").is_file()), row)


def _all(root: Path) -> list[tuple[str, Path]]:
    """(split, XML file) of all below a folder."""
    files = [path for path in walk(root) if path.suffix.lower() == ".xml"]
    if not files:
        raise DataError(str(root), "holds no XML files", "is it a Pascal VOC export?")
    return [(split_of(*path.relative_to(root).parts[:-1]), path) for path in files]


def _annotation(path: Path) -> ElementTree.Element:
    if not path.is_file():
        raise DataError(str(path), "no such annotation file")
    root = read_xml(path)
    if root.tag != "annotation":
        raise DataError(str(path), f"its root is <{root.tag}>, not <annotation>")
    return root


def _picture(pictures: Pictures, path: Path, annotation: ElementTree.Element) -> Path:
    """By the XML file's own name; `filename` in it is often stale, and only asked where that finds nothing."""
    try:
        return pictures.find(path.stem, path.parent)
    except DataError:
        stated = (annotation.findtext("filename") or "").strip()
        if not stated:
            raise
        return pictures.find(stated, path.parent)


def _shape(item: ElementTree.Element, path: Path, options: Options, notes: Notes, damage: Notes) -> Shape | None:
    name = (item.findtext("name") or "").strip()
    corners = numbers([item.findtext(f"bndbox/{key}") for key in CORNERS])
    if corners is None:
        damage.add("object whose bndbox is not four numbers", f"{name or '?'} in {path.name}")
        return None
    difficult = (item.findtext("difficult") or "0").strip().lower() in ("1", "true")
    if difficult and options.difficult == "drop":
        notes.add("object marked as difficult, dropped", f"{name} in {path.name}")
        return None
    left, top, right, bottom = corners
    return Shape(name, (left, top, right, bottom), ignored=difficult and options.difficult == "ignore")


def _count_from(pictures: list[Labelled], options: Options, notes: Notes) -> None:
    """Brings corners to edges counted from 0."""
    first = options.count_from
    if first is None:
        outside = [p.path.name for p in pictures if any(min(s.box[:2]) < 1 for s in p.shapes)]
        first = 0 if outside else 1
        if outside:
            kind = "picture with an xmin or ymin below 1: coordinates are read as edges from 0 (see --count-from)"
            for name in outside:
                notes.add(kind, name)
        elif count := sum(len(picture.shapes) for picture in pictures):
            kind = "coordinates are read as VOC's, pixels from 1 (--count-from 0 where they are edges from 0)"
            notes.add(kind, f"all {count} objects")
    if first == 1:
        for picture in pictures:
            picture.shapes = [
                Shape(s.name, (s.box[0] - 1, s.box[1] - 1, s.box[2], s.box[3]), s.polygons, s.ignored)
                for s in picture.shapes
            ]
