"""Overlap and surface distance lesion by lesion, and how many lesions are found, missed and made up.

A case with one large and three small lesions has a high Dice although only the large one is found; here each lesion
counts alike, and what is found where nothing is costs as much as what is missed. The rules are those of the BraTS
challenge of 2023 and their numbers those of its code (https://github.com/rachitsaluja/BraTS-2023-Metrics, no licence);
this was written from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from vistrain.errors import ConfigError
from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.metrics.region_overlap import Surface, chosen_regions, region_masks
from vistrain.metrics.surfaces import bounding_box, element_distances, voxel_distances
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Segmentation


@dataclass(frozen=True)
class LesionRule:
    """What differs between the parts of the challenge.

    Attributes:
        dilation: steps by which the truth is dilated, each to the voxels that touch through a face or an edge: lesions
            that then touch are one, and what is found within counts as found.
        least: mm3; lesions of this volume or less are left out, found or not.
    """

    dilation: int
    least: float


# The frozen arguments of each protocol; any other value prints as custom(...)
LESIONS: Mapping[str, LesionRule] = {
    "brats_lesions": LesionRule(3, 50.0),  # gliomas of adults, those of sub-Saharan Africa, tumours of children
    "brats_lesions_meningiomas": LesionRule(1, 50.0),
    "brats_lesions_metastases": LesionRule(1, 2.0),
}
PENALTY = 374.0  # mm: the distance of a lesion that is missed, and of one that is made up
MEASURES = ("Dice", "HD95", "TP", "FP", "FN")
COUNTS = ("TP", "FP", "FN")


@dataclass(frozen=True)
class LesionResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        protocol: its name, or `custom(...)` saying what differs.
        per_case: a row for each case: `case`, and each measure of each region (`WT/Dice`).
        regions: their names.
        records: what it was computed of.
        least, penalty: the metric's.
    """

    numbers: dict[str, float]
    protocol: str
    per_case: list[dict[str, Any]]
    regions: tuple[str, ...]
    records: Sequence[Mapping[str, Any]]
    least: float
    penalty: float

    def per_lesion(self) -> Iterator[dict[str, Any]]:
        """A row for each lesion: `case`, `region`, `kind` (`found`, `missed`, `false`, or `left out`: too small),
        `mm3`, `parts` that were found of it, `Dice`, `HD95` (mm)."""
        for record, region in itertools.product(self.records, self.regions):
            found = record["regions"][region]
            rows = [(_kind(volume, parts, self.least), volume, parts, dice, distance)
                    for volume, parts, dice, distance in found["lesions"]]  # fmt: skip
            for kind, volume, parts, dice, distance in [*rows, *(("false", v, 1, 0.0, None) for v in found["false"])]:
                shown = self.penalty if distance is None else distance
                yield {"case": record["id"], "region": region, "kind": kind, "mm3": volume, "parts": parts,
                       "Dice": dice, "HD95": shown}  # fmt: skip

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table

        yield f"{self.protocol}, {len(self.per_case)} cases: means over the cases, and lesions of all together"
        table = Table("region", "Dice, %", "HD95, mm", "found", "false", "missed")
        family = next(iter(self.numbers)).partition("/")[0]
        for region in self.regions:
            dice, distance, *counts = (self.numbers[f"{family}/{region}/{measure}"] for measure in MEASURES)
            table.add_row(escape(region), f"{100 * dice:.2f}", f"{distance:.2f}", *(f"{count:.0f}" for count in counts))
        yield table


class LesionOverlap(Metric):
    """Dice and 95th percentile of the Hausdorff distance of each lesion of each region, and counts of lesions.

    Lesions of the truth are the components of its dilation (voxels that touch through a face, an edge or a corner are
    connected), without what the dilation added. Components of the prediction that touch a lesion's own dilation are
    what was found of it, all together; one may belong to several lesions. Those that touch none are false. The score
    of a case is the sum over its lesions divided by the number of lesions and false components together, which add 0
    and `penalty`; a case without either has 1 and 0 mm.

    Args:
        name: a protocol of `LESIONS`.
        labels, regions: see `RegionOverlap`.
        dilation, least: see `LesionRule`; None: the protocol's.
        penalty: mm.
        surface: see `RegionOverlap`; the challenge's code has `area`.
        ground_truth: not looked at: each batch has its own.

    Raises:
        ConfigError: a region has no class, or one that is not there; or a number is below 0.
    """

    families = tuple(LESIONS)

    def __init__(
        self,
        name: str,
        labels: LabelSpace,
        regions: Mapping[str, Sequence[str]] | None = None,
        dilation: int | None = None,
        least: float | None = None,
        penalty: float = PENALTY,
        surface: Surface = "area",
        ground_truth: Any = None,
    ) -> None:
        rule = LESIONS[name]
        self.name, self.surface, self.penalty = name, surface, penalty
        self.dilation = rule.dilation if dilation is None else dilation
        self.least = rule.least if least is None else least
        frozen = {"dilation": rule.dilation, "least": rule.least, "penalty": PENALTY, "surface": "area"}
        chosen = {"dilation": self.dilation, "least": self.least, "penalty": penalty, "surface": surface}
        for what, value in list(chosen.items())[:3]:
            if value < 0:  # type: ignore[operator]  # the numbers among them
                raise ConfigError(f"metrics: {what}", f"{value}", "use 0 or more")
        changed = ", ".join(f"{k}={v}" for k, v in chosen.items() if v != frozen[k])
        self.protocol = f"custom({name}, {changed})" if changed else name
        self.ignored, self.regions = labels.ignore_index, chosen_regions(labels, regions)
        self.result: LesionResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, mm, and whole lesions."""
        measure = name.rpartition("/")[2]
        if measure in COUNTS:
            return Unit(lower_is_better=measure != "TP", digits=0)
        return Unit(lower_is_better=True, digits=2) if measure == "HD95" else Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each case: `id`, and `regions`, for each of them `lesions`, rows of mm3, parts found, Dice and
        HD95 (None where nothing was found), `false`, the mm3 of each component that is none, and `scores`, the
        `MEASURES` of the case.

        Args:
            ids, predictions, targets: see `RegionOverlap.update`.

        Raises:
            DataError: a prediction has another size than its truth.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            found = {}
            for region, truth, chosen, spacing in region_masks(key, prediction, target, self.regions, self.ignored):
                lesions, false = self.measure(truth, chosen, spacing)
                found[region] = {"lesions": lesions, "false": false, "scores": self.case_scores(lesions, false)}
            records.append({"id": key, "regions": found})
        return records

    def measure(
        self, truth: np.ndarray, found: np.ndarray, spacing: Sequence[float]
    ) -> tuple[list[tuple[float, int, float, float | None]], list[float]]:
        """Lesions and false components of one region of one case, see `update`.

        Args:
            truth, found: bool `[*S]`.
            spacing: of the voxels, mm.
        """
        box = bounding_box(truth | found)
        if box is None:
            return [], []
        box = _wider(box, truth.shape, self.dilation)
        truth, found, voxel = truth[box], found[box], float(np.prod(spacing))
        touching = ndimage.generate_binary_structure(truth.ndim, truth.ndim)
        parts, count = ndimage.label(found, touching)
        groups = np.where(truth, ndimage.label(self._dilated(truth), touching)[0], 0)
        lesions, of_a_lesion = [], np.zeros(count + 1, bool)
        for number, place in enumerate(ndimage.find_objects(groups), 1):
            near = _wider(place, truth.shape, self.dilation)
            own = np.unique(parts[near][self._dilated(groups[near] == number)])
            own = own[own > 0]
            of_a_lesion[own] = True
            lesion, chosen = groups == number, np.isin(parts, own)
            size, distance = int(lesion.sum()), None
            if len(own):
                distances = element_distances if self.surface == "area" else voxel_distances
                distance = float(distances(lesion, chosen, spacing).hausdorff(95, self.surface == "pooled"))
            dice = 2 * int((lesion & chosen).sum()) / (size + int(chosen.sum()))
            lesions.append((size * voxel, len(own), dice, distance))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        return lesions, [float(sizes[part]) * voxel for part in range(1, count + 1) if not of_a_lesion[part]]

    def _dilated(self, mask: np.ndarray) -> np.ndarray:
        if not self.dilation:  # SciPy takes 0 for as often as something changes
            return mask
        faces_and_edges = ndimage.generate_binary_structure(mask.ndim, min(2, mask.ndim))
        return np.asarray(ndimage.binary_dilation(mask, faces_and_edges, self.dilation))

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Scores of cases, averaged over the cases of each region, and then over the regions; counts of all cases
        together.

        Returns:
            `<protocol>/<measure>`, and `<protocol>/<region>/<measure>` of each region; Dice in 0..1, HD95 in mm, TP, FP
            and FN in lesions.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records, "case")
        per_case = [
            {"case": r["id"], **{f"{g}/{m}": r["regions"][g]["scores"][m] for g in self.regions for m in MEASURES}}
            for r in records
        ]
        single = {}
        for region in self.regions:
            for measure in MEASURES:
                values = [row[f"{region}/{measure}"] for row in per_case]
                total = float(np.sum(values))
                single[f"{self.name}/{region}/{measure}"] = total if measure in COUNTS else total / len(values)
        numbers = {}
        for measure in MEASURES:
            values = [single[f"{self.name}/{region}/{measure}"] for region in self.regions]
            numbers[f"{self.name}/{measure}"] = float(np.sum(values) if measure in COUNTS else np.mean(values))
        numbers |= single
        regions = tuple(self.regions)
        self.result = LesionResult(numbers, self.protocol, per_case, regions, records, self.least, self.penalty)
        return numbers

    def case_scores(self, lesions: Sequence[Sequence[Any]], false: Sequence[float]) -> dict[str, float]:
        """The `MEASURES` of one region of one case, see `measure`."""
        kept = [lesion for lesion in lesions if lesion[0] > self.least]
        hits, count = sum(parts > 0 for _, parts, _, _ in kept), len(kept) + len(false)
        dice = sum(dice for _, _, dice, _ in kept) / count if count else 1.0
        distances = [self.penalty if distance is None else distance for *_, distance in kept]
        distance = (sum(distances) + len(false) * self.penalty) / count if count else 0.0
        return dict(zip(MEASURES, (dice, distance, hits, len(false), len(kept) - hits), strict=True))


def _kind(volume: float, parts: int, least: float) -> str:
    if volume <= least:
        return "left out"
    return "found" if parts else "missed"


def _wider(box: Sequence[slice], sides: Sequence[int], steps: int) -> tuple[slice, ...]:
    """A box with so many voxels around it, as far as there are some."""
    return tuple(
        slice(max(0, part.start - steps), min(side, part.stop + steps)) for part, side in zip(box, sides, strict=True)
    )
