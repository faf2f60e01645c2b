"""Classification sets of a user's own: folders of classes, and lists in CSV files."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vistrain.data.base.images import SUFFIXES
from vistrain.data.base.module import SplitName
from vistrain.data.base.storage import folder_names, is_folder, read_text, refuse_missing
from vistrain.data.classification.module import ClassificationData
from vistrain.data.classification.sources import Files, Split, image_files
from vistrain.errors import ConfigError, DataError
from vistrain.structures import LabelSpace

log = logging.getLogger(__name__)

DIGITS = 19  # of a number in 64 bits


class ImageFolder(ClassificationData):
    """Any folder of classes: `<root>/train/<class>/*.jpg`, `<root>/val/<class>/*.jpg`.

    Classes are the sub-folders of the training folder in the order of their names. The other splits' folders are
    matched by name, so one that lacks a class shifts nothing.

    Args:
        train, val: folders of the splits, relative to the root; `.` is the root itself. Without a validation folder
            (`val: null`), every `holdout`-th part of the training images is held out, the same ones each time.
        test: what `vistrain test` evaluates; the validation split if None.
        holdout: share of the training images that is held out where there is no validation folder.
        classes: a file that lists the class folders, one a line, in the order of the channels; all of them, sorted, if
            None.
        base: see `ClassificationData`.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        train: str = "train",
        val: str | None = "val",
        test: str | None = None,
        holdout: float = 0.1,
        classes: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        refuse_share(holdout)
        self.folders: dict[SplitName, str | None] = {"train": train, "val": val, "test": test or val}
        self.holdout, self.classes = holdout, classes
        self._labels: LabelSpace | None = None

    @property
    def labels(self) -> LabelSpace:
        """The classes: the training folder's sub-folders, found the first time."""
        if self._labels is None:
            names = (
                self.listed_classes()
                if self.classes
                else tuple(class_folders(self.folder("train"), self.remedy("train")))
            )
            self._labels = LabelSpace(names, tuple(range(len(names))))
        return self._labels

    def folder(self, split: SplitName) -> Path:
        """The folder of a split."""
        return self.root / (self.folders[split] or self.folders["train"] or ".")

    def remedy(self, split: SplitName) -> str:
        """What to do where a folder is missing; validation can be done without."""
        advice = super().remedy(split)
        if self.folders["val"] is not None and self.folder("train").is_dir() and not self.folder("val").is_dir():
            advice += f"; or write data.val=null to have {self.holdout:.0%} of the training images held out for it"
        return advice

    def listed_classes(self) -> tuple[str, ...]:
        """The class folders that the file `classes` lists.

        Raises:
            DataError: it cannot be read, names a class twice, or does not match the training folder.
        """
        path = self.root / (self.classes or "")
        names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise DataError(str(path), f"class {twice!r} is listed twice")
        there = set(class_folders(self.folder("train"), self.remedy("train")))
        _refuse_mismatch(str(path), set(names), there, str(self.folder("train")))
        return names

    def load(self, split: SplitName) -> Split:
        """The images of a split.

        Raises:
            DataError: a folder is missing, a class has no images, or there are classes that training does not know.
        """
        held_out = self.folders["val"] is None and self.folders[split] is None
        folder = self.folder(split)
        names = self.labels.names
        there = class_folders(folder, self.remedy(split))
        unknown = [name for name in there if name not in names]
        if unknown:
            raise DataError(
                str(folder / unknown[0]),
                f"is no class of the training folder ({len(names)} classes), and {len(unknown) - 1} more are not",
                "every split must have the classes of training; move the folder away, or add it to training",
            )
        files: list[str] = []
        labels: list[int] = []
        for name in there:
            found = image_files(folder / name)
            if not found and (split == "train" or held_out):
                held = f"(of {', '.join(sorted(SUFFIXES)[:4])}, ...)"
                raise DataError(str(folder / name), f"class {name!r} has no image in it {held}", "fill or remove it")
            files += [f"{name}/{file}" for file in found]
            labels += [names.index(name)] * len(found)
        missing = len(names) - len(set(labels))
        if missing and not held_out and self.rank == 0:
            log.warning("%s: %d of %d classes have no images here", folder, missing, len(names))
        whole = Split.single(Files(folder, files), labels)
        if self.folders["val"] is not None or (split == "test" and self.folders["test"] is not None):
            return whole
        return whole.subset(hold_out(whole.labels, self.holdout, take=held_out))


class ImageList(ClassificationData):
    """Images listed in CSV files with a header: a column `file`, and `label`, or `labels` for several classes.

    Several classes stand in one cell, separated by `|` (none for an empty cell). Other columns are ignored.

    Args:
        train, val: the lists, relative to the root.
        test: what `vistrain test` evaluates; the validation list if None.
        images: folder, relative to the root, that files are relative to.
        classes: a file with the class names, one a line, in the order of the channels; those of the training list,
            sorted (as numbers, where all are), if None.
        base: see `ClassificationData`.
    """

    def __init__(
        self,
        train: str,
        val: str,
        test: str | None = None,
        images: str = ".",
        classes: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.lists: dict[SplitName, str] = {"train": train, "val": val, "test": test or val}
        self.images, self.classes = images, classes
        self._labels: LabelSpace | None = None
        self._rows: dict[str, tuple[list[str], list[tuple[str, ...]], bool]] = {}

    @property
    def multi_label(self) -> bool:  # type: ignore[override]
        """Whether the training list has a column `labels`."""
        return self._read(self.lists["train"])[2]

    @property
    def labels(self) -> LabelSpace:
        """The classes: listed, or those of the training list.

        Raises:
            DataError: a list is missing or malformed, or names a class twice.
        """
        if self._labels is None:
            if self.classes:
                names = [line.strip() for line in read_text(self.root / self.classes).splitlines() if line.strip()]
                if len(set(names)) < len(names):  # lists know classes by their names
                    twice = Counter(names).most_common(1)[0][0]
                    raise DataError(str(self.root / self.classes), f"class {twice!r} is listed twice", "name each once")
            else:
                known = {name for row in self._read(self.lists["train"])[1] for name in row}
                are_numbers = all(n.isdecimal() and len(n) < DIGITS for n in known)
                names = sorted(known, key=(lambda n: int(n)) if are_numbers else None)
            self._labels = LabelSpace(tuple(names), tuple(range(len(names))))
        return self._labels

    def load(self, split: SplitName) -> Split:
        """The images of a split.

        Raises:
            DataError: the list is missing or malformed, names an unknown class, or a file that is not there.
        """
        path = self.root / self.lists[split]
        files, rows, _ = self._read(self.lists[split])
        channel = {name: i for i, name in enumerate(self.labels.names)}
        for number, row in enumerate(rows):
            for name in row:
                if name not in channel:
                    listed = self.classes or self.lists["train"]
                    problem = f"line {number + 2}: class {name!r} is not among the {len(channel)} classes of {listed}"
                    raise DataError(str(path), problem, "all lists must use the same class names")
        folder = self.root / self.images
        refuse_missing(files, folder, path, "complete the folder, or correct the list or data.images")
        first = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        labels = np.array([channel[name] for row in rows for name in row], np.int64)
        return Split(Files(folder, files), labels, first)

    def _read(self, name: str) -> tuple[list[str], list[tuple[str, ...]], bool]:
        if name not in self._rows:
            self._rows[name] = _read_list(self.root / name, self.remedy("train"))
        return self._rows[name]


def class_folders(folder: Path, remedy: str = "") -> list[str]:
    """Names of the sub-folders, sorted; hidden ones are left out.

    Raises:
        DataError: there is no such folder, or none in it.
    """
    if not is_folder(folder):
        raise DataError(str(folder), "no such folder", remedy)
    names = [name for name in folder_names(folder) if not name.startswith(".")]
    if not names:
        raise DataError(str(folder), "has no sub-folders", "one folder for each class is expected, named as the class")
    return names


def refuse_share(holdout: float) -> None:
    """Refuse a share that holds out nothing or all.

    Raises:
        ConfigError: it is not above 0 and below 1.
    """
    if not 0 < holdout < 1:
        raise ConfigError("holdout", f"{holdout} leaves nothing on one side", "give a share above 0 and below 1")


def hold_out(labels: np.ndarray, share: float, take: bool) -> np.ndarray:
    """Indices of a held-out part (`take`) or of the rest: the same share of each class, the same ones each time."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        count = min(max(round(len(mine) * share), 1), len(mine) - 1)
        held[np.random.default_rng(int(label)).permutation(mine)[:count]] = True
    return np.flatnonzero(held if take else ~held)


def _read_list(path: Path, remedy: str) -> tuple[list[str], list[tuple[str, ...]], bool]:
    """Files, classes of each, and whether there may be several."""
    text = read_text(path, remedy)
    try:
        return _listed(path, csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise DataError(str(path), f"is no CSV file ({error})", "write file,label or file,labels") from error


def _listed(path: Path, rows: csv.DictReader[str]) -> tuple[list[str], list[tuple[str, ...]], bool]:
    columns = rows.fieldnames or []
    if twice := [name for name in columns if list(columns).count(name) > 1]:
        raise DataError(str(path), f"has the column {twice[0]!r} twice", "leave one")
    several = "labels" in columns
    label = "labels" if several else "label"
    if "file" not in columns or label not in columns:
        raise DataError(str(path), f"its columns are {', '.join(columns) or 'none'}", "write file,label or file,labels")
    files, labels = [], []
    for row in rows:
        if not row["file"] or row[label] is None or not (several or row[label].strip()):
            raise DataError(str(path), f"line {rows.line_num} has no file or no label")
        if "\0" in row["file"]:
            raise DataError(str(path), f"line {rows.line_num}: a file name holds characters that no file name has")
        files.append(row["file"])
        names = row[label].split("|") if several else [row[label]]
        labels.append(tuple(dict.fromkeys(n.strip() for n in names if n.strip())))
    return files, labels, several


def _refuse_mismatch(path: str, listed: set[str], there: set[str], folder: str) -> None:
    missing, extra = sorted(listed - there), sorted(there - listed)
    if missing or extra:
        parts = [f"{len(missing)} listed classes have no folder ({missing[0]}, ...)"] if missing else []
        parts += [f"{len(extra)} folders are not listed ({extra[0]}, ...)"] if extra else []
        raise DataError(path, f"does not match {folder}: {'; '.join(parts)}", "list each class folder once")
