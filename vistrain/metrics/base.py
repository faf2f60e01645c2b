"""What a metric is to tasks, commands and tables, and what its numbers are measured in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vistrain.contract import Contract
from vistrain.errors import DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """What a number is measured in.

    Attributes:
        percent: whether it is a share, 0..1, that papers print 100 times as large.
        lower_is_better: the direction of progress.
        digits: behind the point, as the metric prints it.
    """

    percent: bool = False
    lower_is_better: bool = False
    digits: int = 4


class Metric(Contract, ABC):
    """A computation on the samples of a split. Records of several processes are gathered by who runs it.

    Attributes:
        families: first parts of the names of its numbers (`coco` of `coco/AP`).
        offers: the names of its numbers, where the data does not decide them; empty: any of its families.
        protocol: the name to print beside the numbers, or `custom(...)` naming what differs from it.
        result: the latest `compute`, as a Rich console prints it; None before one.
    """

    families: ClassVar[tuple[str, ...]] = ()
    offers: ClassVar[tuple[str, ...]] = ()
    protocol: str
    result: Any = None

    @abstractmethod
    def update(self, ids: Sequence[Any], predictions: Sequence[Any], targets: Sequence[Any]) -> list[dict[str, Any]]:
        """One record for each sample: a plain dict with its `id`, small, without tensors."""

    @abstractmethod
    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        """Named numbers (`family/name`) from the records of all samples, the most important one first."""

    def choice(self) -> dict[str, Any]:
        """Settings of prediction that the latest `compute` found best on its samples, plain values; nothing, here."""
        return {}

    @classmethod
    def unit(cls, name: str) -> Unit:
        """What one of its numbers (`coco/AP`) is measured in; a plain number of which much is good, if it says
        nothing."""
        return Unit()


def refuse_nothing(records: Collection[Any], noun: str = "image") -> None:
    """What `Metric.compute` says first.

    Raises:
        DataError: there are no records.
    """
    if not records:
        raise DataError("evaluation", f"no {noun} was evaluated")


def numbers_of_sets(metric: Metric, records: Sequence[Record], set_of: Callable[[Any], str]) -> dict[str, float]:
    """The numbers of each set of samples alone, where several are evaluated together.

    Args:
        metric: its `result` is that of the last set afterwards.
        records: of all samples.
        set_of: a sample's id -> the name of its set; empty for all where there is one.

    Returns:
        `coco/AP` of a set as `coco/name of the set/AP`; nothing where there is one.
    """
    sets: dict[str, list[Record]] = {}
    for record in records:
        sets.setdefault(set_of(record["id"]), []).append(record)
    found = {}
    for name, own in sets.items() if sets.keys() - {""} else ():
        for key, value in metric.compute(own).items():
            family, _, number = key.partition("/")
            found[f"{family}/{name}/{number}"] = value
    return found
