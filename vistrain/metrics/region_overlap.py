"""Overlap and surface distance of regions in volumes (or slices), case by case: Dice, HD95, what stands beside them.

A region is one class or several together (BraTS's whole tumour). Each case gives numbers of its own, and they are
averaged; what an empty region counts as decides more than the third digit, so the rules have names: the protocols.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vistrain.errors import ConfigError, DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.metrics.surfaces import bounding_box, element_distances, voxel_distances
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Segmentation

Surface = Literal["directed", "pooled", "area"]
NOT_DEFINED = float("nan")
DIAGONAL = 373.12866  # mm, of a BraTS volume of 240 x 240 x 155 voxels: what a missed region costs


@dataclass(frozen=True)
class EmptyRule:
    """What regions count as that are empty in the truth, in the prediction, or in both.

    Attributes:
        both: Dice and distance (mm) where both are; NaN leaves the case out of the mean.
        truth, prediction: where only that one is.
    """

    both: tuple[float, float]
    truth: tuple[float, float]
    prediction: tuple[float, float]


# The frozen arguments of each protocol; any other value prints as custom(...)
REGIONS: Mapping[str, EmptyRule] = {
    # nnU-Net's evaluation: left out where both are empty; a distance to nothing is left out
    "regions": EmptyRule((NOT_DEFINED, NOT_DEFINED), (0.0, NOT_DEFINED), (0.0, NOT_DEFINED)),
    # MONAI's DiceMetric and HausdorffDistanceMetric as they come: what the truth lacks is left out
    "regions_monai": EmptyRule((NOT_DEFINED, NOT_DEFINED), (NOT_DEFINED, NOT_DEFINED), (0.0, NOT_DEFINED)),
    # The BraTS challenge's portal (CBICA): 1 and 0 mm, or 0 and the volume's diagonal
    "brats": EmptyRule((1.0, 0.0), (0.0, DIAGONAL), (0.0, DIAGONAL)),
}
MEASURES = ("Dice", "HD95", "ASSD", "surface_Dice", "sensitivity", "specificity")
IN_MM = ("HD95", "ASSD")
HEADINGS = {"surface_Dice": "surface Dice", "sensitivity": "sens.", "specificity": "spec."}  # of 80 columns


@dataclass(frozen=True)
class RegionResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        protocol: its name, or `custom(...)` saying what differs.
        per_case: a row for each case: `case`, and each measure of each region (`WT/Dice`).
        regions: their names.
        spread: standard deviation over the cases of each number of one region.
        counted: cases that enter each number of one region.
    """

    numbers: dict[str, float]
    protocol: str
    per_case: list[dict[str, Any]]
    regions: tuple[str, ...] = ()
    spread: dict[str, float] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table

        yield f"{self.protocol}, {len(self.per_case)} cases: mean ± standard deviation over the cases"
        table = Table()
        table.add_column("region", overflow="fold")
        for measure in MEASURES:
            heading = f"{HEADINGS.get(measure, measure)}, {'mm' if measure in IN_MM else '%'}"
            table.add_column(heading, justify="right", overflow="fold")
        table.add_column("cases", justify="right")
        family = next(iter(self.numbers)).partition("/")[0]
        for region in self.regions:
            names = [f"{family}/{region}/{measure}" for measure in MEASURES]
            cells = [_cell(self.numbers[name], self.spread[name], name) for name in names]
            table.add_row(escape(region), *cells, str(self.counted[names[0]]))
        table.add_section()
        names = [f"{family}/{measure}" for measure in MEASURES]
        table.add_row("mean", *(_cell(self.numbers[name], NOT_DEFINED, name) for name in names), "")
        yield table


def _cell(value: float, spread: float, name: str) -> str:
    if math.isnan(value):
        return "-"
    factor = 1 if name.rpartition("/")[2] in IN_MM else 100
    return f"{factor * value:.2f}" + ("" if math.isnan(spread) else f" ± {factor * spread:.2f}")


class RegionOverlap(Metric):
    """Dice, 95th percentile of the Hausdorff distance, average symmetric surface distance, surface Dice at a tolerance,
    sensitivity and specificity of each region, of each case, and their means.

    Args:
        name: a protocol of `REGIONS`, which says what empty regions count as.
        labels: of the network.
        regions: names of regions, and of the classes that each is made of; None: those of the labels, or each class but
            the first by itself.
        surface: which HD95, ASSD and surface Dice: `directed`, the greater of both directions' percentiles over border
            voxels (MONAI's, BraTS's); `pooled`, one percentile over both (MedPy's HD95); `area`, weighted by the area
            of the surface (DeepMind's). See `metrics.surfaces`.
        tolerance: of surface Dice, mm.
        ground_truth: not looked at: each batch has its own.

    Raises:
        ConfigError: a region has no class, or one that is not there.
    """

    families = tuple(REGIONS)

    def __init__(
        self,
        name: str,
        labels: LabelSpace,
        regions: Mapping[str, Sequence[str]] | None = None,
        surface: Surface = "directed",
        tolerance: float = 1.0,
        ground_truth: Any = None,
    ) -> None:
        changed = {"surface": str(surface)} if surface != "directed" else {}
        changed |= {"tolerance": str(tolerance)} if tolerance != 1.0 else {}
        self.name, self.rule, self.surface, self.tolerance = name, REGIONS[name], surface, tolerance
        self.protocol = f"custom({name}, {', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else name
        self.ignored, self.regions = labels.ignore_index, chosen_regions(labels, regions)
        self.result: RegionResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Distances in mm, of which little is good; shares."""
        return Unit(lower_is_better=True, digits=2) if name.rpartition("/")[2] in IN_MM else Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each case: `id`, and `regions`, for each of them the `MEASURES`; NaN where one is not defined.

        Args:
            ids: of the cases.
            predictions: with `semantic` `[*S]`.
            targets: dicts with `label_map` `[*S]` (what is predicted where that is ignored is in no region), and
                `spacing` `[axes]` of its voxels, mm (1 if it is not there).

        Raises:
            DataError: a prediction has another size than its truth.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            rows = {}
            for region, truth, found, spacing in region_masks(key, prediction, target, self.regions, self.ignored):
                rows[region] = self.measure(truth, found, spacing)
            records.append({"id": key, "regions": rows})
        return records

    def measure(self, truth: np.ndarray, found: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
        """The `MEASURES` of one region of one case; NaN where one is not defined.

        Args:
            truth, found: bool `[*S]`.
            spacing: of the voxels, mm.
        """
        size, box = truth.size, bounding_box(truth | found)
        if box is None:
            return self._row(*self.rule.both, NOT_DEFINED, 1.0)
        truth, found = truth[box], found[box]
        tp, positive, chosen = int((truth & found).sum()), int(truth.sum()), int(found.sum())
        sensitivity = tp / positive if positive else NOT_DEFINED
        specificity = 1 - (chosen - tp) / (size - positive) if size > positive else NOT_DEFINED
        if not positive or not chosen:
            return self._row(*(self.rule.prediction if positive else self.rule.truth), sensitivity, specificity)
        distances = (element_distances if self.surface == "area" else voxel_distances)(truth, found, spacing)
        pooled = self.surface == "pooled"
        values = distances.hausdorff(95, pooled), distances.average(pooled), distances.within(self.tolerance)
        return dict(zip(MEASURES, (2 * tp / (positive + chosen), *values, sensitivity, specificity), strict=True))

    def _row(self, dice: float, distance: float, sensitivity: float, specificity: float) -> dict[str, float]:
        """Of an empty region: the surface counts as the volume does."""
        return dict(zip(MEASURES, (dice, distance, distance, dice, sensitivity, specificity), strict=True))

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over the cases of which each number is defined, of each region, and of the regions' means.

        Returns:
            `<protocol>/<measure>`, and `<protocol>/<region>/<measure>` of each region; shares in 0..1, distances in mm.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records, "case")
        single: dict[str, float] = {}
        spread: dict[str, float] = {}
        counted: dict[str, int] = {}
        for region in self.regions:
            for measure in MEASURES:
                values = np.array([record["regions"][region][measure] for record in records], np.float64)
                values, name = values[~np.isnan(values)], f"{self.name}/{region}/{measure}"
                single[name] = float(values.mean()) if len(values) else NOT_DEFINED
                spread[name] = float(values.std(ddof=1)) if len(values) > 1 else NOT_DEFINED
                counted[name] = len(values)
        means = {}
        for measure in MEASURES:
            values = np.array([single[f"{self.name}/{region}/{measure}"] for region in self.regions])
            values = values[~np.isnan(values)]
            means[f"{self.name}/{measure}"] = float(values.mean()) if len(values) else NOT_DEFINED
        numbers = {**means, **single}
        rows = [
            {"case": r["id"], **{f"{g}/{m}": r["regions"][g][m] for g in self.regions for m in MEASURES}}
            for r in records
        ]
        self.result = RegionResult(numbers, self.protocol, rows, tuple(self.regions), spread, counted)
        return numbers


def chosen_regions(labels: LabelSpace, regions: Mapping[str, Sequence[str]] | None) -> dict[str, tuple[int, ...]]:
    """Region -> the channels of the classes that it is made of.

    Args:
        labels: of the network.
        regions: names of regions, and of their classes; None: those of the labels, or each class but the first by
            itself.

    Raises:
        ConfigError: a region has no class, or one that is not there.
    """
    channel_of = {one: channel for channel, one in labels.name_of.items()}
    own = {region: tuple(labels.names[i] for i in members) for region, members in labels.regions or ()}
    chosen = regions or own or {one: (one,) for one in labels.names[1:]}
    for region, classes in chosen.items():
        if not classes or (unknown := [one for one in classes if one not in channel_of]):
            problem = f"the region {region!r} is made of {', '.join(map(repr, unknown)) if classes else 'nothing'}"
            raise ConfigError("metrics", problem, f"there are the classes {', '.join(labels.names)}")
    return {region: tuple(channel_of[one] for one in classes) for region, classes in chosen.items()}


def region_masks(
    key: Any,
    prediction: Segmentation,
    target: Mapping[str, Tensor],
    regions: Mapping[str, Sequence[int]],
    ignored: int | None,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, list[float]]]:
    """Of each region of a case its name, where truth and prediction have it (bool `[*S]`), and the spacing in mm.

    Args:
        key: the case, for messages.
        prediction: with `semantic` `[*S]`.
        target: see `RegionOverlap.update`.
        regions: see `chosen_regions`.
        ignored: label of the truth where nothing is judged.

    Raises:
        DataError: the prediction has another size than its truth.
    """
    found, truth = prediction.semantic, target["label_map"]
    if found is None or found.shape != truth.shape:
        sizes = f"{None if found is None else list(found.shape)}, its truth {list(truth.shape)}"
        raise DataError(str(key), f"the prediction has the size {sizes}")
    spacing = target["spacing"].tolist() if "spacing" in target else [1.0] * truth.ndim
    maps = truth.cpu().numpy(), found.cpu().numpy()
    hidden = None if ignored is None else maps[0] == ignored
    hidden = hidden if hidden is not None and hidden.any() else None
    for region, channels in regions.items():
        chosen = _members(maps[1], channels)
        yield region, _members(maps[0], channels), chosen if hidden is None else chosen & ~hidden, spacing


def _members(label_map: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """Where a map has one of several classes, bool `[*S]`."""
    if len(channels) == 1:
        return label_map == channels[0]
    return np.isin(label_map, channels)
