"""ImageNet-1k (ILSVRC 2012) in its usual layouts."""

from __future__ import annotations

import csv
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from vistrain.data.base.module import SplitName, data_root
from vistrain.data.base.storage import is_folder, read_text, refuse_missing
from vistrain.data.classification.class_folders import class_folders
from vistrain.data.classification.module import ClassificationData
from vistrain.data.classification.sources import Files, Split, image_files
from vistrain.errors import DataError
from vistrain.structures import LabelSpace

WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
# Where the truth of an unsorted `val/` is looked for, below the set's folder; `*` stands for folders of any name.
TRUTH_FILES = ("val.txt", "val_map.txt", "LOC_val_solution.csv", f"data/{DEVKIT}", f"*/data/{DEVKIT}", DEVKIT)


class ImageNet(ClassificationData):
    """ImageNet-1k: 1,281,167 training and 50,000 validation images of 1,000 classes.

    `train/<wnid>/*.JPEG`, and `val/` sorted into the same folders; or all validation images in `val/` and their classes
    in a file: `val.txt` (a line `name class`, the class as a number from 0 or a wnid), Kaggle's `LOC_val_solution.csv`,
    or the development kit's ground truth (whose own numbering its `meta.mat` explains). `Data/CLS-LOC/` (Kaggle) is
    found, too. The classes are known without any file. Images are read as they are stored, whatever their EXIF
    orientation says, since the published numbers were measured so.

    Args:
        root: folder that holds `imagenet/train` and `imagenet/val` (or is that `imagenet` itself).
        batch_size: see `DataModule`.
        base: see `ClassificationData`.
    """

    def __init__(self, root: str | None = None, batch_size: int = 1024, **base: Any) -> None:
        parent = data_root(root)
        nested = (parent, parent / "imagenet", parent / "Data" / "CLS-LOC", parent / "imagenet" / "Data" / "CLS-LOC")
        folder = next((p for p in nested if is_folder(p / "train") or is_folder(p / "val")), parent / "imagenet")
        super().__init__(root=str(folder), batch_size=batch_size, **base)

    @property
    def labels(self) -> LabelSpace:
        """The 1,000 classes in the order of their wnids; needs no file."""
        return LabelSpace(tuple(name for _, name in _classes()), tuple(range(len(_classes()))))

    def remedy(self, split: SplitName) -> str:
        """What to download, and where to put it."""
        return (
            "download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org (an account is "
            f"needed) and unpack them to {self.root}/train/<wnid>/ and {self.root}/val/ (see data/README.md)"
        )

    def load(self, split: SplitName) -> Split:
        """The images of a split.

        Raises:
            DataError: something is missing, or a folder or a line is not ImageNet's.
        """
        folder = self.root / ("train" if split == "train" else "val")
        if not is_folder(folder):
            raise DataError(str(folder), "no such folder", self.remedy(split))
        channel = {wnid: i for i, (wnid, _) in enumerate(_classes())}
        unsorted = [name for name in image_files(folder) if "/" not in name] if split != "train" else []
        if unsorted:
            return self._listed(folder, unsorted, channel)
        files: list[str] = []
        labels: list[int] = []
        there = class_folders(folder, self.remedy(split))
        for name in there:
            if name not in channel:
                problem = f"{name!r} is none of ImageNet's 1000 classes"
                raise DataError(str(folder / name), problem, "for other classes use data.ImageFolder")
            found = image_files(folder / name)
            if not found:
                raise DataError(str(folder / name), "has no image in it", "unpack the class's tar file into it")
            files += [f"{name}/{file}" for file in found]
            labels += [channel[name]] * len(found)
        if len(there) < len(channel):
            missing = sorted(channel.keys() - set(there))
            problem = f"{len(missing)} of 1000 classes are missing (first: {missing[0]})"
            raise DataError(str(folder), problem, "complete it; for a part of ImageNet use data.ImageFolder")
        return Split.single(Files(folder, files, upright=False), labels)  # as all published numbers were measured

    def _listed(self, folder: Path, files: list[str], channel: dict[str, int]) -> Split:
        """A `val/` without folders, and the file that says what is what."""
        places = (self.root, self.root.parent, folder, self.root.parent.parent)
        truth = next((p for place in places for name in TRUTH_FILES for p in sorted(place.glob(name))), None)
        if truth is None:
            problem = "its images are not in folders, and there is no file with their classes"
            raise DataError(str(folder), problem, f"put val.txt, LOC_val_solution.csv or {DEVKIT} into {self.root}")
        by_stem = {Path(name).stem: name for name in files}
        classes = _devkit(truth, channel) if truth.name == DEVKIT else _lines(truth, channel)
        missing = [stem for stem in by_stem if stem not in classes]
        if missing:
            problem = f"has no class for {len(missing)} of {len(files)} images (first: {missing[0]})"
            raise DataError(str(truth), problem, f"it does not match {folder}")
        named = [by_stem.get(stem, f"{stem}.JPEG") for stem in classes]
        refuse_missing(named, folder, truth, "complete the folder, or correct the list")
        stems = sorted(by_stem)
        names = [by_stem[s] for s in stems]
        return Split.single(Files(folder, names, upright=False), np.array([classes[s] for s in stems]))


def _lines(path: Path, channel: dict[str, int]) -> dict[str, int]:
    """Stem -> class, of lines `name class` or Kaggle's `name,wnid x y x y`."""
    found: dict[str, int] = {}
    rows = csv.reader(read_text(path).replace("\t", " ").splitlines(), delimiter="," if path.suffix == ".csv" else " ")
    for number, row in enumerate(rows, start=1):
        cells = [cell for cell in row if cell]
        if not cells or (number == 1 and cells[0] == "ImageId"):
            continue
        name = cells[1].split()[0] if len(cells) > 1 and cells[1].split() else ""
        label = channel.get(name, int(name) if name.isdigit() else -1)
        if not 0 <= label < len(channel):
            raise DataError(f"{path}:{number}", f"{name!r} is neither a wnid of ImageNet nor a number from 0 to 999")
        found[Path(cells[0]).stem] = label
    return found


def _devkit(path: Path, channel: dict[str, int]) -> dict[str, int]:
    """Stem -> class, of the development kit: one of its own ids a line, for the validation images in order."""
    from scipy.io import loadmat

    meta = path.parent / "meta.mat"
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except (OSError, KeyError, ValueError, IndexError) as error:
        problem = f"the development kit's meta.mat explains the ids of {path.name}, and cannot be read ({error})"
        raise DataError(str(meta), problem, "unpack the development kit as a whole, or write a val.txt") from error
    found: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split(), start=1):
        wnid = wnid_of.get(int(line)) if line.isdigit() else None
        if wnid not in channel:
            raise DataError(f"{path}:{number}", f"id {line!r} is none of the 1000 classes")
        found[f"ILSVRC2012_val_{number:08d}"] = channel[wnid]
    return found


@functools.cache
def _classes() -> tuple[tuple[str, str], ...]:
    """(wnid, name) of each class, from timm's lists; a name that two classes share gets its wnid."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    wnids = sorted(info.label_names())
    names = [info.label_name_to_description(wnid).split(",")[0] for wnid in wnids]
    return tuple((w, n if names.count(n) == 1 else f"{n} ({w})") for w, n in zip(wnids, names, strict=True))
