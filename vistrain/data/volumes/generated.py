"""A generated set of brain tumours in BraTS's layout on disk: four modalities, nested regions, few voxels of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.volumes.cases import CaseList
from vistrain.data.volumes.nifti import Geometry, from_standard, write_volume
from vistrain.data.volumes.sets import BraTS
from vistrain.errors import refuse_below

VERSION = 1  # of the generator: part of the folder's name, so that a change never mixes with older files
MODALITIES = ("flair", "t1", "t1ce", "t2")
GREY, WHITE, FLUID, NECROSIS, OEDEMA, ENHANCING = range(1, 7)
# How bright each tissue is in each modality, before what differs from case to case.
BRIGHTNESS = {
    "flair": (0.0, 0.50, 0.42, 0.12, 0.45, 0.85, 0.72),
    "t1": (0.0, 0.45, 0.62, 0.15, 0.28, 0.38, 0.40),
    "t1ce": (0.0, 0.46, 0.63, 0.15, 0.27, 0.39, 0.95),
    "t2": (0.0, 0.55, 0.42, 0.95, 0.88, 0.80, 0.70),
}
STORED = {NECROSIS: 1, OEDEMA: 2, ENHANCING: 4}  # BraTS 2020's values


class GeneratedTumours(BraTS):
    """The generated set; written on first use to `<root>/tumours-...`, one folder per choice of arguments.

    Heads without their skull, air 0, in files of int16 whose axes run as BraTS's do (LPS). Intensities have another
    scale in each case. A quarter of the tumours do not enhance.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        number: of cases.
        side: of a volume, voxels of 1 mm.
        tumours_seed: of the generator; the training order has `seed`.
        patch, folds, base: see `VolumeData`.

    Raises:
        ConfigError: a number is too small.
    """

    sets_itself = ("year", "modalities", "classes")

    def __init__(
        self,
        root: str | None = None,
        number: int = 40,
        side: int = 64,
        tumours_seed: int = 0,
        patch: tuple[int, int, int] = (48, 48, 48),
        folds: int = 5,
        **base: Any,
    ) -> None:
        refuse_below(2, number=number)
        refuse_below(16, side=side)
        refuse_below(0, tumours_seed=tumours_seed)
        self.number, self.side, self.tumours_seed = number, side, tumours_seed
        name = f"tumours-v{VERSION}-{number}-{side}-seed{tumours_seed}"
        super().__init__(
            root=str(data_root(root) / name), year=2020, modalities=MODALITIES, patch=patch, folds=folds, **base
        )

    def case_list(self) -> CaseList:
        """See `BraTS`; generates the set first if it is not there."""
        if not self.root.is_dir():
            write_tumours(self.root, self.number, self.side, self.tumours_seed)
        return super().case_list()

    def remedy(self, split: SplitName) -> str:
        """How to have the set made again."""
        return f"delete {self.root} to have it generated again"


def write_tumours(folder: Path, number: int, side: int, seed: int) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        number, side, seed: see `GeneratedTumours`.

    Raises:
        DataError: the folder cannot be written.
    """
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = side / 2, side / 2, -side / 2
    with whole_folder(folder, number, "cases") as draft:
        for index in range(number):
            images, label = tumour(np.random.default_rng((seed, index)), side)
            shape = from_standard(label, Geometry(label.shape[::-1], affine)).shape
            geometry = Geometry((shape[0], shape[1], shape[2]), affine, "int16")
            name = f"Phantom_{index:03d}"
            for modality, image in images.items():
                write_volume(draft / name / f"{name}_{modality}.nii.gz", image, geometry)
            write_volume(draft / name / f"{name}_seg.nii.gz", label, geometry, "uint8")


def tumour(draw: np.random.Generator, side: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One case.

    Args:
        draw: decides.
        side: z, y and x, voxels.

    Returns:
        int16 `[z, y, x]` of each modality, 0 outside the brain, and labels uint8 with the values 0, 1, 2 and 4.
    """
    axis = (np.arange(side) - (side - 1) / 2) / (side / 2)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    half = draw.uniform(0.78, 0.9, 3)
    head = np.sqrt((z / half[0]) ** 2 + (y / half[1]) ** 2 + (x / half[2]) ** 2)
    bumps = smooth(draw, side, side / 12)
    brain = head + 0.03 * bumps < 1
    tissue = np.where(smooth(draw, side, side / 20) + 2.2 * (0.62 - head) > 0, WHITE, GREY)
    ventricles = ((z / 0.28) ** 2 + (y / 0.42) ** 2 + ((np.abs(x) - 0.16) / 0.09) ** 2) < 1 + 0.3 * bumps
    tissue[ventricles] = FLUID
    # The tumour lies in one half, away from the border; its regions are nested by one bumpy distance.
    middle = draw.uniform(-0.35, 0.35, 3)
    middle[2] = draw.choice((-1, 1)) * draw.uniform(0.25, 0.5)
    radius = draw.uniform(0.22, 0.38)
    stretch = draw.uniform(0.8, 1.25, 3)
    distance = np.sqrt(sum(((c - m) * s) ** 2 for c, m, s in zip((z, y, x), middle, stretch, strict=True)))
    distance = distance / radius + 0.16 * smooth(draw, side, side / 14)
    core = draw.uniform(0.5, 0.7)
    tissue[distance < 1] = OEDEMA
    tissue[distance < core] = NECROSIS
    if draw.random() >= 0.25:
        tissue[(distance < core) & (distance > core * draw.uniform(0.35, 0.65))] = ENHANCING
    tissue = np.where(brain, tissue, 0)
    label = np.zeros(tissue.shape, np.uint8)
    for kind, value in STORED.items():
        label[tissue == kind] = value
    unit = draw.uniform(200, 2000)
    images = {}
    for modality in MODALITIES:
        clean = np.array(BRIGHTNESS[modality], np.float32)[tissue] * draw.uniform(0.9, 1.1)
        # Neighbours share their tissue, the coil sees one side better, and everything is noisy.
        blurred = ndimage.gaussian_filter(clean, 0.6)
        bias = 1 + 0.12 * sum(w * c for w, c in zip(draw.uniform(-1, 1, 3), (z, y, x), strict=True))
        texture = 0.02 * smooth(draw, side, 1.5)
        image = unit * (blurred * bias + texture + draw.normal(0, 0.035, tissue.shape))
        images[modality] = np.where(brain, np.clip(np.rint(image), 1, 32000), 0).astype(np.int16)
    return images, label


def smooth(draw: np.random.Generator, side: int, scale: float) -> np.ndarray:
    """Noise `[side, side, side]` of a scale in voxels, mean 0 and standard deviation 1."""
    found = ndimage.gaussian_filter(draw.standard_normal((side, side, side)), scale, mode="wrap")
    return (found - found.mean()) / max(float(found.std()), 1e-9)
