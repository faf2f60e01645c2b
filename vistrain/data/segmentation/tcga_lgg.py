"""TCGA-LGG: slices of lower-grade gliomas, in folders of patients."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from vistrain.data.base.module import SplitName
from vistrain.data.base.patient_folds import dealt, refuse_fold
from vistrain.data.segmentation.mask_folders import MaskFolders
from vistrain.data.segmentation.mask_pairs import MaskSplit, Pairing
from vistrain.data.segmentation.transforms import MaskAugment
from vistrain.errors import DataError, refuse_below

PATIENT = re.compile(r"^(TCGA_[A-Z0-9]+_[A-Z0-9]+)(?:_\d+)?$", re.IGNORECASE)  # what follows is a date


class TCGALGG(MaskFolders):
    """TCGA-LGG as Buda et al. 2019 gave it out on Kaggle: 110 patients, 3,929 axial slices of 256 x 256 pixels, whose
    three channels are T1 before contrast, FLAIR, and T1 after it; what is abnormal in FLAIR is drawn.

    `kaggle_3m/TCGA_CS_4941_19960909/` for each patient, with `TCGA_CS_4941_19960909_1.tif` and, with `_mask` at its
    end, the mask of each slice, 0 and 255. A patient's slices stay in one fold, whatever the dates: those of one fold
    are evaluated, all others trained on. Where a series is missing, the authors put FLAIR in its place.

    Args:
        fold: which one is evaluated; None: all patients are trained on, and fold 0 is evaluated all the same.
        folds: how many there are.
        folder: below the root.
        augment: crops of 256 x 256 with a size of 0.9 to 1.1, flips to the side, no colours, if None.
        base: see `MaskFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "values", "first_value", "ignore", "palette", "colors", "bands")

    def __init__(
        self,
        fold: int | None = 0,
        folds: int = 5,
        folder: str = "kaggle_3m",
        augment: MaskAugment | None = None,
        **base: Any,
    ) -> None:
        where = MaskSplit(folder, folder, mask_suffix="_mask")
        augment = augment or MaskAugment(crop=(256, 256), scale=None, ratio=(0.9, 1.1), category_ratio=1.0, color=False)
        classes: dict[str, Any] = {"classes": ("background", "glioma"), "values": (0, 255), "ignore": ()}
        super().__init__(train=where, val=where, augment=augment, **classes, **base)
        refuse_below(2, folds=folds)
        refuse_fold(fold, folds)
        self.fold, self.folds = fold, folds

    def pairing(self, split: SplitName) -> Pairing:
        """The slices of the split's patients.

        Raises:
            DataError: see `find_pairs` and `patient_folds.dealt`; or a slice lies in no folder of a patient.
        """
        found = super().pairing(split)
        of_patient = dealt((patient_of(pair.name) for pair in found.pairs), self.folds)
        held_out = 0 if self.fold is None else self.fold
        everyone, training = self.fold is None, split == "train"
        pairs = tuple(
            pair
            for pair in found.pairs
            if (training and everyone) or training != (of_patient[patient_of(pair.name)] == held_out)
        )
        # What has no partner is told of once.
        return replace(found, pairs=pairs) if split == "train" else Pairing(pairs, (), ())


def patient_of(name: str) -> str:
    """The patient that a slice is of, by its folder.

    Args:
        name: of a pair, below the set's folder.

    Raises:
        DataError: it lies in none, or in one of another name.
    """
    folder, _, _ = name.rpartition("/")
    match = PATIENT.match(folder.rpartition("/")[2])
    if match is None:
        remedy = "slices lie in folders such as TCGA_CS_4941_19960909: correct data.root or data.folder"
        raise DataError(name, "lies in no folder of a patient", remedy)
    return match[1].upper()
