"""What several analyses write: tables, and the worst samples of a test."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from vistrain import pictures
from vistrain.data.base.dataset import SampleSet
from vistrain.errors import VistrainError
from vistrain.tasks.base.task import Task
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

SIDE = 480  # long side of an image in the picture of the worst, pixels
WORST = 8


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV file, whole or not at all; of names that are no UTF-8, what no encoding takes is escaped (`\\udce9`).

    Raises:
        DataError: it cannot be written.
    """
    with (
        whole_file(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file).writerows(rows)


def draw_worst(task: Task, names: Sequence[str], path: Path) -> None:
    """Look at images of the test split once more, and draw them.

    Args:
        task: its network looks.
        names: ids of the images.
        path: of the PNG.

    Raises:
        DataError: it cannot be written. Images that cannot be read are left out, with a warning.
    """
    data = task.datamodule
    dataset = cast(SampleSet, data.dataset("test"))
    rows, captions = [], []
    for index in (i for i in range(len(dataset)) if names):
        sample = dataset[index]
        if isinstance(sample, VistrainError):
            log.warning("not drawn: %s", sample)
            continue
        batch = data.collate([sample])
        if str(batch["id"][0]) not in names:
            continue
        with torch.inference_mode():
            on_device = {k: v.to(task.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            found = task.predictions(on_device, "test")
        cells = task.draw_sample(batch, 0, found[0], SIDE, 0.0)
        rows.append([cell for _, cell in cells])
        captions.append([caption for caption, _ in cells])
    pictures.save_picture(pictures.grid(rows, captions), path)
