"""Looking at a set of pairs before a GPU is spent on it: every file is opened, sizes are compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from vistrain.data.base.check import Findings, SplitFindings, opened, refusals, write_report
from vistrain.data.base.images import has_several
from vistrain.data.base.module import SplitName
from vistrain.data.correspondence.module import ImagePairs, MatchingFolders
from vistrain.errors import ConfigError, DataError
from vistrain.pictures import grid, save_picture
from vistrain.pictures.displacements import coloured_displacements, displacement_range

SAMPLES = 4


@dataclass
class MatchingSplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        pairs: how many there are.
        frequent_sizes: `width x height` -> pairs, the ten most frequent.
        known: share of the pixels whose displacement is known, of those that can be read; 0..1.
        longest: displacement, pixels.
    """

    pairs: int = 0
    frequent_sizes: dict[str, int] = field(default_factory=dict)
    known: float = 0.0
    longest: float = 0.0


@dataclass
class MatchingReport(Findings):
    """The findings of `check_matches`.

    Attributes:
        splits: by name.
    """

    splits: dict[str, MatchingSplitReport]

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        table = Table(title="pairs", title_justify="left")
        table.add_column("")
        for name in self.splits:
            table.add_column(name, justify="right")
        splits = self.splits.values()
        rows = {
            "pairs": [f"{s.pairs:,}" for s in splits],
            "unusable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits],
            "most frequent size": [next(iter(s.frequent_sizes), "-") for s in splits],
            "pixels whose displacement is known": [f"{100 * s.known:.1f} %" for s in splits],
            "longest displacement, pixels": [f"{s.longest:.1f}" for s in splits],
        }
        for title, cells in rows.items():
            table.add_row(title, *cells)
        return Group(table, *(line for name, split in self.splits.items() for line in refusals(name, split)))


def check_matches(data: MatchingFolders, output: str | Path) -> MatchingReport:
    """Opens every file, and compares the sizes of images and displacements.

    Writes `report.json`, and `samples-*.png`: first image, second image, displacements.

    Args:
        data: the data module; a test split of the validation pairs is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        DataError: the output cannot be written.
    """
    data.prepare_data()  # a generated set is written on first use
    output, report = Path(output), MatchingReport(splits={})
    names: list[SplitName] = ["train", "val"]
    if data.pair_splits["test"] != data.pair_splits["val"]:
        names.append("test")
    for name in names:
        found = report.splits[name] = MatchingSplitReport()
        try:
            samples = ImagePairs(data.pairs(name), data.finds)
        except (DataError, ConfigError) as error:
            found.problem = str(error)
            continue
        found.pairs = len(samples)
        found.refused += data.refusals(name, len(samples))
        _open_all(samples, name, found, data.crop if name == "train" else None)
        report.pictures += _draw(samples, name, found, output)
    write_report(report.to_dict(), output)
    return report


def _open_all(samples: ImagePairs, name: str, found: MatchingSplitReport, crop: tuple[int, int] | None) -> None:

    def open_one(index: int) -> tuple[tuple[int, int], int, float, list[str]]:
        sample = samples.sample(index)
        if crop is not None:
            ImagePairs([samples.files[index]], samples.finds, crop).sample(0)  # refuses what is smaller
        lengths = np.linalg.norm(sample.field, axis=0)
        known = np.isfinite(lengths)
        files = samples.files[index]
        several = [str(path) for path in (files.first, files.second) if has_several(path)]
        return sample.full, int(known.sum()), float(lengths[known].max(initial=0.0)), several

    sizes: Counter[tuple[int, int]] = Counter()
    known = 0
    for _, result in opened(range(len(samples)), open_one, f"opening {name}"):
        if isinstance(result, DataError):
            found.refuse_file(result)
            continue
        size, pixels, longest, several = result
        sizes[size] += 1
        known, found.longest = known + pixels, max(found.longest, longest)
        found.several += several
    total = sum(height * width * count for (height, width), count in sizes.items())
    found.known = known / total if total else 0.0
    found.frequent_sizes = {f"{w} x {h}": n for (h, w), n in sizes.most_common(10)}


def _draw(samples: ImagePairs, name: str, found: MatchingSplitReport, output: Path) -> list[str]:
    """Writes a split's pictures; returns their paths."""
    rows: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    for index in np.random.default_rng(0).permutation(len(samples)).tolist():  # the same ones each time
        files = samples.files[index]
        bad = {str(path) for path in (files.first, files.second, files.truth)} & found.bad_files.keys()
        if len(rows) == SAMPLES or bad:
            continue
        sample = samples.sample(index)
        most = displacement_range(sample.field)
        rows.append([sample.first, sample.second, coloured_displacements(sample.field, most)])
        captions.append([sample.name, "second", f"{samples.finds}, up to {most:.1f} px"])
    if not rows:
        return []
    save_picture(grid(rows, captions), output / f"samples-{name}.png")
    return [str(output / f"samples-{name}.png")]
