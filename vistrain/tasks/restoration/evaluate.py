"""Folders of restored pictures, of whatever program, measured against the truth under a protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vistrain.checkpoints import merged
from vistrain.data.base.images import SUFFIXES
from vistrain.data.restoration.image_pairs import ImageSet, find_pairs
from vistrain.data.restoration.pixels import ColorName, read_pixels
from vistrain.errors import ConfigError, DataError
from vistrain.metrics import QUALITY, protocol
from vistrain.metrics.image_quality import FORMATS, QualityResult
from vistrain.predictions import Restored
from vistrain.tasks.restoration.predictor import RestorationPredictor

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class FolderReport:
    """What `evaluate_folder` found.

    Attributes:
        records: one per image, with `id` and the protocol's numbers.
        result: their means.
    """

    records: list[dict[str, Any]]
    result: QualityResult

    def table(self) -> Table:
        """A row for each image, for a Rich console."""
        from rich.markup import escape
        from rich.table import Table

        keys = [key for key in FORMATS if key in self.records[0]]
        table = Table()
        table.add_column("image", overflow="fold")
        for key in keys:
            table.add_column(FORMATS[key][0], justify="right")
        for record in self.records:
            table.add_row(escape(record["id"]), *(FORMATS[key][1] % record[key] for key in keys))
        return table

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self.table()
        yield self.result.table()


def evaluate_folder(
    restored: Path,
    truth: Path,
    name: str = "sr_luma",
    scale: int = 1,
    color: ColorName = "rgb",
    weights: Sequence[str | Path] = (),
) -> FolderReport:
    """Measure a folder of restored pictures.

    The picture of `baby.png` is the one called `baby`, `babyx4` (4 the scale) or `baby.png` with any image suffix; or
    else the only one whose name begins with `baby_` or `babyx4_`, as authors' programs write theirs. Truth is cut at
    the bottom and right to a multiple of the scale.

    Args:
        restored: folder of pictures, or what `vistrain predict` wrote.
        truth: folder of true images; where there is a folder `HR` in it, that one.
        name: protocol, one of `QUALITY` or `lpips`.
        scale: that the pictures were enlarged by.
        color: `rgb`, `grey` or `luma`, see `data.pixels.read_pixels`.
        weights: of `lpips`, see `metrics.Lpips`.

    Raises:
        ConfigError: no such protocol for pictures.
        DataError: a folder or file is missing or cannot be read, two pictures could be meant, or sizes differ.
        WeightsError: those of `lpips` are not what it needs.
    """
    if name not in (*QUALITY, "lpips"):
        raise ConfigError("--protocol", f"{name!r} is none for pictures", f"use {', '.join((*QUALITY, 'lpips'))}")
    if scale < 1:
        raise ConfigError("--scale", f"{scale} is too small", "use 1 or more")
    metric = protocol(name, scale=scale, **({"weights": merged(weights)} if name == "lpips" else {}))
    pairs = find_pairs(Path(), ImageSet(str(truth)), scale)
    predicted = restored / RestorationPredictor.pictures  # as `vistrain predict` leaves them
    restored = predicted if predicted.is_dir() else restored
    pictures = [p for p in sorted(restored.rglob("*")) if p.suffix.lower() in SUFFIXES]
    if not pictures:
        raise DataError(str(restored), "no pictures" if restored.is_dir() else "no such folder")
    records = []
    for pair in pairs:
        picture = _picture_of(pair.name, pair.truth, pictures, restored, scale)
        good, made = (torch.from_numpy(read_pixels(path, color)).permute(2, 0, 1) for path in (pair.truth, picture))
        height, width = (side // scale * scale for side in good.shape[1:])
        target = {"image": good[:, :height, :width]}
        records += metric.update([pair.name], [Restored(made.float() / 255)], [target])
    metric.compute(records)
    return FolderReport(records, metric.result)


def _picture_of(name: str, truth: Path, pictures: Sequence[Path], folder: Path, scale: int) -> Path:
    """The one picture that is of an image."""
    names = {picture: picture.relative_to(folder).with_suffix("").as_posix().replace("/", ".") for picture in pictures}
    exact = (name, f"{name}x{scale}", f"{name}{truth.suffix}")
    found = [picture for picture, own in names.items() if own in exact]
    found = found or [p for p, own in names.items() if own.startswith((f"{name}_", f"{name}x{scale}_"))]
    if len(found) != 1:
        problem = f"{len(found)} pictures in {folder} may be its restored one" if found else f"has none in {folder}"
        raise DataError(str(truth), problem, f"call it {name}.png")
    return found[0]
