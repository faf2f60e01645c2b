"""What lies in a run's folder, read for people: a page about one run, and runs beside each other.

Nothing here needs the network or the data of the run.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistrain.config import read_file
from vistrain.errors import ConfigError, DataError
from vistrain.metrics import Unit, unit_of


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
        folds = _json(folder / "folds.json")
        if folds and (folder / "fold_0" / "config.yaml").is_file():
            numbers = {f"test/{name}": value for name, value in (folds.get("numbers") or {}).items()}
            images = {"digest": folds.get("digest")}
            tested = {"numbers": numbers, "halves": folds.get("halves"), "images": images}
            return cls(folder, read_file(folder / "fold_0" / "config.yaml"), {}, {}, tested, [])
        if not (folder / "config.yaml").is_file():
            remedy = "name the folder that `vistrain fit` wrote, such as runs/detection"
            raise ConfigError(str(folder), "is no run: there is no config.yaml in it", remedy)
        environment, summary, tested = (_json(folder / f"{name}.json") for name in ("environment", "summary", "test"))
        config, rows = read_file(folder / "config.yaml"), _rows(folder / "metrics.csv")
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
        first, *rest = [str(word) for word in self.environment.get("command") or ("",)]
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


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(str(path), "cannot be read: it is no JSON", "remove it, and make it again") from error
    return found if isinstance(found, dict) else {}
