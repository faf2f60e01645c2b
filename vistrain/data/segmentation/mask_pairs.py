"""Which label file belongs to which image: any folders, told by names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vistrain.data.base.images import SUFFIXES
from vistrain.data.base.storage import files_below, is_folder, read_text
from vistrain.data.segmentation import label_files
from vistrain.errors import DataError

NAMED = 3  # files that an error lists


@dataclass(frozen=True)
class MaskSplit:
    """Where a split's images and masks are; a pair has one name below its folder, but for suffixes.

    Args:
        images, masks: folders, relative to the root; may be one.
        image_suffix, mask_suffix: what names end in before the dot (`_leftImg8bit`, `_gtFine_labelTrainIds`); other
            files of the folders are left out. With `_polygons` at its end masks are Cityscapes' JSON files.
        names: a text file, relative to the root, of which the first word of each line is the name of a pair (or a path
            that ends in it); null takes all.
    """

    images: str
    masks: str
    image_suffix: str = ""
    mask_suffix: str = ""
    names: str | None = None


@dataclass(frozen=True)
class MaskPair:
    """An image and its label file.

    Attributes:
        name: below the folder, without suffixes.
        image, mask: the files.
    """

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Pairing:
    """What a split's folders hold.

    Attributes:
        pairs: sorted by name.
        bare: images without a mask.
        lonely: masks without an image.
    """

    pairs: tuple[MaskPair, ...]
    bare: tuple[Path, ...]
    lonely: tuple[Path, ...]

    def refuse_bare(self) -> None:
        """Refuses a split of which images have no mask.

        Raises:
            DataError: naming the first.
        """
        if self.bare:
            names = ", ".join(path.name for path in self.bare[:NAMED])
            more = f" and {len(self.bare) - NAMED} more" if len(self.bare) > NAMED else ""
            problem = f"no masks for {names}{more}"
            remedy = "label or remove them, give mask_suffix, or data.unpaired=skip leaves them out"
            raise DataError(str(self.bare[0].parent), problem, remedy)


def find_pairs(root: Path, split: MaskSplit, suffixes: tuple[str, ...] = SUFFIXES) -> Pairing:
    """The pairs of a split.

    Args:
        root: what the split's folders are relative to.
        split: where they are.
        suffixes: of images.

    Raises:
        DataError: a folder is missing or empty, two files have one name, or a listed name has no image.
    """
    images, masks = root / split.images, root / split.masks
    of_labels = (label_files.POLYGONS,) if split.mask_suffix.endswith("_polygons") else label_files.SUFFIXES
    labels = named_files(masks, of_labels, split.mask_suffix, "masks")
    if not labels and (jpegs := named_files(masks, (".jpg", ".jpeg"), split.mask_suffix, "masks")):
        problem = "masks are JPEG, which changes the values of labels"
        raise DataError(str(next(iter(jpegs.values()))), problem, "export them again, as PNG")
    taken = set(labels.values()) if images == masks else set()
    pictures = named_files(images, suffixes, split.image_suffix, "images", taken)
    if split.names is not None:
        pictures = {name: pictures[name] for name in _listed(root / split.names, pictures, suffixes)}
        labels = {name: path for name, path in labels.items() if name in pictures}
    for found, folder, suffix, what in (
        (pictures, images, split.image_suffix, "images"),
        (labels, masks, split.mask_suffix, "masks"),
    ):
        if not found:
            ending = f" whose names end in {suffix!r}" if suffix else ""
            raise DataError(str(folder), f"holds no {what}{ending}", f"correct the folder, or {what[:-1]}_suffix")
    pairs = tuple(MaskPair(n, path, labels[n]) for n, path in sorted(pictures.items()) if n in labels)
    bare = tuple(path for n, path in sorted(pictures.items()) if n not in labels)
    lonely = tuple(path for n, path in sorted(labels.items()) if n not in pictures)
    if not pairs:
        problem = f"none of its {len(bare)} images has a mask in {masks}, such as {bare[0].name}"
        remedy = f"masks there are called like {lonely[0].name}: give mask_suffix, or image_suffix"
        raise DataError(str(images), problem, remedy)
    return Pairing(pairs, bare, lonely)


def named_files(
    folder: Path, suffixes: tuple[str, ...], ending: str, what: str, taken: set[Path] | None = None
) -> dict[str, Path]:
    """The files of a folder and those below it by name."""
    if not is_folder(folder):
        raise DataError(str(folder), f"no such folder of {what}", "correct data.root or the split's folders")
    found: dict[str, Path] = {}
    for path in (folder / name for name in files_below(folder)):
        if path.suffix.lower() not in suffixes or not path.stem.endswith(ending) or path in (taken or ()):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        if name in found:
            raise DataError(str(path), f"is called as {found[name].name} is", "keep one of them")
        found[name] = path
    return found


def _listed(path: Path, pictures: dict[str, Path], suffixes: tuple[str, ...]) -> list[str]:
    """The pictures that a file lists."""
    lines = [line.split()[0] for line in read_text(path, what="list of names").splitlines() if line.strip()]
    if not lines:
        raise DataError(str(path), "lists no names", "write a line for each image, or leave names out")
    found = []
    for line in lines:
        parts = Path(line).with_suffix("").parts if Path(line).suffix.lower() in suffixes else Path(line).parts
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        name = next((end for end in ends if end in pictures), None)
        if name is None:
            raise DataError(str(path), f"lists {line!r}, which is no image of the split", "correct the list")
        found.append(name)
    return list(dict.fromkeys(found))
