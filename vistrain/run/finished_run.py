"""What lies in a run's folder, read for people: a page about one run, and runs beside each other.

Nothing here needs the network or the data of the run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistrain.config import read_file
from vistrain.config.builder import check_value
from vistrain.data.base.storage import read_json
from vistrain.errors import ConfigError, DataError
from vistrain.metrics import Unit, unit_of

# What is read of the files of a run, and its types; anything else in them is free.
ENVIRONMENT = {
    "command": list[str], "started": list[str], "devices": list[str], "hardware": dict[str, Any],
    "commit": dict[str, Any], "versions": dict[str, Any],
}  # fmt: skip
SUMMARY = {
    "steps": int, "seconds": float, "memory_bytes": float, "samples": dict[str, int], "unreadable": list[str],
    "extremes": dict[str, Any],
}  # fmt: skip
TESTED = {"numbers": dict[str, Any], "halves": dict[str, Any], "images": dict[str, Any], "changes": list[str]}
FOLDS = {"numbers": dict[str, Any], "halves": dict[str, Any], "digest": str}
REMEDY = "remove it, and make it again"
CONFIG = {"model": dict[str, Any], "data": dict[str, Any], "trainer": dict[str, Any], "metrics": list[str]}


@dataclass(frozen=True)
class Run:
    """A run's files; what is missing is empty.

    Attributes:
        folder: of the run, or of one stage of it.
        config: composed.
        environment: versions, command, commit, hardware (`environment.json`).
        summary: time, memory, samples, files that were skipped (`summary.json`).
        tested: what `vistrain test` wrote (`test.json`).
        rows: of `metrics.csv`: finite numbers by name, by ascending step.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    tested: dict[str, Any]
    rows: list[dict[str, float]]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a folder; that of `vistrain folds` is the config of its first fold, and the numbers of all cases.

        Raises:
            ConfigError: it is not that of a run.
        """
        stages = sorted(folder.glob("stage_*"), key=lambda path: (len(path.name), path.name))
        if stages and not (folder / "metrics.csv").is_file():
            folder = stages[-1]  # what the run came to
        folds = _json(folder / "folds.json", FOLDS)
        if folds and (folder / "fold_0" / "config.yaml").is_file():
            numbers = {f"test/{name}": value for name, value in (folds.get("numbers") or {}).items()}
            images = {"digest": folds.get("digest")}
            tested = {"numbers": numbers, "halves": folds.get("halves"), "images": images}
            return cls(folder, read_file(folder / "fold_0" / "config.yaml"), {}, {}, tested, [])
        if not (folder / "config.yaml").is_file():
            remedy = "name the folder that `vistrain fit` wrote, such as runs/detection"
            raise ConfigError(str(folder), "is no run: there is no config.yaml in it", remedy)
        environment = _json(folder / "environment.json", ENVIRONMENT)
        summary, tested = _json(folder / "summary.json", SUMMARY), _json(folder / "test.json", TESTED)
        config = _typed(read_file(folder / "config.yaml"), CONFIG, folder / "config.yaml")
        rows = _rows(folder / "metrics.csv")
        return cls(folder, config, environment, summary, tested, rows)

    @property
    def name(self) -> str:
        """As the folder is called; of a stage with the run's."""
        return f"{self.folder.parent.name}/{self.folder.name}" if self.folder.name[:6] == "stage_" else self.folder.name

    @property
    def numbers(self) -> dict[str, float]:
        """Of the test, by name (`test/coco/AP`)."""
        found = self.tested.get("numbers")
        return {str(k): v for k, v in found.items() if _is_number(v)} if isinstance(found, dict) else {}

    @property
    def halves(self) -> dict[str, list[float | None]]:
        """Of random halves of the test's samples, see `metrics.halves`."""
        found = self.tested.get("halves")
        return dict(found) if isinstance(found, dict) else {}

    @property
    def evaluated(self) -> dict[str, list[tuple[int, float]]]:
        """Numbers of the evaluations while training, by name (`val/coco/AP`): `(step, value)`."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows:
            for name, value in row.items():
                if name.startswith("val/"):
                    found.setdefault(name, []).append((int(row["step"]), value))
        return found

    def column(self, name: str) -> list[float]:
        """One column of `metrics.csv`, without its blanks."""
        return [row[name] for row in self.rows if name in row]

    @property
    def steps(self) -> int:
        """Optimizer steps that were done; of a run that left no summary, that were logged."""
        done = self.summary.get("steps")
        if isinstance(done, int):
            return done
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def command(self) -> list[str]:
        """What the run was started with, as one would write it."""
        words = self.environment.get("started") or self.environment.get("command")  # of a run that went on, the first
        first, *rest = [str(word) for word in words or ("",)]
        return ["vistrain" if first == "__main__.py" else first, *rest] if first else []

    @property
    def length(self) -> str:
        """How long it was meant to be."""
        trainer = self.config.get("trainer") or {}
        wanted = [f"{trainer[key]} {word}" for key, word in (("max_epochs", "epochs"), ("max_steps", "steps"))
                  if _is_number(trainer.get(key)) and trainer[key] > 0]  # fmt: skip
        return ", at most ".join(wanted) or "without an end"


def unit(name: str) -> Unit:
    """What a number of a run is measured in: `test/coco/AP`, `val/loss`."""
    split, _, rest = name.partition("/")
    of = unit_of(rest if split in ("val", "test") else name)
    return of or Unit(lower_is_better=name.rpartition("/")[2].startswith("loss"))


def printed(name: str, value: float) -> str:
    """A number with the digits of its protocol."""
    if value == -1 and unit(name).percent:
        return "-"
    return f"{value:.{unit(name).digits}f}"


def best(name: str, points: list[tuple[int, float]]) -> tuple[int, float]:
    """Step and value of a number's best evaluation."""
    return (min if unit(name).lower_is_better else max)(points, key=lambda point: point[1])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}".lstrip(".")
        found |= flat(value, name) if isinstance(value, dict) and value else {name: value}
    return found


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: _float(cell) for name, cell in row.items() if name} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    finite = [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]
    return [row for row in finite if "step" in row]


def _float(cell: Any) -> float:
    try:
        return float(cell or "nan")
    except (TypeError, ValueError):
        return math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(path: Path, types: Mapping[str, Any]) -> dict[str, Any]:
    """The object in a file of a run, its values of their types; empty where there is none.

    Raises:
        DataError: it is no JSON, or a value is of another type.
    """
    if not path.is_file():
        return {}
    return _typed(read_json(path, REMEDY), types, path)


def _typed(found: Any, types: Mapping[str, Any], path: Path) -> dict[str, Any]:
    kept = {key: value for key, value in found.items() if value is not None} if isinstance(found, dict) else {}
    try:
        return kept | {key: check_value(kept[key], hint, key) for key, hint in types.items() if key in kept}
    except ConfigError as error:
        raise DataError(str(path), f"is damaged: {error.where}: {error.problem}", REMEDY) from error
