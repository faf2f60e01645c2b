"""The samples that an evaluation did worst and best on."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vistrain.errors import DataError
from vistrain.metrics import Metric, Record
from vistrain.tasks.base.task import Batch, Cells, Task

SHOWN = 8  # of each kind
LOOKED_AT = 200  # samples of an evaluation, spread over it
SECONDS = 10.0  # no sample is measured after that time


@dataclass
class Extremes:
    """Keeps what is drawn of the worst and the best samples of one evaluation, while it runs.

    A sample is judged by the first number of the first protocol, computed of that sample alone: its own AP, its own
    mIoU, its own PSNR.

    Args:
        side, threshold: see `Task.draw_sample`.
        total: samples of the evaluation, as far as this process sees them.

    Attributes:
        worst, best: `(key, what is drawn)` by ascending keys, the most extreme sample first.
        number: the name of the number; empty before the first sample.
        looked_at: how many samples were measured.
    """

    side: int
    threshold: float
    total: int
    worst: list[tuple[float, Cells]] = field(default_factory=list)
    best: list[tuple[float, Cells]] = field(default_factory=list)
    number: str = ""
    looked_at: int = 0
    _seen: int = 0
    _seconds: float = 0.0

    def look(
        self, task: Task, metric: Metric, batch: Batch, predictions: Sequence[Any], records: Sequence[Record]
    ) -> None:
        """Measure some samples of a batch.

        Args:
            task: draws them.
            metric: of the first protocol.
            batch, predictions: as the evaluation has them.
            records: of the metric, one for each sample.
        """
        begun, step = time.perf_counter(), max(self.total // LOOKED_AT, 1)
        for index, record in enumerate(records):
            self._seen += 1
            if self._seen % step or self._seconds + time.perf_counter() - begun > SECONDS:
                continue
            try:
                self.number, value = next(iter(metric.compute([record]).items()))
            except (DataError, StopIteration):  # nothing to measure in it
                continue
            unit = metric.unit(self.number)
            if not math.isfinite(value) or (value == -1 and unit.percent):
                continue
            self.looked_at += 1
            badness = value if unit.lower_is_better else -value
            # Lowest keys first. Among equal ones the first count as worst and the last as best: none is both.
            for kept, key, find in (
                (self.worst, -badness, bisect.bisect_right), (self.best, badness, bisect.bisect_left),
            ):  # fmt: skip
                place = find([known for known, _ in kept], key)
                if place < SHOWN:
                    cells = task.draw_sample(batch, index, predictions[index], self.side, self.threshold)
                    kept.insert(place, (key, _with_value(cells, value, unit.digits)))
                    del kept[SHOWN:]
        self._seconds += time.perf_counter() - begun

    def rows(self) -> dict[str, list[Cells]]:
        """`worst` and `best`: what is drawn of each sample. None is both; fewer of each, then."""
        count = min(SHOWN, self.looked_at // 2)
        return {
            "worst": [cells for _, cells in self.worst[:count]],
            "best": [cells for _, cells in self.best[:count]],
        }


def _with_value(cells: Cells, value: float, digits: int) -> Cells:
    """With the number in the first caption."""
    (caption, image), *rest = cells
    return [(f"{value:.{digits}f}  {caption}", image), *rest]
