"""Semantic segmentation: a class for every pixel in, mean intersection over union out."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType

from vistrain.data.base.module import DataModule
from vistrain.errors import ConfigError
from vistrain.metrics.annotator_agreement import AnnotatorAgreement
from vistrain.metrics.base import Metric
from vistrain.metrics.binary_pixels import BinaryPixels
from vistrain.metrics.mean_iou import IOU, MeanIoU
from vistrain.metrics.region_overlap import RegionOverlap
from vistrain.predictions import Segmentation
from vistrain.segmentation.mask_classifier import MaskClassifier
from vistrain.structures import LabelSpace
from vistrain.tasks.base.looks import picture_of
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.base.worst import write_table
from vistrain.tasks.segmentation.analysis import analyse_task, per_class, per_image
from vistrain.tasks.segmentation.evaluate import evaluate_masks
from vistrain.tasks.segmentation.pictures import truth_and_prediction
from vistrain.tasks.segmentation.predictor import SegmentationPredictor


class SegmentationTask(Task):
    """Trains and evaluates a network that classifies pixels, against the class maps in the batches.

    Args:
        model, optimizer, base: see `Task`.
    """

    predictor = SegmentationPredictor
    protocols = (*IOU, *BinaryPixels.families, *AnnotatorAgreement.families, *RegionOverlap.families)

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """See `Task`.

        Raises:
            ConfigError: the network gives no class maps.
        """
        if self.metrics and isinstance(self.model, MaskClassifier) and "semantic" not in self.model.outputs:
            problem = f"the network gives {', '.join(self.model.outputs)}, {self.metrics[0]} measures semantic"
            raise ConfigError("model.outputs", problem, "model.outputs=[semantic], or task.type=tasks.PanopticTask")
        return super().build_metrics(split)

    def draw_sample(
        self, batch: Batch, index: int, prediction: Segmentation | None, side: int, threshold: float
    ) -> Cells:
        """The sample under the colours of its truth; beside it, under those of what was found."""
        labels = self.model.labels or LabelSpace((), ())
        return truth_and_prediction(picture_of(batch, index), batch, index, prediction, labels, side)

    def write_predictions(self, path: Path) -> None:
        """Write the numbers of each class and of each image in the latest evaluation, `per_class.csv` and
        `per_image.csv`; on rank 0, which has the records."""
        for name, metric in {k: m for group in self.evaluators.values() for k, m in group.items()}.items():
            if isinstance(metric, MeanIoU) and name in self.records:
                write_table(path.with_name("per_class.csv"), per_class(metric))
                write_table(path.with_name("per_image.csv"), per_image(metric, self.records[name]))
                return

    def analyse(self, folder: Path) -> None:
        """Write a confusion matrix and the worst images of the latest test."""
        analyse_task(self, folder)

    @classmethod
    def evaluate_file(
        cls,
        predictions: Path,
        data: DataModule | None = None,
        *,
        protocol: str = "miou",
    ) -> RenderableType:
        """Mean IoU of a folder of label files, over all images of the test split.

        Args:
            predictions: a folder of label files with the data's own values, named as the images are; or what `vistrain
                predict` wrote.
            data: the data module whose test split they are of.
            protocol: of the numbers, see `metrics.mean_iou`.

        Raises:
            ConfigError: there is no data, or no such protocol for class maps.
            DataError: a file is missing, cannot be read, or has another size than its truth.
        """
        if data is None:
            raise ConfigError("evaluate", "no truth to compare with", "give the data's --config FILE")
        return evaluate_masks(predictions, data, protocol)
