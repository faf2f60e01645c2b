"""Photographs in, segments or instances out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import torch

from vistrain.data.coco.listed import ListedImages
from vistrain.data.segmentation.panoptic_files import write_numbers
from vistrain.detection.seams import joined
from vistrain.errors import ConfigError
from vistrain.layers.packed_masks import PackedMasks
from vistrain.layers.tiling import tiles_of
from vistrain.metrics.coco_files import SIDES, write_results
from vistrain.metrics.coco_masks import encoded_masks
from vistrain.network import Network
from vistrain.pictures import viewable
from vistrain.predictions import InstanceDetections, PanopticMap, Segmentation
from vistrain.segmentation.mask_classifier import MaskClassifier
from vistrain.segmentation.panoptic_tiles import PanopticSeams, owned_parts
from vistrain.tasks.base.inputs import InputFile, picture_paths
from vistrain.tasks.base.options import overlap_of
from vistrain.tasks.base.predictor import ImagePredictor
from vistrain.tasks.segmentation.predictor import write_label_file
from vistrain.tasks.segmentation.segment_pictures import confident, segmentation_picture
from vistrain.writing import whole_file


class PanopticPredictor(ImagePredictor[Segmentation]):
    """Any picture in, what the network's `outputs` say out, in its own size: panoptic segments, instances, and classes
    of pixels.

    Of files, `pictures/overlays/` shows what was found over each. `pictures/panoptic.json` and `pictures/panoptic/`
    are COCO's panoptic results, `coco_results.json` its instances with run lengths, `pictures/masks/` label files.

    Args:
        model: a network that classifies masks.
        device, base: see `Predictor`.
        threshold: least score of an instance that counts.
        opacity: of the colours over the image, 0..1.
        annotations: a file in COCO's format, panoptic or not, that lists the pictures: results carry its ids, which
            COCO's evaluators ask for, and pictures are turned as it was annotated. Without one, ids are file names, and
            pictures are read upright.
        tile: side of the tiles that large pictures are cut into, pixels; each is resized as a picture is. What several
            tiles see of a thing becomes one again, see `segmentation.panoptic_tiles`. Whole by default.
        overlap: of neighbouring tiles, pixels; a quarter of the tile by default.

    Raises:
        ConfigError: a value is out of its range.
        DataError: the annotation file is missing or refused.
    """

    overlays: ClassVar[str] = "overlays"
    segments: ClassVar[str] = "panoptic"
    masks: ClassVar[str] = "masks"

    def __init__(
        self,
        model: Network,
        device: str = "auto",
        *,
        threshold: float = 0.3,
        opacity: float = 0.55,
        annotations: Path | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        **base: Any,
    ) -> None:
        self.tile, self.overlap = tile, overlap_of(tile, overlap)
        super().__init__(model, device, **base)
        for name, value in (("threshold", threshold), ("opacity", opacity)):
            if not 0 <= value <= 1:
                raise ConfigError(f"--{name}", f"{value} is not in 0..1")
        self.threshold, self.opacity, self._folder = threshold, opacity, Path()
        self.listed = None if annotations is None else ListedImages(annotations)
        things = range(len(self.labels.ids)) if self.labels.things is None else self.labels.things
        self._things = {self.labels.channel_of[self.labels.ids[i]] for i in things}

    def input_id(self, file: InputFile) -> int | str:
        """The id in the annotation file, where there is one."""
        return file.name if self.listed is None else self.listed.id_of(file.path)

    def read(self, source: Any) -> np.ndarray:
        """uint8 `[H, W, 3]`; see `Predictor`. A file that annotations list, as they list it."""
        if self.listed is None or not isinstance(source, str | Path):
            return super().read(source)
        return self.listed.read(source)

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[Segmentation]:
        """What is in several uint8 `[H, W, 3]` pictures at a time, in their own sizes, on the CPU; they are padded to
        one size, which can change results a little: one at a time is what evaluation does."""
        if self.tile is not None:
            return [self._run_tiles(image) for image in inputs]
        return [_on_cpu(found) for found in self.model.predict(self.batch(inputs))]

    def _run_tiles(self, image: np.ndarray) -> Segmentation:
        """What is in a picture, tile by tile; masks of instances are packed."""
        assert self.tile is not None
        size = image.shape[0], image.shape[1]
        tiles = tiles_of(*size, self.tile, self.overlap)
        outputs = PanopticSeams(size), torch.zeros(size, dtype=torch.int64)
        instances: list[InstanceDetections] = []
        found = Segmentation()
        for place, owned in zip(tiles, owned_parts(tiles), strict=True):
            (top, left, bottom, right), (y1, x1, y2, x2) = place, owned
            batch = self.batch([np.ascontiguousarray(image[top:bottom, left:right])])
            found = _on_cpu(self.model.predict(batch)[0])
            if found.panoptic is not None:
                outputs[0].add(found.panoptic, place, owned)
            if found.semantic is not None:
                outputs[1][y1:y2, x1:x2] = found.semantic[y1 - top : y2 - top, x1 - left : x2 - left]
            if found.instances is not None:
                one = found.instances
                packed = PackedMasks.of_tensor(one.masks)
                instances.append(InstanceDetections(one.boxes, one.scores, one.labels, packed))
        objects = joined(instances, tiles, size) if instances else None
        return Segmentation(
            None if found.semantic is None else outputs[1],
            None if found.panoptic is None else outputs[0].joined(),
            objects if isinstance(objects, InstanceDetections) else None,
        )

    def describe(self, image: np.ndarray, result: Segmentation) -> dict[str, Any]:
        """Sides; `segments`, as `segments_info` in COCO's panoptic format with name and score; `instances`, as in its
        results format; and `classes`: what share of the pixels each class has."""
        said = super().describe(image, result)
        if result.panoptic is not None:
            said["segments"] = self._segments(result.panoptic)
        if result.instances is not None:
            said["instances"] = self._instances(confident(result.instances, self.threshold))
        if result.semantic is not None:
            values, counts = np.unique(result.semantic.numpy(), return_counts=True)
            ordered = sorted(zip(counts.tolist(), values.tolist(), strict=True), reverse=True)
            said["classes"] = {self.labels.name_of[v]: round(n / result.semantic.numel(), 6) for n, v in ordered}
        return said

    def _segments(self, found: PanopticMap) -> list[dict[str, Any]]:
        ids, entries = found.ids.numpy(), []
        for segment in found.segments:
            mask = (ids == segment.id).view(np.uint8)
            entries.append(
                {
                    "id": segment.id,
                    "category_id": self.labels.category_of[segment.label],
                    "name": self.labels.name_of[segment.label],
                    "isthing": int(segment.thing),
                    "score": round(segment.score, 6),
                    "area": int(mask.sum()),
                    "bbox": list(cv2.boundingRect(mask)),
                }
            )
        return entries

    def _instances(self, found: InstanceDetections) -> list[dict[str, Any]]:
        entries = []
        columns = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
        for (x1, y1, x2, y2), score, label, runs in zip(*columns, encoded_masks(found.masks), strict=True):
            entries.append(
                {
                    "name": self.labels.name_of[label],
                    "category_id": self.labels.category_of[label],
                    "score": score,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": runs,
                }
            )
        return entries

    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        """See `Predictor`."""
        self._folder = folder
        return picture_paths(files, folder / self.overlays)

    def draw(self, image: np.ndarray, result: Segmentation) -> np.ndarray:
        """The picture, small ones enlarged, under what was found, with a legend below it."""
        return segmentation_picture(viewable(image)[0], result, self.labels, self.threshold, self.opacity)

    def write_picture(self, file: InputFile, image: np.ndarray, result: Segmentation, target: Path) -> None:
        """See `Predictor` and the class."""
        super().write_picture(file, image, result, target)
        if result.panoptic is not None:
            with whole_file(self._folder / self.segments / self.png(file.name)) as partial:
                write_numbers(partial, result.panoptic.ids.numpy())
        if result.semantic is not None:
            write_label_file(self._folder / self.masks / self.png(file.name), result.semantic.numpy(), self.labels)

    @staticmethod
    def png(name: str) -> str:
        """What an input's label files are called; with its suffix, so that no two are called alike."""
        return f"{name}.png"

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """How many segments or instances; where there is none, what cut them."""
        counts = {key: sum(len(e.get(key, ())) for e in entries) for key in ("segments", "instances")}
        notes = {"segments": "" if counts["segments"] else said_of_none(self.model)}
        notes["instances"] = f" of score >= {self.threshold:g}"
        found = [f"{count} {key}{notes[key]}" for key, count in counts.items() if any(key in e for e in entries)]
        return " and ".join(found) or f"{len({name for e in entries for name in e.get('classes', ())})} classes"

    def header(self) -> dict[str, Any]:
        """Threshold and categories."""
        return {"threshold": self.threshold, "categories": self._categories()}

    def _categories(self) -> list[dict[str, Any]]:
        channels, names = self.labels.channel_of, self.labels.names
        return [
            {"id": key, "name": name, "isthing": int(channels[key] in self._things)}
            for key, name in zip(self.labels.ids, names, strict=True)
        ]

    def write(self, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
        """`pictures/panoptic.json`, whose `image_id` is the picture's name, or its id where annotations list it, beside
        the folder of its PNGs; and `coco_results.json`."""
        if any("segments" in entry for entry in entries):
            kept = ("id", "category_id", "isthing", "score", "area", "bbox")
            annotations = [
                {
                    "image_id": entry["id"],
                    "file_name": self.png(entry["file"]),
                    "segments_info": [{**{k: s[k] for k in kept}, "iscrowd": 0} for s in entry["segments"]],
                }
                for entry in entries
                if "segments" in entry
            ]
            with whole_file(output / self.pictures / f"{self.segments}.json") as partial:
                content = {"annotations": annotations, "categories": self._categories()}
                partial.write_text(json.dumps(content), encoding="utf-8")
        if any("instances" in entry for entry in entries):
            sides = SIDES if self.listed is None else ()
            results = (
                {
                    "image_id": entry["id"],
                    **{k: d[k] for k in ("category_id", "bbox", "score", "segmentation")},
                    **{side: entry[side] for side in sides},
                }
                for entry in entries
                for d in entry.get("instances", ())
            )
            write_results(results, output / "coco_results.json")


def said_of_none(model: Network) -> str:
    """Why there may be no segment at all, for the end of a line."""
    if not isinstance(model, MaskClassifier):
        return ""
    least = f"model.object_threshold={model.object_threshold:g}"
    return f" (the network itself gives none of a score up to {least}: train longer, or lower it for a look)"


def _on_cpu(found: Segmentation) -> Segmentation:
    panoptic, instances = found.panoptic, found.instances
    if panoptic is not None:
        panoptic = PanopticMap(panoptic.ids.cpu(), panoptic.segments)
    if instances is not None:
        columns = (instances.boxes, instances.scores, instances.labels, instances.masks)
        instances = InstanceDetections(*(x.cpu() for x in columns))
    return Segmentation(None if found.semantic is None else found.semantic.cpu(), panoptic, instances)
