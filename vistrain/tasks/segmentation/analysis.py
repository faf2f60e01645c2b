"""What a network that classifies pixels gets wrong: tables, a confusion matrix and the worst images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vistrain import pictures
from vistrain.metrics import Record
from vistrain.metrics.mean_iou import MeanIoU
from vistrain.tasks.base.task import Task
from vistrain.tasks.base.worst import WORST, draw_worst, write_table

log = logging.getLogger(__name__)

CONFUSED = 10  # pairs of classes that are printed


def per_class(metric: MeanIoU) -> list[list[str]]:
    """Name, IoU, accuracy and pixels of each class of the metric's latest result, under a line of headings."""
    rows = [] if metric.result is None else metric.result.per_class
    cells = [[r["name"], f"{r['IoU']:.6f}", f"{r['Acc']:.6f}", str(r["pixels"])] for r in rows]
    return [["class", "IoU", "Acc", "pixels"], *cells]


def per_image(metric: MeanIoU, records: Sequence[Record]) -> list[list[str]]:
    """Name, mean IoU over the classes that occur, and accuracy of each image, the worst first, under a line of
    headings. NaN, at the end, where nothing is labelled."""
    rows = []
    for record in records:
        matrix = metric.total([record])
        iou, _ = metric.measure(matrix)
        labelled = matrix[:-1].sum()
        right = float(np.diag(matrix).sum() / labelled) if labelled else float("nan")
        mean = float(np.nanmean(iou)) if labelled and np.isfinite(iou).any() else float("nan")
        rows.append((np.isnan(mean), mean, str(record["id"]), right))
    return [["image", "mIoU", "aAcc"], *([name, f"{m:.6f}", f"{right:.6f}"] for _, m, name, right in sorted(rows))]


def analyse_task(task: Task, folder: Path) -> None:
    """Write what the latest test recorded: `per_class.csv`, `per_image.csv`, `confusion.png` and `worst.png`, truth
    beside prediction; and print which classes are taken for which.

    Args:
        task: its records are on rank 0.
        folder: made if needed.

    Raises:
        DataError: a file cannot be written. Images that cannot be read are left out, with a warning.
    """
    name, metric = next(((n, m) for n, m in task.evaluators["test"].items() if isinstance(m, MeanIoU)), ("", None))
    if metric is None or metric.result is None:
        log.warning("no class maps were measured, so there is nothing to analyse: set `metrics: [miou]`")
        return
    images = per_image(metric, task.records[name])
    write_table(folder / "per_class.csv", per_class(metric))
    write_table(folder / "per_image.csv", images)
    pictures.confusion(metric.result.confusion, metric.result.names, folder / "confusion.png", "pixels: truth in rows")
    draw_worst(task, [row[0] for row in images[1 : WORST + 1]], folder / "worst.png")
    Console().print(confused(metric.result.confusion, metric.result.names))
    log.info("analysis: %s", folder)


def confused(matrix: np.ndarray, names: Sequence[str]) -> Table:
    """The classes of which most pixels are taken for another, for a Rich console.

    Args:
        matrix: `[K, K]`, truth in rows.
        names: of the classes.
    """
    title = "most confused, by pixels"
    table = Table("class", "taken for", "pixels", "% of the class", title=title, title_justify="left")
    wrong = matrix - np.diag(np.diag(matrix))
    for index in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED].tolist():
        truth, found = divmod(index, len(names))
        if wrong[truth, found]:
            share = 100 * wrong[truth, found] / matrix[truth].sum()
            table.add_row(names[truth], names[found], f"{wrong[truth, found]:,}", f"{share:.1f}")
    return table
