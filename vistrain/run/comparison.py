"""Runs beside each other: what was done differently, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistrain import pictures
from vistrain.callbacks.progress import duration
from vistrain.errors import ConfigError
from vistrain.metrics.halves import differences, interval
from vistrain.pictures.page import Block, Heading, Page, Picture, Table, Text
from vistrain.run.finished_run import Run, best, flat, printed, unit
from vistrain.run.run_page import PLACES

if TYPE_CHECKING:
    from rich.table import Table as RichTable


NOTHING_SHARED = "No number is of two runs: they measure different things, or were not evaluated."


@dataclass(frozen=True)
class Comparison:
    """What two or more runs have in common, and what not; the first one is what the others are compared with.

    Attributes:
        names: of the runs, distinct.
        runs: what lies in their folders.
    """

    names: tuple[str, ...]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Comparison:
        """Read the runs.

        Raises:
            ConfigError: fewer than two, one twice, or a folder is no run.
        """
        if len(folders) < 2:
            raise ConfigError("compare", "with what?", "name two runs or more")
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise ConfigError("compare", "a run is named twice", "name different ones")
        runs = tuple(map(Run.read, folders))
        short = [run.name for run in runs]
        names = short if len(set(short)) == len(short) else [str(run.folder) for run in runs]
        return cls(tuple(names), runs)

    def numbers(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and a row for each number that two runs or more have: of tests, and the best ones while training.

        Where two tests were on the same samples, a difference comes with its 95 % interval over them, paired; one that
        leaves out 0 has a star.
        """
        headings = ["number", *self.names]
        headings += [f"{name} - {self.names[0]}" for name in self.names[1:]]
        rows = []
        for name in dict.fromkeys(name for run in self.runs for name in (*run.numbers, *run.evaluated)):
            values = [_value(run, name) for run in self.runs]
            if sum(value is not None for value in values) < 2:
                continue
            cells = ["" if value is None else printed(name, value) for value in values]
            against = [self._difference(name, other, values) for other in range(1, len(self.runs))]
            rows.append([name, *cells, *against])
        return headings, rows

    def _difference(self, name: str, other: int, values: Sequence[float | None]) -> str:
        first, second = values[0], values[other]
        if first is None or second is None or "-" in (printed(name, first), printed(name, second)):
            return ""
        said = f"{second - first:+.{unit(name).digits}f}"
        if not self.paired(other):
            return said
        spread = differences(self.runs[other].halves.get(name, ()), self.runs[0].halves.get(name, ()))
        ends = interval(second - first, spread)
        if ends is None:
            return said
        star = " *" if ends[0] > 0 or ends[1] < 0 else ""
        return f"{said} ({ends[0]:+.{unit(name).digits}f} to {ends[1]:+.{unit(name).digits}f}){star}"

    def best(self) -> str:
        """A sentence that names the best run by the first number that all were tested on; empty if there is none."""
        shared = [name for name in self.runs[0].numbers if all(name in run.numbers for run in self.runs)]
        if not shared:
            return ""
        first = shared[0]
        values = [(place, run.numbers[first]) for place, run in enumerate(self.runs)]
        place, value = best(first, values)
        return f"best by {first}: {self.names[place]}, {printed(first, value)}"

    def paired(self, other: int) -> bool:
        """Whether the tests of a run and of the first one were on the same samples."""
        first, second = (self.runs[i].tested.get("images") or {} for i in (0, other))
        return bool(first.get("digest")) and first.get("digest") == second.get("digest")

    def config(self) -> list[list[str]]:
        """A row for each key that differs: the key, and its value in each run; empty where a run has it not."""
        flats = [flat(run.config) for run in self.runs]
        keys = dict.fromkeys(key for config in flats for key in config if key not in PLACES)
        missing = object()
        differing = [key for key in keys if any(c.get(key, missing) != flats[0].get(key, missing) for c in flats)]
        return [[key, *(str(config[key]) if key in config else "" for config in flats)] for key in differing]

    def table(self) -> RichTable | str:
        """The numbers, for a Rich console."""
        from rich.table import Table as RichTable

        headings, rows = self.numbers()
        if not rows:
            return NOTHING_SHARED
        table = RichTable()
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        return table

    def write(self, folder: Path) -> list[Path]:
        """Write `compare.html`, which holds its pictures, `compare.md` and `curves.png`.

        Raises:
            DataError: they cannot be written.
        """
        page = Page(" · ".join(self.names))
        page.add(*self._page(folder))
        return page.write(folder / "compare.html")

    def _page(self, folder: Path) -> Iterator[Block]:
        headings, rows = self.numbers()
        yield Heading("Numbers")
        if rows:
            yield Table(headings, rows, headings[1:])
            if said := self.best():
                yield Text(said)
            if any(self.paired(other) for other in range(1, len(self.runs))):
                yield Text(
                    "In brackets the 95 % interval of the difference over the test's samples, paired (delete-half "
                    "jackknife); a star where it leaves out 0. It says nothing of what another seed would give.",
                    note=True,
                )
        else:
            yield Text(NOTHING_SHARED)
        yield Heading("Config")
        changed = self.config()
        yield Table(("key", *self.names), changed) if changed else Text("Nothing differs but where they are kept.")
        yield Heading("Curves")
        numbers = {name: run.folder / "metrics.csv" for name, run in zip(self.names, self.runs, strict=True)}
        there = {name: path for name, path in numbers.items() if path.is_file()}
        drawn = pictures.curves_together(there, folder / "curves.png")
        yield Picture(drawn, "the same numbers of all runs") if drawn else Text(NOTHING_SHARED)
        yield Heading("Time and memory")
        yield Table(("", *self.names), [[name, *cells] for name, cells in self._costs()])

    def _costs(self) -> Iterator[tuple[str, list[str]]]:
        def row(found: list[Any]) -> list[str]:
            return ["" if value is None else str(value) for value in found]

        held = [run.summary.get("memory_bytes") for run in self.runs]
        seconds = [run.summary.get("seconds") for run in self.runs]
        yield "steps", row([run.steps for run in self.runs])
        yield "time", row([None if value is None else duration(value) for value in seconds])
        yield "most memory", row([None if value is None else f"{value / 2**30:.2f} GiB" for value in held])
        hardware = [run.environment.get("hardware") or {} for run in self.runs]
        devices = [run.environment.get("devices") or [] for run in self.runs]
        on = [", ".join(d) or h.get("processor") for d, h in zip(devices, hardware, strict=True)]
        yield "on", row(on)
        yield "commit", row([(run.environment.get("commit") or {}).get("id") for run in self.runs])


def _value(run: Run, name: str) -> float | None:
    points = run.evaluated.get(name)
    return run.numbers.get(name) if points is None else best(name, points)[1]
