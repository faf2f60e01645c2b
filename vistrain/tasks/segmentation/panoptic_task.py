"""Panoptic and instance segmentation: segments in, panoptic quality out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import RenderableType

from vistrain.data.base.module import DataModule
from vistrain.data.segmentation.instances import InstanceFolders
from vistrain.data.segmentation.module import SegmentationData
from vistrain.data.segmentation.panoptic import PanopticFolders
from vistrain.errors import ConfigError
from vistrain.metrics import IOU, CocoBoundary, CocoMask, Metric, Record
from vistrain.metrics.panoptic_quality import COUNTS, NAME, PanopticQuality
from vistrain.predictions import Segmentation
from vistrain.segmentation.mask_classifier import MaskClassifier
from vistrain.segmentation.semantic import SemanticNetwork
from vistrain.structures import LabelSpace
from vistrain.tasks.base.ahead import metric_of
from vistrain.tasks.base.looks import picture_of
from vistrain.tasks.base.task import Batch, Cells
from vistrain.tasks.base.worst import WORST, draw_worst, write_table
from vistrain.tasks.segmentation.instance_analysis import analyse_instances
from vistrain.tasks.segmentation.panoptic_evaluate import evaluate_instances, evaluate_panoptic
from vistrain.tasks.segmentation.panoptic_predictor import PanopticPredictor, said_of_none
from vistrain.tasks.segmentation.segment_pictures import truth_and_segments
from vistrain.tasks.segmentation.task import SegmentationTask

log = logging.getLogger(__name__)

# What a network must give for the numbers of a protocol.
MASKS: Mapping[str, type[CocoMask]] = {metric.frozen: metric for metric in (CocoMask, CocoBoundary)}
NEEDED = {NAME: "panoptic", **dict.fromkeys(MASKS, "instances"), **dict.fromkeys(IOU, "semantic")}

# What a network can learn from data: in words, and outputs.
TAUGHT_BY = {
    "panoptic": ("segments", ("panoptic", "instances", "semantic")),
    "semantic": ("regions of classes", ("semantic",)),
    "instances": ("things alone", ("instances",)),
}
TAUGHT: dict[type, tuple[str, tuple[str, ...]]] = {
    InstanceFolders: ("objects", ("instances",)),
    SegmentationData: ("regions of classes", ("semantic",)),
}
# Protocols that data has the truth for.
TRUTHS: dict[type, tuple[str, ...]] = {InstanceFolders: tuple(MASKS), SegmentationData: tuple(IOU)}


class PanopticTask(SegmentationTask):
    """Trains and evaluates a network that classifies masks, on panoptic, semantic or instance targets.

    Args:
        model, optimizer, base: see `Task`.
    """

    predictor = PanopticPredictor  # type: ignore[assignment]  # segments, where the base has class maps
    protocols = tuple(NEEDED)

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """See `Task`.

        Raises:
            ConfigError: the network does not give what a protocol measures, the data has no truth for it, or (but for a
                test) trains something else than the network gives.
        """
        if split != "test":
            self._refuse_outputs()
        self._refuse_protocols()
        outputs = self._outputs()
        for name in self.metrics if outputs else ():
            needed = NEEDED.get(name)
            if needed is not None and needed not in outputs:
                problem = f"{name} measures {needed} predictions, the network gives {', '.join(outputs)}"
                raise ConfigError("metrics", problem, self._remedy(outputs, needed))
        data = self.datamodule
        truth = data.ground_truth(cast(Any, split)) if MASKS.keys() & set(self.metrics) else None
        facts = {name: {"ground_truth": truth if name in MASKS else None} for name in self.metrics}
        labels = self.model.labels
        return {name: metric_of(data, split, name, labels=labels, **fact) for name, fact in facts.items()}

    def _outputs(self) -> tuple[str, ...]:
        """What the network predicts; empty: it does not say."""
        if isinstance(self.model, MaskClassifier):
            return self.model.outputs
        return ("semantic",) if isinstance(self.model, SemanticNetwork) else ()

    def _remedy(self, outputs: tuple[str, ...], needed: str) -> str:
        """The line that makes the network give what a protocol measures; one of one class a pixel cannot."""
        if not isinstance(self.model, MaskClassifier):
            return "metrics=[miou]"
        line, data = f"model.outputs=[{','.join((*outputs, needed))}]", self.datamodule
        untaught = isinstance(data, PanopticFolders) and needed not in TAUGHT_BY[data.targets][1]
        return f"data.targets=panoptic {line}" if untaught else line

    def _refuse_outputs(self) -> None:
        """Refuse outputs that nothing teaches the network."""
        outputs, data = self._outputs(), self.datamodule
        what, taught = next((row for kind, row in TAUGHT.items() if isinstance(data, kind)), (None, outputs))
        where = "data.type"
        if isinstance(data, PanopticFolders):
            where, what, taught = "data.targets", *TAUGHT_BY[data.targets]
        wrong = [output for output in outputs if output not in taught]
        if wrong:
            problem = f"{what} are trained, but model.outputs gives {', '.join(wrong)}, too"
            problem = problem.removesuffix(", too") if len(wrong) == len(outputs) else problem
            fitting = [name for name, needed in NEEDED.items() if needed in taught]
            line = f"model.outputs=[{','.join(taught)}] metrics=[{fitting[0]}]"
            raise ConfigError(where, problem, f"{line}, or data with such targets")

    def _refuse_protocols(self) -> None:
        """Refuse protocols that the data has no truth for."""
        data = self.datamodule
        known = next((row for kind, row in TRUTHS.items() if isinstance(data, kind)), self.metrics)
        for name in self.metrics:
            if name not in known and name in NEEDED:
                problem = f"{name} needs truth that {type(data).__name__} has not"
                raise ConfigError("metrics", problem, f"it has that of {', '.join(known)}")

    def on_validation_epoch_end(self) -> None:
        """Gather, compute, log; say so where no segment was found."""
        super().on_validation_epoch_end()
        self._say_nothing_found()

    def on_test_epoch_end(self) -> None:
        """Gather, compute, log, print; say so where no segment was found."""
        super().on_test_epoch_end()
        self._say_nothing_found()

    def _say_nothing_found(self) -> None:
        records = self.records.get(NAME, ())
        if records and not any(sum(r["TP"]) + sum(r["FP"]) for r in records):
            log.warning("no segment was found in %d images%s", len(records), said_of_none(self.model))

    def draw_sample(
        self, batch: Batch, index: int, prediction: Segmentation | None, side: int, threshold: float
    ) -> Cells:
        """The sample under the segments of its truth; beside it, under what was found."""
        labels = self.model.labels or LabelSpace((), ())
        return truth_and_segments(picture_of(batch, index), batch, index, prediction, labels, side, threshold)

    def write_predictions(self, path: Path) -> None:
        """Write the numbers of each class and of each image in the latest evaluation, `per_class.csv` and
        `per_image.csv`; on rank 0, which has the records."""
        for metric in {k: m for group in self.evaluators.values() for k, m in group.items()}.values():
            if isinstance(metric, PanopticQuality) and NAME in self.records:
                write_table(path.with_name("per_class.csv"), per_class(metric))
                write_table(path.with_name("per_image.csv"), per_image(metric, self.records[NAME]))
                return
        super().write_predictions(path)

    def analyse(self, folder: Path) -> None:
        """Write `per_class.csv`, `per_image.csv` and the worst images of the latest test, truth beside prediction; of
        instances what `instance_analysis` does, in the folder `instances` where there are segments, too."""
        metric = self.evaluators["test"].get(NAME)
        if found := next((self.records[name] for name in MASKS if name in self.records), None):
            analyse_instances(self, found, folder / "instances" if metric is not None else folder)
            if metric is None and not set(self.records) & set(IOU):
                return
        if not isinstance(metric, PanopticQuality):
            super().analyse(folder)
            return
        images = per_image(metric, self.records[NAME])
        write_table(folder / "per_class.csv", per_class(metric))
        write_table(folder / "per_image.csv", images)
        draw_worst(self, [row[0] for row in images[1 : WORST + 1]], folder / "worst.png")
        log.info("analysis: %s", folder)

    @classmethod
    def evaluate_file(
        cls,
        predictions: Path,
        data: DataModule | None = None,
        *,
        protocol: str = NAME,
    ) -> RenderableType:
        """Panoptic quality or mask AP of results in COCO's formats, over all images of the test split.

        Args:
            predictions: a panoptic JSON file with the folder of its PNGs beside it, or a file of instances with run
                lengths; or what `vistrain predict` wrote.
            data: the data module whose test split they are of.
            protocol: of the numbers: panoptic; or coco_mask, which is taken where the data has instances alone, or
                coco_boundary.

        Raises:
            ConfigError: there is no data, or no such protocol for what it holds.
            DataError: a file is missing, cannot be read, or does not fit its truth.
        """
        if data is None or isinstance(data, SegmentationData):
            return super().evaluate_file(predictions, data, protocol="miou" if protocol == NAME else protocol)
        if protocol in MASKS or isinstance(data, InstanceFolders):
            return evaluate_instances(predictions, data, MASKS.get(protocol, CocoMask))
        if protocol != NAME:
            raise ConfigError("--protocol", f"{protocol!r} is none for segments", f"use {NAME}, {', '.join(MASKS)}")
        if not isinstance(data, PanopticFolders):
            raise ConfigError("data.type", f"{type(data).__name__} has no segments", "use panoptic data")
        return evaluate_panoptic(predictions, data)


def per_class(metric: PanopticQuality) -> list[list[str]]:
    """Name, kind, the three qualities and the counts of each class of the metric's latest result, under a line of
    headings."""
    rows = [] if metric.result is None else metric.result.per_class
    cells = [
        [
            r["name"],
            "thing" if r["thing"] else "stuff",
            *(f"{r[quality]:.6f}" for quality in ("PQ", "SQ", "RQ")),
            *(str(r[count]) for count in COUNTS),
        ]
        for r in rows
    ]
    return [["class", "kind", "PQ", "SQ", "RQ", *COUNTS], *cells]


def per_image(metric: PanopticQuality, records: Sequence[Record]) -> list[list[str]]:
    """Name and panoptic quality of each image over the classes that occur in it, with its counts, the worst first,
    under a line of headings. NaN, at the end, where nothing occurs."""
    rows = []
    for record in records:
        quality = metric.measure(metric.total([record]))[0]
        mean = float(np.nanmean(quality)) if np.isfinite(quality).any() else float("nan")
        counts = [str(int(sum(record[count]))) for count in COUNTS]
        rows.append((np.isnan(mean), mean, str(record["id"]), counts))
    return [["image", "PQ", *COUNTS], *([name, f"{mean:.6f}", *counts] for _, mean, name, counts in sorted(rows))]
