"""Cross-validation: a run for each fold, measured on what it did not train on, and all of them reported together."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from vistrain import metrics, processes
from vistrain.config import compose
from vistrain.data.base.storage import read_json
from vistrain.errors import ConfigError, DataError
from vistrain.metrics.halves import Tested
from vistrain.run.engine import fit, test
from vistrain.run.folders import folder_of, own_run
from vistrain.run.parts import data_of
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

RESAMPLED = 1000  # times, for intervals
WITHIN = (2.5, 97.5)  # percentiles
RECORDS = "records.json"


@dataclass
class FoldReport:
    """All folds together.

    Attributes:
        folder: of the whole; each fold has its own below it.
        by_fold: number of the fold -> its numbers.
        numbers: of all samples of all folds.
        intervals: name -> lower and upper end of the 95 % interval over samples (bootstrap: the same metric of samples
            drawn with repetition).
        spread: name -> standard deviation over the folds.
        samples: how many there are.
        results: what each metric prints of all samples.
        missing: folds that were not run yet; then nothing is known of all.
        choices: protocol -> settings of prediction that are best on all samples, see `Metric.choice`.
        tested: numbers of random halves of all samples, with which folds of other configs are compared.
    """

    folder: Path
    by_fold: dict[int, dict[str, float]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    results: list[Any] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    tested: Tested = field(default_factory=Tested)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as in `folds.json`."""
        names = ("numbers", "intervals", "spread", "samples", "missing", "choices")
        by_fold = {str(k): v for k, v in self.by_fold.items()}
        return {**{name: vars(self)[name] for name in names}, "by_fold": by_fold, **asdict(self.tested)}

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        table = Table(box=None, pad_edge=False)
        for column in ("", *(f"fold {fold}" for fold in self.by_fold), "all", "95 % interval", "over folds"):
            table.add_column(column, overflow="fold", justify="right" if column else "left")  # nothing is cut
        names = list(self.numbers or next(iter(self.by_fold.values()), {}))
        for name in names:
            unit = metrics.unit(name)

            def cell(value: float | None, factor: float = 100 if unit.percent else 1) -> str:
                return "-" if value is None or math.isnan(value) else f"{factor * value:.2f}"

            interval = self.intervals.get(name)
            between = "" if interval is None else f"{cell(interval[0])} to {cell(interval[1])}"
            spread = self.spread.get(name)
            table.add_row(
                escape(name) + (", %" if unit.percent else ""),
                *(cell(numbers.get(name)) for numbers in self.by_fold.values()),
                cell(self.numbers.get(name)),
                between,
                "" if spread is None else f"± {cell(spread)}",
            )
        yield from self.results
        yield table
        if self.numbers:
            yield f"{len(self.by_fold)} folds, {self.samples} cases, each measured once by the run that had not seen it"
        else:
            yield f"folds {', '.join(map(str, self.missing))} are missing: run the command again for them"


def cross_validate(
    config: dict[str, Any], only: Sequence[int] | None = None, debug: bool = False, allow: Collection[str] = ()
) -> FoldReport:
    """Train and measure the folds of a config one after another; what is done already is not done again.

    Each fold's last state is measured, not its best, which would have been chosen on the fold itself.

    Args:
        config: composed and resolved.
        only: folds to run; all if None. Several processes may run some each: the report is made of all that are done.
        debug: see `fit`.
        allow: see `fit`.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend.
    """
    data = data_of(config, allow)
    if data.folds < 2:
        remedy = "use data that is dealt to folds (`data.folds`), or `vistrain fit`"
        raise ConfigError("data.type", f"{type(data).__name__} has no folds", remedy)
    names = tuple(config.get("metrics") or ())
    if not names:
        raise ConfigError("metrics", "no number to report", "name a protocol")
    chosen = range(data.folds) if only is None else only
    for fold in chosen:
        if not 0 <= fold < data.folds:
            raise ConfigError("--only", f"{fold} of {data.folds} folds", f"0 to {data.folds - 1}")
    whole = folder_of(config)
    for fold in chosen:
        folder = whole / f"fold_{fold}"
        own = compose([], start=config, changes={"data": {"fold": fold}, "run": {"folder": str(folder)}})
        begun = own_run(own)  # refuses what another config has left there
        if begun is not None and (folder / RECORDS).is_file():
            log.info("fold %d of %d: done before", fold, data.folds)
            continue
        log.info("fold %d of %d", fold, data.folds)
        fit(own, resume=begun, debug=debug, allow=allow)
        test(checkpoint=folder / "last.ckpt", allow=allow, records=folder / RECORDS)
    return report(config, whole, data.folds, allow)


def average(config: dict[str, Any], folders: Sequence[Path], allow: Collection[str] = ()) -> FoldReport:
    """Measure the mean of the networks that several configs have left for each fold, on what none of them has seen.

    Args:
        config: composed and resolved: the data, the metrics, and where the report goes.
        folders: of `cross_validate`, all folds done.
        allow: see `fit`.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend, such as folders without all folds.
    """
    if len(folders) < 2:
        raise ConfigError("--average", "one folder", "name two or more")
    data, whole = data_of(config, allow), folder_of(config)
    if any(whole.resolve() == folder.resolve() for folder in folders):
        raise ConfigError("run.folder", f"{whole} is one of the averaged ones", "name another one")
    for fold in range(data.folds):
        files = [folder / f"fold_{fold}" / "last.ckpt" for folder in folders]
        if missing := [file for file in files if not file.is_file()]:
            raise DataError(str(missing[0]), "is missing", "run all folds of each config first")
        folder = whole / f"fold_{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        first, *others = files
        with whole_file(folder / "config.yaml") as path:
            path.write_text((first.parent / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        test(
            {"metrics": config.get("metrics")},
            checkpoint=first,
            allow=allow,
            records=folder / RECORDS,
            others=others,
            folder=folder,
        )
    return report(config, whole, data.folds, allow)


def report(config: Mapping[str, Any], whole: Path, folds: int, allow: Collection[str] = ()) -> FoldReport:
    """The numbers of all folds that are done, and `folds.json`.

    Raises:
        DataError: records cannot be read, or the same sample is in two folds.
    """
    data, found = data_of(config, allow), FoldReport(whole)
    merged: dict[str, list[Any]] = {}
    for fold in range(folds):
        file = whole / f"fold_{fold}" / RECORDS
        if not file.is_file():
            found.missing.append(fold)
            continue
        remedy = "delete it, and run the command again"
        try:
            content = read_json(file)
        except DataError as error:
            raise DataError(str(file), error.problem, remedy) from error
        if not isinstance(content, dict) or not all(isinstance(records, list) for records in content.values()):
            raise DataError(str(file), "holds no lists of records", remedy)
        found.by_fold[fold] = {}
        for name, records in content.items():
            metric = metrics.protocol(name, labels=data.labels, ground_truth=None)
            found.by_fold[fold] |= metric.compute(records)
            known = {str(record["id"]) for record in merged.get(name, [])}
            if twice := known & {str(record["id"]) for record in records}:
                raise DataError(sorted(twice)[0], "is in two folds", "delete what older folds have left, and run again")
            merged.setdefault(name, []).extend(records)
    if not found.missing:
        _together(found, merged, data)
    if processes.is_first():
        with whole_file(whole / "folds.json") as path:
            path.write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    return found


def _together(found: FoldReport, merged: Mapping[str, Sequence[Any]], data: Any) -> None:
    draw = np.random.default_rng(0)
    for name, records in merged.items():
        metric = metrics.protocol(name, labels=data.labels, ground_truth=None)
        numbers = metric.compute(records)
        found.numbers |= numbers
        found.results.append(metric.result)
        found.choices[name] = metric.choice()
        found.tested.add("test/", metric, records)
        found.samples = len(records)
        again = metrics.protocol(name, labels=data.labels, ground_truth=None)
        drawn: dict[str, list[float]] = {number: [] for number in numbers}
        for _ in range(RESAMPLED):
            places = draw.integers(len(records), size=len(records))
            for number, value in again.compute([records[place] for place in places]).items():
                drawn[number].append(value)
        for number, values in drawn.items():
            known = [value for value in values if not math.isnan(value)]
            if known:
                low, high = np.percentile(known, WITHIN)
                found.intervals[number] = float(low), float(high)
    for number in found.numbers:
        values = [fold[number] for fold in found.by_fold.values() if not math.isnan(fold.get(number, math.nan))]
        if len(values) > 1:
            found.spread[number] = float(np.std(values, ddof=1))
