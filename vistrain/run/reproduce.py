"""`vistrain reproduce`: a config's protocol on given weights and data, measured beside published, with a record.

The published numbers stand in the config's `reference`: `metric` and `value`, or `values` for several, and `tolerance`,
one number or one for each kind (`{psnr: 0.02, ssim: 0.001}`). The first half of this module reads no data and runs
without torch; it refuses what cannot be compared before anything is evaluated.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistrain import __version__, processes
from vistrain.errors import ConfigError, nearest
from vistrain.writing import whole_file

if TYPE_CHECKING:
    from rich.table import Table

ROUNDING = 1e-9  # 30.43 - 30.41 is not 0.02 in binary


@dataclass(frozen=True)
class Row:
    """One published number and what came out.

    Attributes:
        metric: such as `denoise/Set12/psnr`.
        published: in the paper's unit.
        tolerance: the largest difference that counts as the same, in that unit.
        measured: in that unit; None where the data has not this test set.
    """

    metric: str
    published: float
    tolerance: float
    measured: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None else self.measured - self.published

    @property
    def within(self) -> bool | None:
        """Whether the difference is within the tolerance, either way; None where nothing was measured."""
        return None if self.difference is None else abs(self.difference) <= self.tolerance + ROUNDING


@dataclass(frozen=True)
class Report:
    """What a reproduction found.

    Attributes:
        name: of the config.
        rows: one for each published number.
        protocols: names of the evaluation protocols.
        record: the file that was written.
        limit: of images that were evaluated; None: all, and only then are the numbers those that were published.
    """

    name: str
    rows: tuple[Row, ...]
    protocols: tuple[str, ...]
    record: Path
    limit: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every number that was measured is within its tolerance; not all may have been, see `complete`."""
        return all(row.within is not False for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether every published number was measured, on all images."""
        return self.limit is None and all(row.measured is not None for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the published numbers: `ok`, or too few images to judge by."""
        return self.ok or self.limit is not None

    @property
    def extent(self) -> str:
        """How many of the published numbers were measured, such as `1 of 3 numbers`."""
        return f"{sum(row.measured is not None for row in self.rows)} of {len(self.rows)} numbers"

    @property
    def verdict(self) -> str:
        """What came out, in a few words."""
        if self.limit is not None:
            return f"tried on {self.limit} images alone: not comparable with what was published"
        if self.complete:
            return "reproduced" if self.ok else "not reproduced: a number is outside its tolerance"
        outcome = "reproduced in part" if self.ok else "not reproduced"
        reason = "for the others there is no data" if self.ok else "of which one is outside its tolerance"
        return f"{outcome}: {self.extent} measured, {reason}"

    def table(self) -> Table:
        """Measured beside published, for a Rich console."""
        from rich.table import Table

        few = "" if self.limit is None else f" on {self.limit} images alone"
        title = f"{self.name}, protocol {', '.join(self.protocols)}: {self.extent}{few}"
        table = Table(title=title, title_justify="left")
        table.add_column("metric", overflow="fold")
        for heading in ("published", "measured", "difference", "tolerance"):
            table.add_column(heading, justify="right")
        table.add_column("")
        said = {True: "within", False: "OUTSIDE", None: "not measured"}
        for row in self.rows:
            digits = max(2, _digits(row.published), _digits(row.tolerance) + 1)
            values = (row.measured, row.difference)
            texts = ["-" if v is None else f"{v:{sign}.{digits}f}" for v, sign in zip(values, ("", "+"), strict=True)]
            judged = said[row.within] if self.limit is None or row.measured is None else "not judged"
            table.add_row(row.metric, f"{row.published:g}", *texts, f"{row.tolerance:g}", judged)
        return table

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self.table()


def published(reference: Any) -> tuple[Row, ...]:
    """The numbers that a config's `reference` publishes.

    Raises:
        ConfigError: there are none, they are no numbers, or there is no tolerance for one of them.
    """
    found = reference if isinstance(reference, dict) else {}
    values = dict(found.get("values") or {})
    if "value" in found:
        values = {str(found.get("metric")): found["value"], **values}
    if not values:
        raise ConfigError(
            "reference",
            "this config publishes no number",
            "write reference: {metric: ..., value: ..., tolerance: ...}, or evaluate it with `vistrain test`",
        )
    tolerance = found.get("tolerance")
    rows = []
    for metric, value in values.items():
        allowed = tolerance.get(str(metric).rpartition("/")[2]) if isinstance(tolerance, dict) else tolerance
        rows.append(Row(str(metric), _number(value, "value", metric), _number(allowed, "tolerance", metric)))
    return tuple(rows)


def _number(value: Any, name: str, metric: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"reference.{name}", f"{value!r} for {metric} is not a number")
    return float(value)


def compare(rows: Collection[Row], numbers: Mapping[str, float]) -> tuple[Row, ...]:
    """Published rows with what was measured.

    Args:
        rows: see `published`.
        numbers: of an evaluation, with or without `test/` before their names.

    Raises:
        ConfigError: none of the published numbers was measured.
    """
    from vistrain.metrics import unit

    names = {name.removeprefix("test/"): value for name, value in numbers.items()}
    filled = tuple(
        replace(row, measured=names[row.metric] * (100 if unit(row.metric).percent else 1))
        if row.metric in names
        else row
        for row in rows
    )
    if all(row.measured is None for row in filled):
        wanted = next(iter(rows)).metric
        remedy = nearest(wanted, names) or "does `metrics` name the protocol?"
        raise ConfigError("reference", f"none of its numbers was measured, such as {wanted!r}", remedy)
    return filled


def reproduce(
    config: dict[str, Any],
    *,
    weights: str | None = None,
    folder: Path | None = None,
    allow: Collection[str] = (),
    limit: int | None = None,
) -> Report:
    """Evaluate a config with published weights, compare with its `reference`, and write the record.

    Args:
        config: composed; its data section says which data.
        weights: the published file; may be missing where `run.weights` names it, or where nothing in the network is
            trained (bicubic enlargement).
        folder: for `reproduction.json`; by default `reproduced/<name>`.
        allow: packages beyond the default ones whose classes the config may name.
        limit: of images that each process evaluates, for a quick look. The record says so, and is neither complete nor
            reproduced.

    Returns:
        The report; on every process of a distributed run, written by the first.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend; nothing was evaluated then, or nothing
            that can be compared.
    """
    rows, reference = published(config.get("reference")), config["reference"]
    if limit is not None:
        config = _limited(config, limit)
    run_section = dict(config.get("run") or {})
    weights = weights or run_section.get("weights")
    if weights is None:
        _refuse_untrained(config, allow)
    name = str(run_section.get("name") or "run")
    folder = folder or Path("reproduced") / name
    started = time.perf_counter()
    from vistrain import run
    from vistrain.checkpoints import locate, with_digest
    from vistrain.surroundings import commit, environment, hardware

    if weights is not None and reference.get("sha256"):
        weights = with_digest(weights, str(reference["sha256"]))
    # The evaluation's own folder: a run of the same name is neither looked at nor written to.
    numbers = run.test({**config, "run": {**run_section, "folder": str(folder)}}, weights=weights, allow=allow)
    protocols = tuple(config.get("metrics") or ())
    report = Report(name, compare(rows, numbers), protocols, folder / "reproduction.json", limit)
    if processes.is_first():
        facts = environment()
        record = {
            "config": name,
            "date": facts.pop("date"),
            "commit": commit(),
            "vistrain": __version__,
            "reproduced": report.ok and limit is None,
            "limit": limit,
            "complete": report.complete,
            "results": [{**asdict(r), "difference": r.difference, "within": r.within} for r in report.rows],
            "protocols": report.protocols,
            "numbers": numbers,
            "weights": None if weights is None else locate(weights).identity(),
            "reference": reference,
            "composed": dict(config),
            "seconds": round(time.perf_counter() - started, 1),
            "hardware": hardware(),
            "environment": facts,
        }
        with whole_file(report.record) as path:
            path.write_text(json.dumps(_finite(record), indent=2) + "\n", encoding="utf-8")
    return report


def _limited(config: dict[str, Any], limit: int) -> dict[str, Any]:
    """The config with so few test images for each process, one in a batch.

    Raises:
        ConfigError: that is none.
    """
    if limit < 1:
        raise ConfigError("--limit", f"{limit} images", "give 1 or more")
    data, trainer = (dict(config.get(name) or {}) for name in ("data", "trainer"))
    return {**config, "data": data | {"eval_batch_size": 1}, "trainer": trainer | {"limit_test_batches": limit}}


def _refuse_untrained(config: Mapping[str, Any], allow: Collection[str]) -> None:
    """A network that has weights needs the published ones."""
    from vistrain import run
    from vistrain.devices import on_meta

    has_weights = "backbone" in config.get("model", {})
    if not has_weights:
        with on_meta():
            has_weights = next(run.build_parts(config, allow).model.parameters(), None) is not None
    if has_weights:
        reference = config["reference"]
        source = ", ".join(str(reference[key]) for key in ("weights", "source") if reference.get(key))
        remedy = "give --weights FILE" + (f"; published: {source}" if source else "")
        raise ConfigError("reproduce", "with which weights?", remedy)


def _digits(value: float) -> int:
    """Decimals that a number is written with."""
    return len(f"{value:g}".partition(".")[2])


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
