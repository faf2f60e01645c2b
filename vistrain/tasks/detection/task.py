"""Detection: boxes in, COCO's numbers out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from torch.optim import Optimizer

from vistrain.data.base.module import DataModule
from vistrain.data.coco.reader import read_coco
from vistrain.detection import TestTimeAugmentation
from vistrain.errors import ConfigError
from vistrain.metrics.coco import write_predictions
from vistrain.network import Network
from vistrain.predictions import Detections
from vistrain.structures import Factory
from vistrain.tasks.base.looks import picture_of
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.detection.analysis import analyse_records, analyse_task, image_reader, set_reader
from vistrain.tasks.detection.evaluate import evaluations, read_records
from vistrain.tasks.detection.pictures import truth_and_prediction
from vistrain.tasks.detection.predictor import DetectionPredictor

log = logging.getLogger(__name__)


class DetectionTask(Task):
    """Trains and evaluates a detector; the data module's `ground_truth(split)` is what it is measured against.

    Args:
        tta: test-time augmentation in `vistrain test`; evaluations while training do without.
        model, optimizer, base: see `Task`.
    """

    predictor = DetectionPredictor
    protocols = ("coco_box", "coco_mask", "coco_boundary")

    def __init__(
        self, model: Network, optimizer: Factory[Optimizer], *, tta: TestTimeAugmentation | None = None, **base: Any
    ) -> None:
        super().__init__(model, optimizer, **base)
        self.tta = tta

    def predictions(self, batch: Batch, split: str) -> list[Detections]:
        """What the network finds; in a test with test-time augmentation, if there is any."""
        if split == "test" and self.tta is not None:
            return self.tta(self.model, batch)
        return super().predictions(batch, split)

    def on_test_epoch_start(self) -> None:
        """Start collecting records, and say how images are looked at."""
        super().on_test_epoch_start()
        if self.tta is not None:
            log.info("%r", self.tta)

    def facts_of_test(self) -> dict[str, Any]:
        """`tta`, as the config has it, if there is any."""
        tta = self.checkpoint_facts.get("config", {}).get("task", {}).get("tta")
        return {"tta": tta} if tta else {}

    def draw_sample(
        self, batch: Batch, index: int, prediction: Detections | None, side: int, threshold: float
    ) -> Cells:
        """The sample with its boxes; beside it with those that were found."""
        image, labels = picture_of(batch, index), self.model.labels
        return truth_and_prediction(image, batch, index, prediction, labels, side, threshold)

    def write_predictions(self, path: Path) -> None:
        """Write the detections of the latest evaluation in COCO's results format; on rank 0, which has the records."""
        for records in list(self.records.values())[:1]:  # every box metric records the same detections
            write_predictions(records, path)

    def analyse(self, folder: Path) -> None:
        """Write and print what `ErrorAnalysis` does, with its defaults."""
        analyse_task(self, folder)

    @classmethod
    def evaluate_file(
        cls,
        predictions: Path,
        data: DataModule | None = None,
        *,
        annotations: Path | None = None,
        images: Path | None = None,
        analysis: Path | None = None,
        boundary: bool = False,
    ) -> RenderableType:
        """COCO's numbers of a file of detections, over all images of the truth: of boxes, and of masks where both have
        them.

        Args:
            predictions: a file in COCO's results format, or what `vistrain predict` writes; images by id or file name.
            data: the data module whose test split they are of; without one `annotations` are needed.
            annotations: the truth, in COCO's format.
            images: folder of the images, for pictures of the worst ones.
            analysis: folder for the confusion matrix, precision-recall curves, errors by kind and worst images.
            boundary: whether boundary AP is measured, too, where there are masks.

        Raises:
            ConfigError: there is no truth, or there are two.
            DataError: a file is missing or malformed, or cannot be written.
        """
        if annotations is not None and data is not None:
            raise ConfigError("evaluate", "--annotations and a config exclude each other", "give one of them")
        if data is not None:
            truth, name = data.ground_truth("test"), "the test split"
        elif annotations is not None:
            truth, name = read_coco(annotations, files=False).ground_truth(), str(annotations)
        else:
            remedy = "give --annotations FILE, or the data's --config FILE"
            raise ConfigError("evaluate", "no truth to compare with", remedy)
        checked, records = read_records(predictions, name, truth)
        found: list[RenderableType] = [*evaluations(checked, records, boundary)]
        if analysis is not None:
            reader = None if data is None else set_reader(truth, data, "test")
            reader = reader if images is None else image_reader(truth, images)
            found.append(analyse_records(truth, records, analysis, reader))
            found.append(Text(f"analysis: {analysis}", no_wrap=True, overflow="ignore"))
        return Group(*found)
