"""Data in volumes: what all sets of cases with a class for each voxel share."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch
from vistrain.data.base.module import DataModule, SplitName, data_root
from vistrain.data.base.patient_folds import refuse_fold
from vistrain.data.volumes.cases import Case, CaseList, refuse_missing
from vistrain.data.volumes.first_stage import label_maps
from vistrain.data.volumes.fold_numbers import folds_of
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.preparation import Intensities, VolumePreparation
from vistrain.data.volumes.prepared import Cache, PreparedCase
from vistrain.data.volumes.samples import Patches, VolumeSample, WholeCases, collate_volumes
from vistrain.data.volumes.transforms import VolumeAugment
from vistrain.errors import ConfigError, DataError, refuse_below
from vistrain.structures import LabelSpace

log = logging.getLogger(__name__)


class VolumeData(DataModule):
    """Base of the sets of volumes: a subclass says which files are a case, in `case_list`, how many images one has, in
    `modalities`, and what labels mean, in `rule`.

    Cases are dealt to folds by patient: those of one fold are evaluated, all others trained on. Each case is prepared
    once (see `VolumePreparation`) and kept uncompressed, from where patches are read.

    Args:
        patch: sides of what is trained on, voxels along z, y, x.
        fold: which one is evaluated; None: all cases are trained on, and fold 0 is evaluated all the same.
        folds: how many there are, unless a list says the fold of each case.
        spacing, intensities, percentiles, window, within, crop: see `VolumePreparation`.
        classes: name -> value in label files, the background first; None: the set's own.
        regions: name -> classes that it is made of, larger regions first: what is measured, and trained if the network
            has an output for each; None: the set's own.
        ignore: values of voxels without an annotation.
        foreground: probability that a patch is drawn around a class, see `Patches`.
        patches: of each case in an epoch.
        augment: training augmentation; `VolumeAugment()` if None.
        cache: folder for prepared cases; None: `prepared` in `VISTRAIN_DATA` or `data/`. It is about as large as the
            set uncompressed, in two bytes a voxel.
        previous: folder of the label maps of a first stage, see `first_stage`: their classes are further channels.
        unpaired: `refuse` images without a label, and labels without an image, or `skip` them.
        batch_size, base: see `DataModule`.

    Raises:
        ConfigError: a number makes no sense.
    """

    itemsize = 2

    def __init__(
        self,
        patch: tuple[int, int, int] = (128, 128, 128),
        fold: int | None = 0,
        folds: int = 5,
        spacing: tuple[float, float, float] | None = None,
        intensities: tuple[Intensities, ...] = ("zscore",),
        percentiles: tuple[float, float] = (0.5, 99.5),
        window: tuple[float, float, float, float] | None = None,
        within: Literal["brain", "all"] = "brain",
        crop: bool = True,
        classes: Mapping[str, int] | None = None,
        regions: Mapping[str, tuple[str, ...]] | None = None,
        ignore: tuple[int, ...] = (),
        foreground: float = 0.5,
        patches: int = 1,
        augment: VolumeAugment | None = None,
        cache: str | None = None,
        previous: str | None = None,
        unpaired: Literal["refuse", "skip"] = "refuse",
        batch_size: int = 2,
        **base: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **base)
        refuse_below(1, patch=min(patch), patches=patches)
        refuse_below(2, folds=folds)
        refuse_fold(fold, folds)
        if not 0 <= foreground <= 1:
            raise ConfigError("data.foreground", f"{foreground}", "a probability, 0..1")
        self.patch, self.fold, self.folds, self.foreground, self.patches = patch, fold, folds, foreground, patches
        self.classes, self.regions, self.ignore, self.unpaired = classes, regions, tuple(ignore), unpaired
        self.augment = VolumeAugment() if augment is None else augment
        self.cache_folder, self.previous = cache, previous
        self._settings: dict[str, Any] = {
            "spacing": spacing, "intensities": tuple(intensities), "percentiles": percentiles, "window": window,
            "within": within, "crop": crop,
        }  # fmt: skip
        self._list: CaseList | None = None
        self._prepared: dict[str, PreparedCase] = {}
        self._told = False

    @abstractmethod
    def case_list(self) -> CaseList:
        """The cases of the set; called once.

        Raises:
            DataError: folders or lists are missing.
        """

    @property
    @abstractmethod
    def rule(self) -> VoxelLabels:
        """The classes and their values; may read a file the first time."""

    @property
    @abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """What the images of a case are called, in the order of the network's channels."""

    @property
    def channels(self) -> int:  # type: ignore[override]  # known once the set is
        """One for each modality, and for each class of a first stage."""
        return len(self.modalities) + self.previous_classes

    @property
    def previous_classes(self) -> int:
        """Classes of a first stage that are channels; 0 without one."""
        return 0 if self.previous is None else len(self.rule.names) - 1

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return self.rule.space

    @property
    def eval_transform(self) -> VolumePreparation:
        """What is done to a case; needs no files but those that say the modalities."""
        return VolumePreparation(self.modalities, previous=self.previous_classes, **self._settings)

    @property
    def listing(self) -> CaseList:
        """See `case_list`; looked for the first time."""
        if self._list is None:
            self._list = self.case_list()
            if self.previous is not None:
                self._add_previous(self._list, self.previous)
        return self._list

    @staticmethod
    def _add_previous(found: CaseList, folder: str) -> None:
        maps = label_maps(folder)
        for index, case in enumerate(found.cases):
            if case.id in maps:
                found.cases[index] = replace(case, previous=maps[case.id])
            else:
                remedy = "predict it with the first stage"
                found.problems.append(DataError(case.id, f"has no label map in {folder} (data.previous)", remedy))

    def cases(self, split: SplitName | None = None) -> list[Case]:
        """The cases of a split that have images and a label, by id; of all splits if None.

        Raises:
            DataError: see `case_list` and `folds_of`; or something does not pair up, and may not be skipped.
        """
        found = self.listing
        if found.problems:
            first, more = found.problems[0], len(found.problems) - 1
            others = f"; {more} other cases cannot be used either" if more else ""
            raise DataError(first.where, first.problem + others, first.remedy)
        if self.unpaired == "refuse" and (found.bare or found.lonely):
            if found.bare:
                where, problem = found.bare[0], "has no label"
            else:
                where, problem = next(iter(found.lonely)), "is a label without an image"
            count = len(found.bare) + len(found.lonely) - 1
            problem += f", and {count} other files have no partner" if count else ""
            raise DataError(where, problem, "add it, remove it, or data.unpaired=skip")
        if not self._told and self.rank == 0 and (found.bare or found.lonely):
            self._told = True
            labels = list(found.lonely)
            for names, what in ((found.bare, "images without a label"), (labels, "labels without an image")):
                if names:
                    log.warning("%d %s left out, such as %s", len(names), what, names[0])
        if not found.cases:
            raise DataError(str(self.root), "no case has images and a label", "see that its folders or table list some")
        if split is None:
            return found.cases
        fold = folds_of(found.cases, self.folds)
        held_out = 0 if self.fold is None else self.fold
        if held_out not in fold:
            known = sorted(set(fold))
            raise DataError("data.fold", f"no case is in fold {held_out}", f"there are {', '.join(map(str, known))}")
        if split == "train":
            pairs = zip(found.cases, fold, strict=True)
            return [case for case, own in pairs if self.fold is None or own != held_out]
        return [case for case, own in zip(found.cases, fold, strict=True) if own == held_out]

    @property
    def store(self) -> Cache:
        """Where prepared cases lie."""
        parent = self.cache_folder
        if parent is None:
            place = os.path.abspath(self.root)
            digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
            parent = str(data_root(None) / "prepared" / f"{Path(place).name}-{digest}")
        return Cache(Path(parent), self.eval_transform, self.rule)

    @property
    def unwritten(self) -> bool:
        """Whether none of its cases is prepared yet."""
        return not self.store.folder.is_dir()

    def prepare_data(self) -> None:
        """Prepares all cases that are not; one process does it for all of a machine."""
        self.prepared(self.cases())

    def prepared(self, cases: Sequence[Case]) -> list[PreparedCase]:
        """See `Cache.get`; each case is looked for once."""
        missing = [case for case in cases if case.id not in self._prepared]
        if missing:
            refuse_missing(missing)
            self._prepared |= {case.id: case for case in self.store.get(missing)}
        return [self._prepared[case.id] for case in cases]

    def recognise(self, split: SplitName) -> None:
        """Lists the cases of a split.

        Raises:
            DataError: see `cases`.
        """
        self.cases(split)

    def find(self, split: SplitName) -> None:
        """Prepares the cases of a split.

        Raises:
            DataError: see `cases` and `Cache.get`.
        """
        found = self.prepared(self.cases(split))
        outside = sum(case.facts["outside_box"] for case in found)
        if outside and self.rank == 0:
            log.info("%s: %d labelled voxels lie outside the brain, where nothing is predicted", split, outside)

    def dataset(self, split: SplitName) -> Patches | WholeCases:
        """Patches for `train`, whole cases otherwise."""
        found = self.prepared(self.cases(split))
        if split == "train":
            drawn = self.patch, self.foreground, self.augment, self.rule.ignored, self.patches
            return Patches(found, *drawn, previous=self.previous_classes)
        return WholeCases(found)

    def largest(self, split: SplitName) -> tuple[int, ...]:
        """Sides of a patch, or the greatest of the cases as the network sees them."""
        if split == "train":
            return self.patch
        shapes = [case.facts["shape"] for case in self.prepared(self.cases(split))]
        return tuple(max(sides) for sides in zip(*shapes, strict=True))

    def ground_truth(self, split: SplitName) -> None:
        """Nothing beside what each batch holds: `label_map` in the case's own voxels, and `spacing`."""

    def image_path(self, split: SplitName, image_id: str) -> Path:
        """The first image of a case.

        Raises:
            DataError: the split has no such case.
        """
        for case in self.cases(split):
            if case.id == image_id:
                return case.images[0]
        raise DataError(str(self.root), f"no case called {image_id!r} in split {split!r}")

    def place(self, split: SplitName) -> str:
        """The set's folder."""
        return str(self.root)

    @property
    def collate(self) -> Callable[[Sequence[VolumeSample]], Batch]:
        """See `collate_volumes`."""
        return collate_volumes

    def count_targets(self, target: Mapping[str, Any]) -> int:
        """The labelled voxels of a patch."""
        return int((target["label_map"] != self.rule.ignored).sum())

    def check(self, output: str | Path) -> Findings:
        """See `volumes.check.check_volumes`."""
        from vistrain.data.volumes.check import check_volumes  # it draws, which training need not load

        return check_volumes(self, output)
