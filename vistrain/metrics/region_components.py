"""Which connected components of a prediction are worth keeping: a rule for each region, chosen on cases with a truth.

The largest component alone, or those of a least size, as nnU-Net chooses after its cross-validation (Isensee et al.
2021, arXiv 1904.08128; its program nnunetv2 is Apache-2.0); written from there. A rule is taken if its region's mean
Dice rises and that of none falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from vistrain.errors import DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.metrics.region_overlap import RegionOverlap
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Segmentation

LARGEST = "largest"
LEAST = tuple(round(start * 10.0**power, 6) for power in range(6) for start in (1, 3))  # mm^3
RULES: tuple[str | float, ...] = (LARGEST, *LEAST)
MOST = 200  # components of a region that are remembered one by one; the others count as one of the next size


@dataclass(frozen=True)
class ComponentChoice:
    """What was chosen.

    Attributes:
        rules: region -> `largest`, or the least size of a component in mm^3; regions without a rule stay as they are.
        before, after: region -> mean Dice, 0..1.
        cases: on how many cases.
    """

    rules: dict[str, str | float]
    before: dict[str, float]
    after: dict[str, float]
    cases: int

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table

        yield f"components that are kept, chosen on {self.cases} cases"
        table = Table()
        for column in ("region", "kept", "Dice before, %", "after, %"):
            table.add_column(column, overflow="fold", justify="left" if column in ("region", "kept") else "right")
        for region in self.before:
            rule = self.rules.get(region)
            said = "all" if rule is None else "the largest" if rule == LARGEST else f"from {rule:g} mm^3"
            cells = ("-" if math.isnan(v) else f"{100 * v:.2f}" for v in (self.before[region], self.after[region]))
            table.add_row(escape(region), said, *cells)
        yield table


class RegionComponents(Metric):
    """Dice of each region after the rule for its components that is best on the very same cases, see the module.

    What a rule removes becomes background. Of regions that share a class, one gets a rule: the one that gains most.

    Args:
        labels: of the network: its regions, or each class but the first.
        ground_truth: not looked at: each batch has its own.
    """

    families = ("components",)
    protocol = "components"

    def __init__(self, labels: LabelSpace, ground_truth: Any = None) -> None:
        self.regions, self.ignored = RegionOverlap("regions", labels).regions, labels.ignore_index
        self.result: ComponentChoice | None = None
        self._tables: dict[int, tuple[Mapping[str, Any], np.ndarray]] = {}

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares."""
        return Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each case: `id`, `mm3` of a voxel, `truth`, `found` and `hits` voxels of each region, and
        `parts`: for each region a row for each of its components, the largest first, with its voxels, and the found and
        hit voxels of each region in it.

        Args:
            ids, predictions, targets: see `RegionOverlap.update`.

        Raises:
            DataError: a prediction has another size than its truth.
        """
        self._tables.clear()
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            found, truth = prediction.semantic, target["label_map"]
            if found is None or found.shape != truth.shape:
                sizes = f"{None if found is None else list(found.shape)}, its truth {list(truth.shape)}"
                raise DataError(str(key), f"the prediction has the size {sizes}")
            spacing = target["spacing"].tolist() if "spacing" in target else [1.0] * truth.ndim
            records.append(
                {"id": key, "mm3": math.prod(spacing), **self._counts(truth.cpu().numpy(), found.cpu().numpy())}
            )
        return records

    def _counts(self, truth: np.ndarray, found: np.ndarray) -> dict[str, Any]:
        judged = np.ones(truth.shape, bool) if self.ignored is None else truth != self.ignored
        masks = {region: np.isin(found, channels) for region, channels in self.regions.items()}
        truths = {region: np.isin(truth, channels) for region, channels in self.regions.items()}
        counted = [masks[region] & judged for region in self.regions]
        hit = [masks[region] & truths[region] for region in self.regions]
        parts = {}
        for region, mask in masks.items():
            marks, count = components_of(mask)
            voxels = np.bincount(marks.ravel(), minlength=count + 1)
            columns = [voxels]
            for own, right in zip(counted, hit, strict=True):
                columns += [
                    np.bincount(marks[own], minlength=count + 1),
                    np.bincount(marks[right], minlength=count + 1),
                ]
            rows = np.stack(columns, 1)[1:]
            rows = rows[np.argsort(-rows[:, 0], kind="stable")]
            if len(rows) > MOST:
                rest = rows[MOST:].sum(0)
                rest[0] = rows[MOST, 0]
                rows = np.concatenate((rows[:MOST], rest[None]))
            parts[region] = rows.tolist()
        return {
            "truth": [int(truths[region].sum()) for region in self.regions],
            "found": [int(own.sum()) for own in counted],
            "hits": [int(right.sum()) for right in hit],
            "parts": parts,
        }

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mean Dice of each region under the rules that are best on the records.

        Returns:
            `components/Dice`, the mean of the regions, and `components/<region>/Dice`; 0..1.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records, "case")
        names = list(self.regions)
        tables = _mean(np.stack([self._table(record) for record in records]))  # [region, rule, region]
        before = _mean(np.stack([_dice(record, {}, names) for record in records]))
        gains: dict[str, tuple[float, str | float]] = {}
        for row, region in enumerate(names):
            change = np.nan_to_num(tables[row] - before)
            change[(change < 0).any(1)] = 0
            best = int(change.mean(1).argmax())
            if change[best, row] > 0:
                gains[region] = float(change[best].mean()), RULES[best]
        rules: dict[str, str | float] = {}
        for region in sorted(gains, key=lambda name: -gains[name][0]):
            if not any(set(self.regions[region]) & set(self.regions[other]) for other in rules):
                rules[region] = gains[region][1]
        after = _mean(np.stack([_dice(record, rules, names) for record in records]))
        self.result = ComponentChoice(
            rules,
            dict(zip(names, before.tolist(), strict=True)),
            dict(zip(names, after.tolist(), strict=True)),
            len(records),
        )
        known = after[~np.isnan(after)]
        mean = float(known.mean()) if len(known) else math.nan
        single = {f"components/{name}/Dice": float(value) for name, value in zip(names, after, strict=True)}
        return {"components/Dice": mean, **single}

    def choice(self) -> dict[str, Any]:
        """Region -> its rule, see `ComponentChoice`."""
        return {} if self.result is None else dict(self.result.rules)

    def _table(self, record: Mapping[str, Any]) -> np.ndarray:
        """Dice of each region (last axis) of a case under each rule (middle) for each region (first); looked up again
        for the same record, as intervals ask for it a thousand times."""
        known = self._tables.get(id(record))
        if known is None or known[0] is not record:
            names = list(self.regions)
            rows = [[_dice(record, {region: rule}, names) for rule in RULES] for region in names]
            known = self._tables[id(record)] = record, np.array(rows)
        return known[1]


def components_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers of the connected components of a mask, 0 outside; cells that touch at a corner are connected.

    Returns:
        integers `[*S]`, and how many components there are.
    """
    marks, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return marks, int(count)


def removed(voxels: np.ndarray, rule: str | float, mm3: float) -> np.ndarray:
    """Which components a rule removes, bool `[n]`.

    Args:
        voxels: of each component, `[n]`.
        rule: `largest`, or a least size in mm^3.
        mm3: of a voxel.
    """
    if rule == LARGEST:
        gone = np.ones(len(voxels), bool)
        if len(voxels):
            gone[int(np.argmax(voxels))] = False
        return gone
    return voxels * mm3 < float(rule)


def cleaned(
    classes: np.ndarray, rules: Mapping[str, str | float], regions: Mapping[str, Sequence[int]], mm3: float
) -> np.ndarray:
    """A label map without the components that rules remove: they become the background, class 0.

    Args:
        classes: `[*S]`; written to.
        rules: region -> rule, see `ComponentChoice`.
        regions: region -> class channels.
        mm3: of a voxel.
    """
    for region, rule in rules.items():
        marks, count = components_of(np.isin(classes, regions[region]))
        if count:
            gone = removed(np.bincount(marks.ravel(), minlength=count + 1)[1:], rule, mm3)
            classes[np.concatenate(([False], gone))[marks]] = 0
    return classes


def _dice(record: Mapping[str, Any], rules: Mapping[str, str | float], names: Sequence[str]) -> np.ndarray:
    """Dice of each region of a case; NaN where truth and prediction are empty."""
    truth, found, hits = (np.array(record[key], np.float64) for key in ("truth", "found", "hits"))
    for region, rule in rules.items():
        rows = np.array(record["parts"][region], np.float64).reshape(-1, 1 + 2 * len(names))
        gone = rows[removed(rows[:, 0], rule, record["mm3"])].sum(0)
        found, hits = found - gone[1::2], hits - gone[2::2]
    total = truth + found
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), math.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, without what is NaN; NaN where all is."""
    known = ~np.isnan(values)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, values, 0).sum(0) / np.maximum(count, 1), math.nan)
