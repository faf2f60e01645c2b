"""Segmentation of volumes: patches in, a class for every voxel of whole cases out, measured by region and case."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from vistrain import pictures
from vistrain.data.base.module import DataModule
from vistrain.data.volumes.nifti import read_geometry, write_volume
from vistrain.errors import ConfigError
from vistrain.metrics.region_components import RegionComponents
from vistrain.metrics.region_overlap import MEASURES, RegionOverlap
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.volumes.evaluate import evaluate_volumes
from vistrain.tasks.volumes.pictures import montage
from vistrain.tasks.volumes.predictor import VolumePredictor, stored_values
from vistrain.writing import whole_file


class VolumeTask(Task):
    """Trains a network on patches of volumes, and evaluates it on whole cases in their own voxels.

    Args:
        model, optimizer, base: see `Task`.
        keep_labels: tests write the label map that was found of each case, `labels/CASE.nii.gz` in the run's folder:
            what a second stage takes as `data.previous`.
    """

    predictor = VolumePredictor
    protocols = (*RegionOverlap.families, *RegionComponents.families)

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
        """Write the numbers of each case in the latest evaluation, `per_case.csv`, the worst first; on rank 0, which
        has the records."""
        for name, metric in {k: m for group in self.evaluators.values() for k, m in group.items()}.items():
            if isinstance(metric, RegionOverlap) and metric.result is not None and name in self.records:
                write_cases(path.with_name("per_case.csv"), metric)
                return

    def analyse(self, folder: Path) -> None:
        """Write the numbers of each case of the latest test, the worst first, and how Dice is distributed."""
        metrics = [m for m in self.evaluators["test"].values() if isinstance(m, RegionOverlap)]
        if not metrics or metrics[0].result is None:
            raise ConfigError("--analysis", "no regions were measured", "set `metrics: [regions]`")
        write_cases(folder / "per_case.csv", metrics[0])
        for region in metrics[0].result.regions:
            values = [row[f"{region}/Dice"] for row in metrics[0].result.per_case]
            values = [value for value in values if not math.isnan(value)]
            if values:
                pictures.histogram(values, folder / f"dice_{region}.png", f"{region}: Dice of {len(values)} cases")

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
            protocol: of the numbers, see `metrics.region_overlap`.

        Raises:
            ConfigError: there is no data, or no such protocol for regions.
            DataError: a file is missing, cannot be read, or lies elsewhere than its truth.
        """
        if data is None:
            raise ConfigError("evaluate", "no truth to compare with", "give the data's --config FILE")
        return evaluate_volumes(predictions, data, protocol)


def write_cases(path: Path, metric: RegionOverlap) -> None:
    """A line for each case of the metric's latest result, the worst mean Dice first.

    Raises:
        DataError: it cannot be written.
    """
    assert metric.result is not None
    regions = metric.result.regions

    def mean(row: dict[str, Any]) -> float:
        values = [row[f"{region}/Dice"] for region in regions]
        values = [value for value in values if not math.isnan(value)]
        return float(np.mean(values)) if values else math.inf

    columns = ["case", *(f"{region}/{measure}" for region in regions for measure in MEASURES)]
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in sorted(metric.result.per_case, key=mean):
            writer.writerow([row["case"], *(f"{row[column]:.6f}" for column in columns[1:])])


def _nearest(image: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    for axis, side in enumerate(sides):
        place = ((np.arange(side) + 0.5) * image.shape[axis] / side).astype(int).clip(max=image.shape[axis] - 1)
        image = image.take(place, axis)
    return image
