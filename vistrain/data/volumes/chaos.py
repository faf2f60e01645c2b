"""CHAOS: healthy organs of the abdomen in computed tomography and magnetic resonance."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vistrain.data.volumes.cases import Case, CaseList, nifti_files, refuse_name
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.module import VolumeData
from vistrain.data.volumes.nifti import SUFFIXES
from vistrain.errors import ConfigError, DataError

Series = Literal["ct", "in_phase", "out_phase", "t2"]
# The scanner's folder, the one with images and the one with label maps in the folder of a case.
PLACES: dict[str, tuple[str, str, str]] = {
    "ct": ("CT", "DICOM_anon", "Ground"),
    "in_phase": ("MR", "T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground"),
    "out_phase": ("MR", "T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground"),
    "t2": ("MR", "T2SPIR/DICOM_anon", "T2SPIR/Ground"),
}
CLASSES = {
    "CT": {"background": 0, "liver": 255},
    "MR": {"background": 0, "liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252},
}


class CHAOS(VolumeData):
    """CHAOS (Kavur et al. 2021, arXiv 2001.06535): the liver in 20 computed tomographies, and liver, kidneys and spleen
    in 20 magnetic resonances of three series, of those with label maps.

    `Train_Sets/CT/1/` with `DICOM_anon` and `Ground`, `Train_Sets/MR/1/` with `T1DUAL` and `T2SPIR`, as given out. The
    DICOM series are converted first, each beside itself (`dcm2niix -z y -o FOLDER FOLDER`). Label maps are the PNG
    files of `Ground`, or a NIfTI file that lies there, with the same values.

    Args:
        series: which images, in the order of the network's channels: `ct`; `in_phase` and `out_phase`, which have one
            label map; or `t2`.
        slices: whether the PNG files of `Ground`, by their names, go `up`, from feet to head, or `down`. It is not
            written down by those who give the set out and differs between series, so there is no default: look at
            `first_batch.png`. Not needed where label maps are NIfTI.
        folder: below the root.
        base: see `VolumeData`.

    Raises:
        ConfigError: no series, or of more than one label map.
    """

    def __init__(
        self,
        series: tuple[Series, ...] = ("ct",),
        slices: Literal["up", "down"] | None = None,
        folder: str = "Train_Sets",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        grounds = {(PLACES[name][0], PLACES[name][2]) for name in series}
        if len(grounds) != 1 or len(set(series)) != len(series):
            remedy = "ct, or t2, or one or both of in_phase and out_phase"
            raise ConfigError("data.series", f"{list(series)}", remedy)
        self.series, self.slices, self.folder = tuple(series), slices, folder

    @property
    def modalities(self) -> tuple[str, ...]:
        """The series."""
        return self.series

    @property
    def rule(self) -> VoxelLabels:
        """The organs of the scanner, unless the config has its own."""
        return VoxelLabels(self.classes or CLASSES[PLACES[self.series[0]][0]], self.regions, self.ignore)

    def case_list(self) -> CaseList:
        """The folders of the scanner, called `CT_1`, `MR_1`, ...

        Raises:
            DataError: there is no such folder, or it is empty.
            ConfigError: label maps are PNG files, and `slices` is not said.
        """
        scanner, _, ground = PLACES[self.series[0]]
        parent, found = self.root / self.folder / scanner, CaseList()
        if not parent.is_dir():
            raise DataError(str(parent), "no such folder", "correct data.root, or data.folder")
        folders = sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise DataError(str(parent), "holds no folder of a case", "correct data.root, or data.folder")
        for folder in folders:
            name = f"{scanner}_{folder.name}"
            refuse_name(name, folder)
            try:
                images = tuple(self._only(folder / PLACES[series][1]) for series in self.series)
            except DataError as error:
                found.problems.append(DataError(f"{name}: {error.where}", error.problem, error.remedy))
                continue
            label, slices = self._label(folder / ground)
            if label is None and not slices:
                found.bare.append(name)
            else:
                found.cases.append(Case(name, images, label, patient=name, label_slices=slices))
        return found

    def _only(self, folder: Path) -> Path:
        """The NIfTI file of a series.

        Raises:
            DataError: there is none, or several.
        """
        files = nifti_files(folder)
        if len(files) > 1:
            problem = f"holds {len(files)} NIfTI files, {files[0].name} and {files[1].name} among them"
            raise DataError(str(folder), problem, "keep one: that of the whole series")
        return files[0]

    def _label(self, folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
        """The label map, a file or pictures."""
        files = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
        if any(path.name.lower().endswith(SUFFIXES) for path in files):
            return self._only(folder), ()
        pictures = [path for path in files if path.suffix.lower() == ".png"]
        if pictures and self.slices is None:
            problem = "is not said, and label maps are PNG files"
            raise ConfigError("data.slices", problem, "up: by their names they go from feet to head; or down")
        return None, tuple(pictures if self.slices == "up" else reversed(pictures))
