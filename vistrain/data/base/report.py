"""What checks of data sets show alike: pictures of some samples, and a table with a column for each split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from vistrain.pictures import grid, save_picture


def shuffled(count: int) -> list[int]:
    """Positions of so many samples in an order that is the same each time: the first are drawn."""
    return np.random.default_rng(0).permutation(count).tolist()


def write_samples(
    rows: Sequence[Sequence[np.ndarray]], captions: Sequence[Sequence[str]], output: Path, split: str
) -> list[str]:
    """Write `samples-SPLIT.png`, see `pictures.grid`; returns its path, or nothing where there is no row.

    Raises:
        DataError: it cannot be written.
    """
    if not rows:
        return []
    path = output / f"samples-{split}.png"
    save_picture(grid(rows, captions), path)
    return [str(path)]


def split_table(title: str, splits: Iterable[str], rows: Mapping[str, Sequence[str]]) -> Table:
    """A table with a column for each split.

    Args:
        title: above it.
        splits: names.
        rows: title -> a cell for each split; a section follows them.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in splits:
        table.add_column(name, justify="right")
    for row, cells in rows.items():
        table.add_row(row, *cells)
    table.add_section()
    return table
