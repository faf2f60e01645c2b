"""Which files are a case: folder layouts and lists, folds by patient, and what does not pair up."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistrain.data.base.storage import read_json, read_text
from vistrain.data.volumes.nifti import CONVERTERS, SUFFIXES, refuse_other_kinds, stem_of
from vistrain.errors import DataError, nearest

log = logging.getLogger(__name__)

# What the challenges called the same modality over the years, without regard to case; and what is no modality.
WORDS = {
    "flair": ("flair", "t2f"),
    "t1": ("t1", "t1n"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
}
TRUTH = ("seg", "segmentation", "label", "ot")
BRAIN = ("brainmask", "mask", "brain")
ENDING = re.compile(r"^(?:(?P<case>.*?)[_-])?(?P<word>[A-Za-z0-9]+)$")
NUMBERED = re.compile(r"^(?P<case>.+)_(?P<number>\d{4})$")  # nnU-Net's: CASE_0000.nii.gz
NAMED = 3  # cases in a line that counts more of them
NO_SIGN = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # controls, halves of UTF-16 pairs
LONGEST = 200  # bytes of a case's name, with room for what files of it end in
KEPT = "settings"  # no case's name: a file of the cache is called so
TIMED = re.compile(r"^(?P<patient>BraTS-[A-Za-z]+-\d+)-\d{3}$")  # BraTS 2023: patient, and point in time


@dataclass(frozen=True)
class Case:
    """The files of one case.

    Attributes:
        id: its name.
        images: one for each modality, or one whose fourth axis has them all.
        label: its label map, or None.
        brain: a mask of what intensities are measured on, or None.
        previous: label map that the first stage of a cascade has found, or None.
        patient: whose cases stay together when folds are made.
        fold: where a list says it, else None.
        label_slices: its label map as a picture for each slice, from below to above, in place of `label`; see
            `label_slices.read_label_slices`.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    brain: Path | None = None
    patient: str = ""
    fold: int | None = None
    label_slices: tuple[Path, ...] = ()
    previous: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.volumes, *self.label_slices)

    @property
    def volumes(self) -> tuple[Path, ...]:
        """Those that are NIfTI files."""
        return (*self.images, *(file for file in (self.label, self.brain, self.previous) if file is not None))


@dataclass
class CaseList:
    """What a set holds.

    Attributes:
        cases: those with images and a label, by id.
        bare: images without a label.
        lonely: labels without an image, and their files.
        problems: what a run would refuse: cases that are there twice, modalities that are missing.
        other_kinds: files of other formats beside them, which are no part of any case.
    """

    cases: list[Case] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    lonely: dict[str, Path] = field(default_factory=dict)
    problems: list[DataError] = field(default_factory=list)
    other_kinds: list[Path] = field(default_factory=list)


def refuse_name(name: str, where: str | Path) -> None:
    """Refuse what cannot be a case's name: files are called after it.

    Args:
        name: of a case.
        where: the list, or the folder, that has it.

    Raises:
        DataError: it is a path, empty, `.` or `..`, longer than 200 bytes, holds what cannot be printed, or is
            `settings`, as a file beside the prepared cases is called.
    """
    shown = _short(name)
    remedy = f"a plain name of at most {LONGEST} bytes, without / and \\"
    if name in ("", ".", "..", KEPT) or set(name) & {"/", "\\"} or not name.isprintable():
        raise DataError(str(where), f"a case is called {shown}, and files are called after it", remedy)
    if (size := len(os.fsencode(name))) > LONGEST:
        raise DataError(str(where), f"the name of the case {shown} has {size} bytes", remedy)


# -------------------------------------------------------------------- nnU-Net's and the Decathlon's folders


def read_dataset_json(root: Path) -> dict[str, Any]:
    """The content of `dataset.json`.

    Raises:
        DataError: it is missing, or no JSON object.
    """
    return _json_object(
        root / "dataset.json", "the Decathlon's and nnU-Net's folders have one: name and value of the classes"
    )


def decathlon_cases(root: Path, about: Mapping[str, Any]) -> CaseList:
    """The cases of `imagesTr` and `labelsTr`, of all files that are there; those that `dataset.json` lists besides.

    Images are called as their labels are, or, of several modalities, so with `_0000`, `_0001`, ... at the end.

    Args:
        root: of the set.
        about: see `read_dataset_json`.

    Raises:
        DataError: a folder is missing, or holds other kinds of files alone; `dataset.json` has an entry of another
            kind.
    """
    where = root / "dataset.json"
    count = len(modalities_of(about, where))
    ending = about.get("file_ending", SUFFIXES[0])
    if ending not in SUFFIXES:
        raise DataError(str(where), f"file_ending is {ending!r}", f"of what is read it is {' or '.join(SUFFIXES)}")
    found = CaseList()
    images: dict[str, dict[int, Path]] = {}
    for path in nifti_files(root / "imagesTr"):
        stem = stem_of(path)
        match = NUMBERED.match(stem)
        key, number = (match["case"], int(match["number"])) if match else (stem, 0)
        if number in images.setdefault(key, {}):
            found.problems.append(
                DataError(key, f"is there twice: {images[key][number].name} and {path.name}", "remove one")
            )
        images[key][number] = path
    labels: dict[str, Path] = {}
    for path in nifti_files(root / "labelsTr"):
        if stem_of(path) in labels:
            found.problems.append(DataError(stem_of(path), "has two label files", "remove one"))
        labels[stem_of(path)] = path
    listed, lacking = [], {}
    for image, label in _listed_pairs(about, where):
        listed.append(stem_of(label))
        if image is None or (of_image := case_of(stem_of(image))) == listed[-1]:
            continue  # where one of the two is not there, it is a file without a partner
        if of_image not in images:
            lacking[image] = of_image
        if listed[-1] not in labels and listed[-1] in images:
            lacking[label] = listed[-1]
    gone = [DataError(key, f"{name} is listed in dataset.json, and is not there", "remove or copy it")
            for name, key in lacking.items()]  # fmt: skip
    found.problems += _few(gone, where, "files are listed, and are not there")
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        found.problems.append(
            DataError(name, f"is listed {listed.count(name)} times in dataset.json", "remove all but one")
        )
    gone = [DataError(name, "is listed in dataset.json, and has neither image nor label", "remove or copy it")
            for name in sorted(set(listed) - {*images, *labels})]  # fmt: skip
    found.problems += _few(gone, where, "cases are listed, and have neither image nor label")
    if (said := about.get("numTraining")) not in (None, len({*images, *labels})):
        log.warning("%s: numTraining is %r, and there are %d cases", where, said, len({*images, *labels}))
    others: dict[str, Path] = {}
    for path in (path for folder in ("imagesTr", "labelsTr") for path in sorted((root / folder).iterdir())):
        if not is_other_kind(path) or path.name.startswith("."):
            continue
        key = case_of(path.name.partition(".")[0])
        if (key in images) == (key in labels):
            found.other_kinds.append(path)
        others[key] = path
    for key in sorted({*images, *labels}):
        refuse_name(key, root)
        if key in others and not (key in labels and key in images):
            found.problems.append(to_convert(key, others[key]))
        elif key not in labels:
            found.bare.append(key)
        elif key not in images:
            found.lonely[key] = labels[key]
        else:
            numbers = sorted(images[key])
            if numbers != list(range(count)) and numbers != [0]:
                missing = sorted(set(range(count)) - set(numbers))
                problem = (
                    f"has no {', '.join(f'{n:04d}' for n in missing)} beside {images[key][numbers[0]].name}"
                    if missing
                    else f"has {len(numbers)} modalities"
                )
                found.problems.append(DataError(key, problem, f"dataset.json names {count}"))
                continue
            found.cases.append(Case(key, tuple(images[key][n] for n in numbers), labels[key], None, key))
    return found


def _few(problems: list[DataError], where: Path, what: str) -> list[DataError]:
    """Many problems of one kind as one that counts them, so that others are seen beside it."""
    if len(problems) <= NAMED:
        return problems
    names = ", ".join(problem.where for problem in problems[:NAMED])
    return [DataError(str(where), f"{len(problems)} {what} ({names}, ...)", problems[0].remedy)]


def case_of(stem: str) -> str:
    """The case of a file's name without ending: without `_0000`, the number of its modality."""
    match = NUMBERED.match(stem)
    return match["case"] if match else stem


def _listed_pairs(about: Mapping[str, Any], where: Path) -> list[tuple[str | None, str]]:
    """Image (None: called as its label) and label of each entry of `training`.

    Raises:
        DataError: it is no list of such.
    """
    entries, pairs = about.get("training") or [], []
    for entry in entries if isinstance(entries, list) else [entries]:
        image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (None, entry)
        if not isinstance(entries, list) or not isinstance(label, str) or not isinstance(image, str | None):
            remedy = 'write "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, ...]'
            raise DataError(str(where), f"training has the entry {str(entry)[:80]!r}", remedy)
        pairs.append((image, label))
    return pairs


def modalities_of(about: Mapping[str, Any], where: str | Path) -> tuple[str, ...]:
    """Names of the modalities in `dataset.json`: `modality` (Decathlon, nnU-Net 1) or `channel_names` (nnU-Net 2).

    Args:
        about: its content.
        where: it is, for messages.

    Raises:
        DataError: they are not numbered from 0 on, or no names.
    """
    key = "channel_names" if about.get("channel_names") is not None else "modality"
    names = about.get(key)
    if names is None:
        return ("image",)
    numbers = [str(number) for number in range(len(names))] if isinstance(names, dict) else []
    if not numbers or {*numbers} != {*names} or not all(isinstance(name, str) and name for name in names.values()):
        remedy = f'write "{key}": {{"0": "T1", "1": "T2"}}, one for each image of a case, from 0 on'
        raise DataError(str(where), f"{key} is {str(names)[:80]}", remedy)
    return tuple(names[number] for number in numbers)


def is_other_kind(path: Path) -> bool:
    """Whether a file is of a format that a converter makes NIfTI of, by its name."""
    return any(path.name.lower().removesuffix(".gz").endswith(kind) for kind in CONVERTERS)


def to_convert(case: str, path: Path) -> DataError:
    """What `refuse_other_kinds` says of a file, with its case's name."""
    try:
        refuse_other_kinds(path)
    except DataError as error:
        return DataError(f"{case}: {path.name}", error.problem, error.remedy)
    raise ValueError(path)  # callers have asked `is_other_kind`


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder by name, without hidden ones.

    Raises:
        DataError: there is no such folder, or it holds none; other formats are named with a converter.
    """
    if not folder.is_dir():
        raise DataError(str(folder), "no such folder", "correct data.root")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    if not found:
        for path in filter(is_other_kind, files):
            refuse_other_kinds(path)
        raise DataError(str(folder), "holds no .nii or .nii.gz file", "correct data.root")
    return found


# -------------------------------------------------------------------- BraTS's folders


def modality_of(path: Path) -> tuple[str, str]:
    """The case and the modality that a file's name says: `BraTS20_1_flair.nii.gz`, `BraTS-GLI-1-000-t2f.nii.gz`, or
    `flair.nii.gz` in the folder of the case. Modalities by their names in `WORDS`; `seg` is the truth, `brain` a mask;
    others as they stand, lower case."""
    match = ENDING.match(stem_of(path))
    if match is None:
        return path.parent.name, stem_of(path).lower()
    word = match["word"].lower()
    known = next((name for name, words in WORDS.items() if word in words), word)
    known = "seg" if word in TRUTH else "brain" if word in BRAIN else known
    return match["case"] or path.parent.name, known


def brats_cases(root: Path, modalities: Sequence[str]) -> CaseList:
    """A folder for each case, at any depth, as the challenges of 2018 to 2023 give them out, or with plain names.

    Args:
        root: of the set.
        modalities: that each case needs, names of `WORDS` or any last word of a file's name.

    Raises:
        DataError: there is no such folder, or no case in it.
    """
    if not root.is_dir():
        raise DataError(str(root), "no such folder", "correct data.root")
    found, folders = CaseList(), dict[Path, dict[str, list[Path]]]()
    others: dict[Path, Path] = {}  # of another kind: the first one of each folder
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if path.name.lower().endswith(SUFFIXES):
            folders.setdefault(path.parent, {}).setdefault(modality_of(path)[1], []).append(path)
        elif is_other_kind(path):
            others.setdefault(path.parent, path)
    if not folders:
        for other in others.values():
            refuse_other_kinds(other)
        raise DataError(str(root), "holds no .nii or .nii.gz file", "correct data.root")
    seen: dict[str, Path] = {}
    for folder, files in folders.items():
        name = folder.resolve().name
        refuse_name(name, folder)
        if name in seen:
            found.problems.append(DataError(name, f"is there twice: {seen[name]} and {folder}", "remove one"))
            continue
        seen[name] = folder
        twice = [word for word in (*modalities, "seg", "brain") if len(files.get(word, ())) > 1]
        missing = [word for word in modalities if word not in files]
        if twice:
            names = ", ".join(path.name for path in files[twice[0]])
            found.problems.append(DataError(name, f"has several files for {twice[0]}: {names}", "keep one of them"))
        elif (missing or "seg" not in files) and folder in others:
            found.problems.append(to_convert(name, others[folder]))
        elif len(missing) == len(modalities) and "seg" in files:
            found.lonely[name] = files["seg"][0]
        elif missing:
            there = ", ".join(sorted(files))
            problem = f"has no {', '.join(missing)}, but {there}"
            found.problems.append(DataError(name, problem, "copy it, or name the others alone in data.modalities"))
        elif "seg" not in files:
            found.bare.append(name)
        else:
            timed = TIMED.match(name)
            brain = files.get("brain", [None])[0]
            images = tuple(files[word][0] for word in modalities)
            found.cases.append(Case(name, images, files["seg"][0], brain, timed["patient"] if timed else name))
    return found


# -------------------------------------------------------------------- lists


def listed_cases(file: Path, modalities: Sequence[str]) -> CaseList:
    """The cases of a CSV file, or of a JSON list of objects: `case`, a column for each modality, `label`, and if wanted
    `brain` (a mask), `patient` and `fold`. Paths are relative to the list.

    Raises:
        DataError: it cannot be read, a column is missing or unknown, a row has more fields than columns, a fold is no
            number, a case's name is no plain name, or a file's name is none.
    """
    if file.suffix.lower() == ".json":
        rows = read_json(file)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(str(file), "is no list of objects", 'write [{"case": "a", "image": "a.nii.gz", ...}, ...]')
    else:
        rows = _csv_rows(file)
    needed, known = ("case", *modalities, "label"), ("case", *modalities, "label", "brain", "patient", "fold")
    for row in rows:
        for name in row:
            if name not in known:
                raise DataError(str(file), f"unknown column {_short(name)}", nearest(name, known))
    found, seen = CaseList(), set[str]()
    for number, row in enumerate(rows, 1):
        values = {name: str(value).strip() for name, value in row.items() if value is not None and str(value).strip()}
        name = values.get("case", f"row {number}")
        refuse_name(name, file)
        missing = [column for column in needed if column not in values]
        if name in seen:
            found.problems.append(DataError(name, f"is listed twice in {file.name}", "remove one of the lines"))
            continue
        seen.add(name)
        if missing == ["label"]:
            found.bare.append(name)
        elif missing:
            found.problems.append(DataError(name, f"has no {', '.join(missing)} in {file.name}", "write it"))
        else:
            fold = values.get("fold")
            if fold is not None and not re.fullmatch("[0-9]{1,9}", fold):
                raise DataError(f"{file}: {name}", f"fold {_short(fold)} is no number", "folds are 0, 1, 2, ...")
            for column in (*modalities, "label", "brain"):
                _refuse_file_name(values.get(column, ""), f"{file}: {name}", column)
            images = tuple(file.parent / values[modality] for modality in modalities)
            brain = file.parent / values["brain"] if "brain" in values else None
            label, patient = file.parent / values["label"], values.get("patient", name)
            found.cases.append(Case(name, images, label, brain, patient, None if fold is None else int(fold)))
    return found


def _csv_rows(file: Path) -> list[dict[str, str | None]]:
    reader = csv.DictReader(io.StringIO(read_text(file)))
    rows: list[dict[str, str | None]] = []
    try:
        columns = list(reader.fieldnames or ())
        other = next((sign for sign in ";\t|" if len(columns) == 1 and sign in columns[0]), None)
        if other is not None:
            raise DataError(str(file), f"its columns stand apart by {other!r}", "separate them by commas")
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise DataError(str(file), f"has the column {twice[0]!r} twice", "leave one")
        for number, row in enumerate(reader, 1):
            if None in row:
                fields = sum(len(value) if isinstance(value, list) else 1 for value in row.values())
                problem = f"row {number} has {fields} fields, and there are {len(columns)} columns"
                raise DataError(str(file), problem, 'put what holds a comma in quotes: "a,b.nii.gz"')
            rows.append(row)
    except csv.Error as error:
        raise DataError(str(file), f"is no CSV file (row {len(rows) + 1}: {error})", "mend or shorten it") from error
    return rows


def _refuse_file_name(written: str, where: str, column: str) -> None:
    """Refuse signs that no file should be called with, and parts that are longer than systems take."""
    if NO_SIGN.search(written):
        raise DataError(where, f"{column} is {_short(written)}, which is no name of a file", "correct it")
    encoded = written.encode()
    if max(map(len, encoded.split(b"/"))) > 255 or len(encoded) > 4000:
        raise DataError(where, f"{column} is {_short(written)}, a name of {len(encoded)} bytes", "shorten it")


def _short(text: str) -> str:
    """In quotes, signs that cannot be printed by their numbers, cut to the width of a line."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _json_object(path: Path, remedy: str) -> dict[str, Any]:
    found = read_json(path, remedy)
    if not isinstance(found, dict):
        raise DataError(str(path), "is no JSON object", remedy)
    return found


def refuse_missing(cases: Iterable[Case]) -> None:
    """Refuse cases of which a file is not there, or is of another kind.

    Raises:
        DataError: naming the first.
    """
    for case in cases:
        for file in case.volumes:
            refuse_other_kinds(file)
        for file in case.files:
            try:
                problem = "" if file.is_file() else "is not there"
            except OSError as error:
                problem = f"cannot be read ({error.strerror or error})"
            if problem:
                raise DataError(case.id, f"{file} {problem}", "correct its name")
