"""Cityscapes' pixel-level evaluation: classes, categories, and both weighted by the size of instances (Cordts et al.
2016, arXiv 1604.01685, section 4.1).

Official code: github.com/mcordts/cityscapesScripts, MIT (cityscapesscripts/evaluation/
evalPixelLevelSemanticLabeling.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vistrain.errors import ConfigError, DataError
from vistrain.metrics.mean_iou import MeanIoU
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Segmentation

PER_CLASS = 1000  # instance maps hold (class channel + 1) * 1000 + number
# Mean sizes of instances in pixels, of the training set, as the official code has them.
AVERAGE_SIZES: Mapping[str, float] = {
    "person": 3462.4756337644, "rider": 3930.4788056518, "car": 12794.0202738185, "truck": 27855.1264367816,
    "bus": 35732.1511111111, "train": 67583.7075812274, "motorcycle": 6298.7200839748, "bicycle": 4672.3249222261,
}  # fmt: skip


class CityscapesIoU(MeanIoU):
    """IoU of classes and of categories; and iIoU, in which the pixels of each instance weigh as those of the average
    instance of its class do, where targets have instances.

    Args:
        labels: of the network; its `regions` are the categories.
        average_sizes: class -> pixels of an average instance; other classes have no iIoU.
        ground_truth: see `MeanIoU`.

    Raises:
        ConfigError: the label space has no categories.
    """

    families = ("cityscapes",)

    def __init__(
        self, labels: LabelSpace, average_sizes: Mapping[str, float] | None = None, ground_truth: Any = None
    ) -> None:
        super().__init__("cityscapes", labels)
        if not labels.regions:
            raise ConfigError("metrics", "cityscapes measures categories of classes", "use data.Cityscapes, or miou")
        self.categories: dict[str, list[int]] = {name: list(members) for name, members in labels.regions}
        if average_sizes is not None and dict(average_sizes) != dict(AVERAGE_SIZES):
            self.protocol = f"custom(cityscapes, average_sizes={dict(average_sizes)})"
        sizes = AVERAGE_SIZES if average_sizes is None else average_sizes
        self.average = {channel: sizes[name] for channel, name in labels.name_of.items() if name in sizes}
        self.category_of = {c: name for name, members in self.categories.items() for c in members}

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """As `MeanIoU`; and, where a target has an `instance_map` `[H, W]` ((class channel + 1) * 1000 + number, below
        1000 where there is no instance), of each class with instances `instances`: weighted pixels that were found as
        the class, as its category, and all of them."""
        records = super().update(ids, predictions, targets)
        for record, prediction, target in zip(records, predictions, targets, strict=True):
            if "instance_map" not in target:
                continue
            assert prediction.semantic is not None
            instances, found = target["instance_map"].cpu().numpy(), prediction.semantic.cpu().numpy()
            if instances.shape != found.shape:
                raise DataError(str(record["id"]), f"its instance map has the size {list(instances.shape)}")
            record["instances"] = self._weighted(instances, found)
        return records

    def _weighted(self, instances: np.ndarray, found: np.ndarray) -> dict[int, list[float]]:
        inside = instances >= PER_CLASS
        values, index = np.unique(instances[inside], return_inverse=True)
        size = np.bincount(index, minlength=len(values)).astype(float)
        counts = np.zeros((len(values), self.labels.num_classes))
        np.add.at(counts, (index, found[inside]), 1)
        sums: dict[int, list[float]] = {}
        for row, value in enumerate(values.tolist()):
            channel = value // PER_CLASS - 1
            if channel not in self.average:
                continue
            weight = self.average[channel] / size[row]
            same = counts[row, self.categories[self.category_of[channel]]].sum()
            of_class = sums.setdefault(channel, [0.0, 0.0, 0.0])
            for i, pixels in enumerate((counts[row, channel], same, size[row])):
                of_class[i] += float(weight * pixels)
        return sums

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """See `MeanIoU.compute`; with it `cityscapes/category_mIoU`, and with instances in all records
        `cityscapes/miIoU` and `cityscapes/category_miIoU`, means over what occurs."""
        numbers = super().compute(records)
        matrix = self.total(records)[:-1].astype(float)
        numbers["cityscapes/category_mIoU"] = _mean(self._iou(matrix, members) for members in self.categories.values())
        if all("instances" in record for record in records):
            sums = np.zeros((self.labels.num_classes, 3))
            for record in records:
                for channel, weighted in record["instances"].items():
                    sums[int(channel)] += weighted
            numbers["cityscapes/miIoU"] = _mean(
                _quotient(sums[c, 0], sums[c, 2] + matrix[:, c].sum() - matrix[c, c]) for c in self.average
            )
            several = [m for m in self.categories.values() if any(c in self.average for c in m)]
            numbers["cityscapes/category_miIoU"] = _mean(
                _quotient(sums[m, 1].sum(), sums[m, 2].sum() + matrix[:, m].sum() - matrix[np.ix_(m, m)].sum())
                for m in several
            )
        if self.result is not None:
            self.result.numbers.update(numbers)
        return numbers

    @staticmethod
    def _iou(matrix: np.ndarray, members: list[int]) -> float:
        right = matrix[np.ix_(members, members)].sum()
        return _quotient(right, matrix[members].sum() + matrix[:, members].sum() - right)


def _quotient(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: Any) -> float:
    """Of those that are numbers; NaN if none is."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")
