"""Sets of volumes in the layouts that people have: nnU-Net's and the Decathlon's folders, BraTS, a list of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistrain.data.base.class_names import refuse_names
from vistrain.data.volumes.cases import (
    BRAIN,
    TRUTH,
    CaseList,
    brats_cases,
    decathlon_cases,
    listed_cases,
    modalities_of,
    read_dataset_json,
)
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.module import VolumeData
from vistrain.errors import ConfigError, DataError

# Values in the challenges' label files by year.
BRATS_CLASSES: dict[str, dict[str, int]] = {
    "2013": {"background": 0, "necrosis": 1, "oedema": 2, "non_enhancing": 3, "enhancing": 4},
    "2018": {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4},
    "2023": {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 3},
}
BRATS_YEARS = {2013: "2013", 2015: "2013", **dict.fromkeys(range(2017, 2023), "2018"), 2023: "2023", 2024: "2023"}


class VolumeFolders(VolumeData):
    """A folder as the Medical Segmentation Decathlon and nnU-Net have it: `imagesTr/`, `labelsTr/` and `dataset.json`,
    which names classes and modalities.

    A label is called as its image is; of several modalities images end in `_0000`, `_0001`, ..., or one file holds all
    along a fourth axis.

    Args:
        base: see `VolumeData`.
    """

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self._about: dict[str, Any] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """The content of `dataset.json`; read the first time."""
        if self._about is None:
            self._about = read_dataset_json(self.root)
        return self._about

    @property
    def modalities(self) -> tuple[str, ...]:
        """`channel_names` or `modality` of `dataset.json`."""
        return modalities_of(self.about, self.root / "dataset.json")

    @property
    def rule(self) -> VoxelLabels:
        """`labels` of `dataset.json`, unless the config has its own."""
        classes, regions, ignore = classes_of(self.about, str(self.root / "dataset.json"))
        if self.classes is not None:
            return VoxelLabels(self.classes, self.regions, self.ignore)
        return VoxelLabels(classes, self.regions or regions, self.ignore or ignore)

    def case_list(self) -> CaseList:
        """See `decathlon_cases`."""
        return decathlon_cases(self.root, self.about)


def classes_of(
    about: Mapping[str, Any], where: str
) -> tuple[dict[str, int], dict[str, tuple[str, ...]] | None, tuple[int, ...]]:
    """Classes, regions and ignored values of `dataset.json`: `{"0": "background"}` (Decathlon), `{"background": 0}`
    (nnU-Net), or `{"whole": [1, 2]}`, regions.

    Raises:
        DataError: they are missing, of another kind, or a class has no name or that of another one.
    """
    labels = about.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise DataError(where, "names no labels", 'write "labels": {"background": 0, "tumour": 1}')
    try:
        is_decathlon = all(isinstance(name, str) for name in labels.values())
        refuse_names(list(labels.values() if is_decathlon else labels), where)
        if is_decathlon:
            return {name: _whole(value) for value, name in labels.items()}, None, ()
        ignore = tuple(_whole(labels[name]) for name in labels if name == "ignore")
        parts = {
            name: [_whole(v) for v in value] if isinstance(value, list) else [_whole(value)]
            for name, value in labels.items()
            if name != "ignore"
        }
    except (TypeError, ValueError) as error:
        raise DataError(where, f"has labels that are no whole numbers ({str(labels)[:80]})") from error
    if all(len(values) == 1 for values in parts.values()):
        return {name: values[0] for name, values in parts.items()}, None, ignore
    single = {values[0]: name for name, values in parts.items() if len(values) == 1}
    every = sorted({value for values in parts.values() for value in values})
    names = {value: single.get(value, f"label {value}") for value in every}
    regions = {name: tuple(names[v] for v in values) for name, values in parts.items() if values != [0]}
    return {names[value]: value for value in every}, regions, ignore


def _whole(value: Any) -> int:
    """A value in label files: a whole number, or one in quotes.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | str) or not -(2**31) <= int(value) < 2**31:
        raise ValueError(value)
    return int(value)


class BraTS(VolumeData):
    """Brain tumours as the challenges give them out: a folder for each case, at any depth.

    Files end in the modality: `_flair`, `_t1`, `_t1ce`, `_t2` and `_seg` (2018 to 2021), `-t2f`, `-t1n`, `-t1c`, `-t2w`
    and `-seg` (2023), or are called so (`flair.nii.gz`); a mask of the brain is `brainmask`. Regions are the
    challenge's: whole tumour WT, tumour core TC, enhancing tumour ET. Points in time of one patient (2023) stay in one
    fold.

    Args:
        year: of the challenge, which decides the values of the labels: 0 to 4 (2013, 2015), 0, 1, 2 and 4 (2017 to
            2022), 0 to 3 (2023 on).
        modalities: by their names of 2018, or any other ending.
        base: see `VolumeData`.

    Raises:
        ConfigError: there was no challenge of that year, or a modality is a label or a mask.
    """

    def __init__(
        self, year: int = 2020, modalities: tuple[str, ...] = ("flair", "t1", "t1ce", "t2"), **base: Any
    ) -> None:
        super().__init__(**base)
        if year not in BRATS_YEARS:
            raise ConfigError("data.year", f"{year}", f"one of {', '.join(map(str, BRATS_YEARS))}")
        if not modalities or len(set(modalities)) != len(modalities):
            raise ConfigError("data.modalities", f"{list(modalities)}", "name one at least, and each once")
        if no_images := [name for name in modalities if name.lower() in (*TRUTH, *BRAIN)]:
            problem = f"{no_images[0]!r} is a label or a mask, and no image"
            raise ConfigError("data.modalities", problem, "a network would be given what it is to find")
        self.year, self._modalities = year, tuple(modalities)

    @property
    def modalities(self) -> tuple[str, ...]:
        """As the config has them."""
        return self._modalities

    @property
    def rule(self) -> VoxelLabels:
        """The year's classes and the challenge's regions, unless the config has its own."""
        classes = dict(self.classes or BRATS_CLASSES[BRATS_YEARS[self.year]])
        core = tuple(name for name in classes if name in ("necrosis", "non_enhancing", "enhancing"))
        own = {"WT": tuple(classes)[1:], "TC": core, "ET": ("enhancing",)} if "enhancing" in classes else None
        return VoxelLabels(classes, self.regions or own, self.ignore)

    def case_list(self) -> CaseList:
        """See `brats_cases`."""
        return brats_cases(self.root, self.modalities)


class VolumeList(VolumeData):
    """Any files, by a CSV file or a JSON list of objects: `case`, a column for each modality, `label`, and if wanted
    `brain` (a mask), `patient` and `fold`.

    Args:
        cases_file: the list, relative to the root; so are the paths in it, to the list.
        modalities: names of the columns with images.
        classes: name -> value in label files, the background first.
        base: see `VolumeData`.

    Raises:
        ConfigError: a modality is called as another column is.
    """

    def __init__(
        self,
        classes: Mapping[str, int],
        cases_file: str = "cases.csv",
        modalities: tuple[str, ...] = ("image",),
        **base: Any,
    ) -> None:
        super().__init__(classes=classes, **base)
        reserved = {"case", "label", "brain", "patient", "fold"}
        if not modalities or len(set(modalities)) != len(modalities) or reserved & set(modalities):
            remedy = f"one at least, each once, and none of {', '.join(sorted(reserved))}"
            raise ConfigError("data.modalities", f"{list(modalities)}", remedy)
        self.cases_file, self._modalities = cases_file, tuple(modalities)

    @property
    def modalities(self) -> tuple[str, ...]:
        """As the config has them."""
        return self._modalities

    @property
    def rule(self) -> VoxelLabels:
        """As the config has it."""
        return VoxelLabels(dict(self.classes or {}), self.regions, self.ignore)

    def case_list(self) -> CaseList:
        """See `listed_cases`."""
        return listed_cases(self.root / self.cases_file, self.modalities)
