"""Lanes of roads: the task and its predictor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from rich.console import RenderableType

from vistrain.data.base.module import DataModule
from vistrain.data.base.storage import files_below, is_folder
from vistrain.data.coco.kinds import refuse_other_kind
from vistrain.data.segmentation.lane_files import LINES, json_line_of, lines_text, read_json_lines, read_lines
from vistrain.data.segmentation.lanes import LaneData
from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol as measure
from vistrain.metrics.lane_metrics import LANES
from vistrain.network import Network
from vistrain.pictures import draw_lanes
from vistrain.predictions import LaneMaps
from vistrain.segmentation.lane_network import LaneNetwork
from vistrain.tasks.base.inputs import InputFile, bare_names, picture_paths
from vistrain.tasks.base.looks import picture_of
from vistrain.tasks.base.predictor import ImagePredictor
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.base.worst import write_table
from vistrain.writing import whole_file

Lanes = tuple[np.ndarray, ...]


class LanePredictor(ImagePredictor[Lanes]):
    """Any picture of a road in, its lanes out: each `[N, 2]` float32, (x, y) in pixels, N is 0 where there is none.

    Of files, `pictures/overlays/` shows the lanes, and the points are written as the sets have them.

    Args:
        model: a network that finds lanes.
        device, base: see `Predictor`.
        format: of the points: `culane`, `pictures/lanes/NAME.lines.txt` of each picture; or `tusimple`, one
            `tusimple.json` with a line for each.

    Raises:
        ConfigError: the network finds no lanes.
    """

    overlays: ClassVar[str] = "overlays"
    lanes: ClassVar[str] = "lanes"

    def __init__(
        self, model: Network, device: str = "auto", *, format: Literal["culane", "tusimple"] = "culane", **base: Any
    ) -> None:
        super().__init__(model, device, **base)
        if not isinstance(model, LaneNetwork):
            raise ConfigError("task.type", f"{type(model).__name__} finds no lanes")
        self.decoder, self.format, self._folder = model.decoder, format, Path()
        self._bare: dict[str, str] = {}

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[Lanes]:
        """Lanes of several uint8 `[H, W, 3]` pictures at a time."""
        found: list[LaneMaps] = self.model.predict(self.batch(inputs))
        return [tuple(lane.cpu().numpy() for lane in one.lanes) for one in found]

    def describe(self, image: np.ndarray, result: Lanes) -> dict[str, Any]:
        """Sides, and `lanes`: the points of each place, from left to right."""
        return {**super().describe(image, result), "lanes": [lane.tolist() for lane in result]}

    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        """See `Predictor`."""
        self._folder, self._bare = folder, bare_names([file.name for file in files])
        return picture_paths(files, folder / self.overlays)

    def draw(self, image: np.ndarray, result: Lanes) -> np.ndarray:
        """The picture with its lanes."""
        return draw_lanes(image, result)

    def write_picture(self, file: InputFile, image: np.ndarray, result: Lanes, target: Path) -> None:
        """See `Predictor` and the class."""
        super().write_picture(file, image, result, target)
        if self.format == "culane":
            path = self._folder / self.lanes / f"{self._bare[file.name]}{LINES}"
            with whole_file(path) as partial:
                partial.write_text(lines_text(lane for lane in result if len(lane)), encoding="utf-8")

    def write(self, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
        """See the class."""
        if self.format == "tusimple":
            lines = []
            for entry in entries:
                lanes = [np.array(lane) for lane in entry["lanes"] if lane]
                rows = sorted(self.decoder.heights(entry["height"]))
                lines.append(json_line_of(entry["file"], lanes, rows))
            with whole_file(output / "tusimple.json") as partial:
                partial.write_text("".join(lines), encoding="utf-8")

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """How many lanes."""
        return f"{sum(bool(lane) for entry in entries for lane in entry['lanes'])} lanes"


class LaneTask(Task):
    """Trains and evaluates a network that finds lanes.

    Args:
        model, optimizer, base: see `Task`.
    """

    predictor = LanePredictor
    protocols = tuple(LANES)

    def draw_sample(self, batch: Batch, index: int, prediction: LaneMaps | None, side: int, threshold: float) -> Cells:
        """The sample with the lanes of its truth; beside it, with those that were found, in its own proportions."""
        name, target = str(batch["id"][index]), batch["target"][index]
        height, width = batch["original_size"][index].tolist()
        scale = side / max(height, width)
        shown = cv2.resize(picture_of(batch, index), (round(width * scale), round(height * scale)))
        if "label_map" in target:  # while training
            places = cv2.resize(target["label_map"].cpu().numpy(), shown.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            truth = [np.argwhere(places == place)[:, ::-1] for place in range(1, len(target["exist"]) + 1)]
            return [(name, draw_lanes(shown, truth, dots=True))]
        cells = [(name, draw_lanes(shown, [lane.cpu().numpy() for lane in target["lanes"]], scale))]
        if prediction is None:
            return cells
        found = draw_lanes(shown, [lane.cpu().numpy() for lane in prediction.lanes], scale)
        return [(f"{name}: truth", cells[0][1]), ("prediction", found)]

    def write_predictions(self, path: Path) -> None:
        """Write what was measured of each image in the latest evaluation, `per_image.csv`; on rank 0, which has the
        records."""
        for records in self.records.values():
            if records:
                columns = list(records[0])
                write_table(
                    path.with_name("per_image.csv"), [columns, *([str(r[c]) for c in columns] for r in records)]
                )
                return

    @classmethod
    def evaluate_file(
        cls, predictions: Path, data: DataModule | None = None, *, protocol: str = "culane"
    ) -> RenderableType:
        """Lanes of any program, measured against the test split.

        Args:
            predictions: a folder of CULane's files, `NAME.lines.txt` for each image, or what `vistrain predict` wrote;
                or a file of TuSimple's JSON lines.
            data: the data module whose test split they are of.
            protocol: of the numbers, `culane` or `tusimple`.

        Raises:
            ConfigError: there is no data with lanes, or no such protocol for them.
            DataError: the lanes of an image are missing, or cannot be read.
        """
        if not isinstance(data, LaneData):
            problem = "no truth to compare with" if data is None else f"{type(data).__name__} has no lanes"
            raise ConfigError("evaluate", problem, "give the data's --config FILE")
        if protocol not in LANES:
            raise ConfigError("--protocol", f"{protocol!r} is none for lanes", f"use {', '.join(LANES)}")
        return evaluate_lanes(predictions, data, protocol)


def evaluate_lanes(predictions: Path, data: LaneData, name: str) -> RenderableType:
    """See `LaneTask.evaluate_file`.

    Raises:
        DataError: the lanes of an image are missing, or cannot be read.
    """
    found = _read_all(predictions)  # before anything is generated
    data.prepare_data()
    metric, dataset, records = measure(name), data.dataset("test"), []
    lanes_of = _of_names(found, [entry.name for entry in dataset.entries], predictions)
    for index, entry in enumerate(dataset.entries):
        target = data.collate([dataset.sample(index)])["target"]
        lanes, nothing = tuple(map(torch.from_numpy, lanes_of[entry.name])), torch.zeros(0)
        records += metric.update([entry.name], [LaneMaps(nothing, nothing, lanes)], target)
    metric.compute(records)
    return metric.result


def _read_all(predictions: Path) -> dict[str, Lanes]:
    """The predicted lanes of images, by the names that they have there."""
    remedy = "give a folder of NAME.lines.txt, TuSimple's JSON lines, or what `vistrain predict` wrote of lanes"
    own = predictions / LanePredictor.pictures / LanePredictor.lanes
    if not own.is_dir():
        refuse_other_kind(predictions, "lanes", remedy)
    if predictions.is_file():
        return {_bare(entry.name): entry.points() for entry in read_json_lines(predictions)}
    folder = own if own.is_dir() else predictions
    if not is_folder(folder):
        raise DataError(str(folder), "no such file or folder", remedy)
    files = [file for file in files_below(folder) if file.endswith(LINES)]
    if not files:
        raise DataError(str(folder), f"holds no file that ends in {LINES}", remedy)
    return {file.removesuffix(LINES): read_lines(folder / file) for file in files}


def _of_names(found: Mapping[str, Lanes], names: Sequence[str], predictions: Path) -> dict[str, Lanes]:
    """The predicted lanes of images by their names; folders that all names begin with may be missing in those of the
    predictions."""
    shared = os.path.commonpath([os.path.dirname(name) for name in names])
    for depth in range(len(Path(shared).parts) + 1):
        below = {name: "/".join(name.split("/")[depth:]) for name in names}
        keys = {name: key if key in found else _bare(key) for name, key in below.items()}  # see `bare_names`
        if set(keys.values()) <= set(found):
            return {name: found[key] for name, key in keys.items()}
    missing = next(name for name in names if not {name, _bare(name)} & set(found))
    raise DataError(missing, f"has no prediction in {predictions}", "predict the images of the whole split")


def _bare(name: str) -> str:
    """Without the suffix."""
    return name[: len(name) - len(Path(name).suffix)]
