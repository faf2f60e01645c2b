"""Looking at a restoration set before a GPU is spent on it: every file is opened, every pair compared in size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from vistrain.data.base.check import Findings, SplitFindings, opened, refusals, write_report
from vistrain.data.base.images import has_several
from vistrain.data.base.module import SplitName
from vistrain.data.restoration.module import RestorationData
from vistrain.data.restoration.samples import RestorationDataset
from vistrain.errors import ConfigError, DataError
from vistrain.pictures import bars, grid, save_picture

SAMPLES = 6


@dataclass
class PairSplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        images: how many pairs there are.
        sets: name -> pairs.
        degraded: of these with a file of their own for the degraded image; the others are degraded on the fly.
        image_sizes: `width x height` of the truth -> images, the ten most frequent.
        smallest_side: of all degraded images, pixels; 0 if none can be read.
    """

    images: int = 0
    sets: dict[str, int] = field(default_factory=dict)
    degraded: int = 0
    image_sizes: dict[str, int] = field(default_factory=dict)
    smallest_side: int = 0


@dataclass
class PairReport(Findings):
    """The findings of `check_pairs`.

    Attributes:
        splits: by name.
        scale: how many times smaller degraded images are.
        patch: side of the training patches in pixels of the degraded image.
    """

    splits: dict[str, PairSplitReport]
    scale: int
    patch: int

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        return Group(_summary(self), *_findings(self))


def check_pairs(data: RestorationData, output: str | Path) -> PairReport:
    """Opens every file of a restoration set and compares the sizes of pairs.

    Writes `report.json`, `sets-*.png` (images per set) and `samples-*.png` (degraded beside truth).

    Args:
        data: the data module; a test split of the validation sets is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        DataError: the output cannot be written.
    """
    data.prepare_data()  # a generated set is written on first use
    output = Path(output)
    report = PairReport(splits={}, scale=data.scale, patch=data.patch)
    names: list[SplitName] = ["train", "val"]
    if data.sets["test"] != data.sets["val"]:
        names.append("test")
    for name in names:
        found = PairSplitReport()
        report.splits[name] = found
        try:
            pairs = data.pairs(name)
        except (DataError, ConfigError) as error:
            found.problem = str(error)
            continue
        degradation = data.degradation if name == "train" else data.eval_degradation
        whole = RestorationDataset(pairs, data.scale, data.color, degradation)  # of training images, too
        found.images, found.sets = len(pairs), dict(Counter(key.partition("/")[0] for key, _ in pairs))
        found.refused += data.refusals(name, len(pairs) * (data.times if name == "train" else 1))
        found.degraded = sum(pair.low is not None for _, pair in pairs)
        _open_all(whole, name, found)
        report.pictures += _draw(whole, name, found, output)
    write_report(report.to_dict(), output)
    return report


def _open_all(whole: RestorationDataset, name: str, found: PairSplitReport) -> None:

    def open_one(index: int) -> tuple[tuple[int, int], tuple[int, int], list[str]]:
        pair = whole.pairs[index][1]
        low, truth = whole.whole(pair)
        several = [str(path) for path in (pair.truth, pair.low) if path is not None and has_several(path)]
        return (low.shape[0], low.shape[1]), (truth.shape[0], truth.shape[1]), several

    sizes: Counter[tuple[int, int]] = Counter()
    sides = []
    for _, result in opened(range(len(whole.pairs)), open_one, f"opening {name}"):
        if isinstance(result, DataError):
            found.bad_files[result.where] = result.problem
        else:
            sides.append(min(result[0]))
            sizes[result[1]] += 1
            found.several += result[2]
    found.image_sizes = {f"{w} x {h}": n for (h, w), n in sizes.most_common(10)}
    found.smallest_side = min(sides, default=0)


def _draw(whole: RestorationDataset, name: str, found: PairSplitReport, output: Path) -> list[str]:
    """Writes a split's pictures; returns their paths."""
    written = []
    if len(found.sets) > 1:
        written.append(str(bars(found.sets, output / f"sets-{name}.png", f"{name}: images per set", "images")))
    rows: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    for index in np.random.default_rng(0).permutation(len(whole.pairs)).tolist():  # the same ones each time
        key, pair = whole.pairs[index]
        if len(rows) == SAMPLES or str(pair.truth) in found.bad_files or str(pair.low) in found.bad_files:
            continue
        low, truth = whole.whole(pair)
        rows.append([_shown(low), _shown(truth)])
        captions.append([f"{key}, degraded", "truth"])
    save_picture(grid(rows, captions), output / f"samples-{name}.png")
    return [*written, str(output / f"samples-{name}.png")]


def _shown(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8:
        image = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return image[..., 0] if image.shape[2] == 1 else image


def _summary(report: PairReport) -> Table:
    table = Table(title=f"data, scale {report.scale}", title_justify="left")
    table.add_column("")
    for name in report.splits:
        table.add_column(name, justify="right")
    splits = report.splits.values()
    rows: dict[str, list[str]] = {
        "images": [f"{s.images:,}" for s in splits],
        "of these degraded by a file": [f"{s.degraded:,}" for s in splits],
        "unusable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits],
        "most frequent size of the truth": [next(iter(s.image_sizes), "-") for s in splits],
        "smallest degraded side, pixels": [str(s.smallest_side or "-") for s in splits],
    }
    for title, cells in rows.items():
        table.add_row(title, *cells)
    for key in dict.fromkeys(key for s in splits for key in s.sets if len(s.sets) > 1):
        table.add_row(f"  set {escape(key)}", *(f"{s.sets.get(key, 0):,}" for s in splits))
    return table


def _findings(report: PairReport) -> list[str]:
    lines = []
    for name, split in report.splits.items():
        lines += refusals(name, split)
    train = report.splits["train"]
    if 0 < train.smallest_side < report.patch:
        lines.append(
            f"[yellow]train[/]: an image of {train.smallest_side} pixels is smaller than the patch of {report.patch}: "
            "it is mirrored beyond its border"
        )
    return lines
