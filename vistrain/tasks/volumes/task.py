"""Segmentation of volumes: patches in, a class for every voxel of whole cases out, measured by region and case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from vistrain import pictures
from vistrain.data.base.module import DataModule
from vistrain.data.volumes.nifti import read_geometry, write_volume
from vistrain.errors import ConfigError
from vistrain.metrics.lesions import LesionOverlap, LesionResult
from vistrain.metrics.region_components import RegionComponents
from vistrain.metrics.region_overlap import IN_MM, RegionOverlap, RegionResult
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.base.worst import WORST, draw_worst, write_table
from vistrain.tasks.volumes.evaluate import evaluate_volumes
from vistrain.tasks.volumes.pictures import montage
from vistrain.tasks.volumes.predictor import VolumePredictor, stored_values


class VolumeTask(Task):
    """Trains a network on patches of volumes, and evaluates it on whole cases in their own voxels.

    Args:
        model, optimizer, base: see `Task`.
        keep_labels: tests write the label map that was found of each case, `labels/CASE.nii.gz` in the run's folder:
            what a second stage takes as `data.previous`.
    """

    predictor = VolumePredictor
    protocols = (*RegionOverlap.families, *LesionOverlap.families, *RegionComponents.families)

    def __init__(self, *, keep_labels: bool = False, **base: Any) -> None:
        super().__init__(**base)
        self.keep_labels = keep_labels

    def predictions(self, batch: Batch, split: str) -> list[Any]:
        """See `Task`; those of a test are written if they are to be kept."""
        found = super().predictions(batch, split)
        if self.keep_labels and split == "test":
            folder = Path(self.trainer.default_root_dir) / "labels"
            for case, prediction in zip(batch["id"], found, strict=True):
                geometry = read_geometry(self.datamodule.image_path("test", str(case)))
                stored = stored_values(prediction.semantic.cpu().numpy(), self.model.labels or LabelSpace((), ()))
                write_volume(folder / f"{case}.nii.gz", stored, geometry)
        return found

    def draw_sample(
        self, batch: Batch, index: int, prediction: Segmentation | None, side: int, threshold: float
    ) -> Cells:
        """Three planes of the sample, under its truth and under what was found."""
        labels = self.model.labels or LabelSpace((), ())
        sides = [slice(side) for side in batch["size"][index].tolist()]
        image = batch["image"][(index, 0, *sides)].float().cpu().numpy()
        name, target = str(batch["id"][index]), batch["target"][index]
        spacing = target["spacing"].tolist()
        truth = target["label_map"].cpu().numpy()
        box = batch["box"][index].tolist() if "box" in batch else [[0, n] for n in truth.shape]
        inside = tuple(slice(low, high) for low, high in box)
        truth = truth[inside]
        maps = {"truth": truth}
        if prediction is not None and prediction.semantic is not None:
            maps["prediction"] = prediction.semantic.cpu().numpy()[inside]
        if truth.shape != image.shape:
            image = _nearest(image, truth.shape)
        drawn = montage(image, maps, spacing, labels, max(48, side // 3))
        return [(caption or name, picture) for caption, picture in drawn.items()]

    def write_predictions(self, path: Path) -> None:
        """Write the numbers of each case in the latest evaluation, `per_case.csv`, the worst first, how they are
        distributed, `per_case.png`, and where lesions were counted, `per_lesion.csv`; on rank 0, which has the
        records."""
        metrics = {k: m for group in self.evaluators.values() for k, m in group.items()}
        write_results(path.parent, [metric.result for name, metric in metrics.items() if name in self.records])

    def analyse(self, folder: Path) -> None:
        """Write what `write_predictions` does of the latest test, and the worst cases, truth beside prediction."""
        results = [metric.result for metric in self.evaluators["test"].values()]
        cases = write_results(folder, results)
        if not cases:
            raise ConfigError("--analysis", "no regions were measured", "set `metrics: [regions]`")
        draw_worst(self, cases[:WORST], folder / "worst.png")

    @classmethod
    def evaluate_file(
        cls,
        predictions: Path,
        data: DataModule | None = None,
        *,
        protocol: str = "regions",
    ) -> RenderableType:
        """Overlap and surface distance of a folder of NIfTI label maps, over all cases of the test split.

        Args:
            predictions: a folder of label maps with the data's own values, named as the cases are; or what `vistrain
                predict` wrote.
            data: the data module whose test split they are of.
            protocol: of the numbers, see `metrics.region_overlap` and `metrics.lesions`.

        Raises:
            ConfigError: there is no data, or no such protocol for regions.
            DataError: a file is missing, cannot be read, or lies elsewhere than its truth.
        """
        if data is None:
            raise ConfigError("evaluate", "no truth to compare with", "give the data's --config FILE")
        return evaluate_volumes(predictions, data, protocol)


def write_results(folder: Path, results: Sequence[Any]) -> list[str]:
    """Write `per_case.csv` and `per_case.png` of the first result of regions, and `per_lesion.csv` of the first one of
    lesions.

    Returns:
        The names of the cases, the worst mean Dice first; empty where nothing of the kind was measured.

    Raises:
        DataError: a file cannot be written.
    """
    found = [result for result in results if isinstance(result, RegionResult | LesionResult)]
    if not found:
        return []
    first, rows = found[0], sorted(found[0].per_case, key=lambda row: mean_dice(row, found[0].regions))
    header = list(rows[0])
    cells = [[str(row["case"]), *(f"{row[column]:.6f}" for column in header[1:])] for row in rows]
    write_table(folder / "per_case.csv", [header, *cells])
    panels: dict[str, dict[str, list[float]]] = {}
    for measure in ("Dice", *IN_MM[:1]):
        factor, unit = (1, "mm") if measure in IN_MM else (100, "%")
        of_regions = {region: [factor * row[f"{region}/{measure}"] for row in rows] for region in first.regions}
        panels[f"{measure}, {unit}"] = of_regions
    pictures.box_plot(panels, folder / "per_case.png", f"{first.protocol}, {len(rows)} cases")
    lesions = next((result.per_lesion() for result in found if isinstance(result, LesionResult)), None)
    if lesions is not None:
        columns = ["case", "region", "kind", "mm3", "parts", "Dice", "HD95"]
        shown = [[f"{v:.6f}" if isinstance(v := row[c], float) else str(v) for c in columns] for row in lesions]
        write_table(folder / "per_lesion.csv", [columns, *shown])
    return [str(row["case"]) for row in rows]


def mean_dice(row: Mapping[str, Any], regions: Sequence[str]) -> float:
    """Over the regions of a case of which it is defined; infinite where it is of none."""
    values = [row[f"{region}/Dice"] for region in regions]
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.inf


def _nearest(image: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    for axis, side in enumerate(sides):
        place = ((np.arange(side) + 0.5) * image.shape[axis] / side).astype(int).clip(max=image.shape[axis] - 1)
        image = image.take(place, axis)
    return image
