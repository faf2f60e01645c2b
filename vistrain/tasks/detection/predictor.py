"""Objects in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vistrain.data.coco.listed import ListedImages
from vistrain.detection.seams import joined
from vistrain.errors import ConfigError
from vistrain.layers.packed_masks import PackedMasks
from vistrain.layers.tiling import tiles_of
from vistrain.metrics.coco_files import SIDES, write_results
from vistrain.metrics.coco_masks import encoded_masks, mask_area
from vistrain.network import Network
from vistrain.pictures import class_colours, draw_boxes, draw_masks, viewable
from vistrain.predictions import Detections, InstanceDetections
from vistrain.tasks.base.inputs import InputFile
from vistrain.tasks.base.options import overlap_of
from vistrain.tasks.base.predictor import ImagePredictor


class DetectionPredictor(ImagePredictor[Detections]):
    """Any picture in, boxes in its own coordinates out, and masks if the network finds them.

    Args:
        model: a detector (`predict(batch) -> list[Detections]`).
        device, base: see `Predictor`.
        threshold: least score that counts.
        annotations: a file in COCO's format that lists the pictures: predictions carry its ids, and pictures are turned
            as it was annotated. Without one, ids are file names, and pictures are read upright.
        tile: side of the tiles that large pictures are cut into, pixels; each is resized as a picture is. Objects that
            several tiles see become one again. Whole by default.
        overlap: of neighbouring tiles, pixels; a quarter of the tile by default.

    Raises:
        ConfigError: there is no such device, or a value is out of its range.
        DataError: the annotation file is missing or refused.
    """

    def __init__(
        self,
        model: Network,
        device: str = "auto",
        *,
        threshold: float = 0.3,
        annotations: Path | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        **base: Any,
    ) -> None:
        self.tile, self.overlap = tile, overlap_of(tile, overlap)
        if not 0 <= threshold <= 1:
            raise ConfigError("--threshold", f"{threshold} is not in 0..1")
        super().__init__(model, device, **base)
        self.threshold, self.listed = threshold, None if annotations is None else ListedImages(annotations)

    def input_id(self, file: InputFile) -> int | str:
        """The id in the annotation file, where there is one."""
        return file.name if self.listed is None else self.listed.id_of(file.path)

    def read(self, source: Any) -> np.ndarray:
        """uint8 `[H, W, 3]`; see `Predictor`. A file that annotations list, as they list it."""
        if self.listed is None or not isinstance(source, str | Path):
            return super().read(source)
        return self.listed.read(source)

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[Detections]:
        """The objects of several uint8 `[H, W, 3]` pictures at a time; they are padded to one size.

        Padding can change a score in its third digit, so one at a time is what evaluation does.

        Returns:
            Boxes in pixels of the upright pictures, best first, on the CPU, masks packed; all that the network gives,
            down to its lowest score.
        """
        if self.tile is not None:
            return [self._run_tiles(image) for image in inputs]
        return [on_host(found) for found in self.model.predict(self.batch(inputs))]

    def _run_tiles(self, image: np.ndarray) -> Detections:
        assert self.tile is not None
        tiles = tiles_of(image.shape[0], image.shape[1], self.tile, self.overlap)
        found = []
        for top, left, bottom, right in tiles:
            batch = self.batch([np.ascontiguousarray(image[top:bottom, left:right])])
            found.append(on_host(self.model.predict(batch)[0]))
        return joined(found, tiles, (image.shape[0], image.shape[1]))

    def select(self, detections: Detections) -> Detections:
        """Those of at least the threshold, without what is not finite and what no class is named for (COCO's raw
        ids)."""
        named = torch.tensor(list(self.labels.name_of), dtype=torch.int64)
        good = (detections.scores >= self.threshold) & detections.boxes.isfinite().all(1)
        kept = good & torch.isin(detections.labels, named)
        return detections.kept(kept)

    def describe(self, image: np.ndarray, result: Detections) -> dict[str, Any]:
        """Sides, and `detections`: class name, category id, score and the box in both notations; of masks their area
        and `segmentation`, COCO's compressed run lengths."""
        found, detections = self.select(result), []
        masks = encoded_masks(found.masks) if isinstance(found, InstanceDetections) else []
        columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
        for (x1, y1, x2, y2), score, label in zip(*columns, strict=True):
            detections.append(
                {
                    "name": self.labels.name_of[label],
                    "category_id": self.labels.category_of[label],
                    "score": score,
                    "box_xyxy": [x1, y1, x2, y2],
                    "box_xywh": [x1, y1, x2 - x1, y2 - y1],
                }
            )
        for entry, mask in zip(detections, masks, strict=bool(masks)):
            entry |= {"area": int(mask_area(mask)), "segmentation": mask}
        return {**super().describe(image, result), "detections": detections}

    def draw(self, image: np.ndarray, result: Detections) -> np.ndarray:
        """A copy of a uint8 `[H, W, 3]` picture, small ones enlarged, with its detections, in stable colours."""
        shown = self.select(result)
        names, colours = self.labels.name_of, class_colours(self.labels)
        image, scale = viewable(image)
        if isinstance(shown, InstanceDetections):
            image = draw_masks(image, shown.masks, shown.labels.tolist(), colours)
        return draw_boxes(image, shown.boxes * scale, shown.labels, shown.scores, names, colours=colours)

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """How many objects, and the network's own least score where that is what cuts."""
        said = f"{sum(len(e['detections']) for e in entries)} objects of score >= {self.threshold:g}"
        if self.threshold >= self.model.score_threshold:
            return said
        return f"{said} (the network itself gives none below model.score_threshold={self.model.score_threshold:g})"

    def header(self) -> dict[str, Any]:
        """Threshold and categories."""
        categories = [{"id": i, "name": n} for i, n in zip(self.labels.ids, self.labels.names, strict=True)]
        return {"threshold": self.threshold, "categories": categories}

    def write(self, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
        """`coco_results.json`: a COCO results list, whose `image_id` is the picture's `id` in `predictions.json`.

        Where ids are file names, the sides of the pictures are there, too: whoever pairs them by name can tell whether
        they are the same pictures.
        """
        results = (
            {
                "image_id": entry["id"],
                "category_id": d["category_id"],
                "bbox": d["box_xywh"],
                "score": d["score"],
                **({"segmentation": d["segmentation"]} if "segmentation" in d else {}),
                **({side: entry[side] for side in SIDES} if self.listed is None else {}),
            }
            for entry in entries
            for d in entry["detections"]
        )
        write_results(results, output / "coco_results.json")


def on_host(found: Detections) -> Detections:
    """What a network found, on the CPU, masks packed."""
    columns = found.boxes.float().cpu(), found.scores.float().cpu(), found.labels.cpu()
    if isinstance(found, InstanceDetections):
        masks = found.masks if isinstance(found.masks, PackedMasks) else PackedMasks.of_tensor(found.masks)
        return InstanceDetections(*columns, masks)
    return Detections(*columns)
