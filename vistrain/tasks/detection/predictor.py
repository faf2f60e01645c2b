"""Objects in pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vistrain.data.detection.collate import Sample, collate
from vistrain.data.detection.transforms import EvalResize
from vistrain.errors import ConfigError
from vistrain.metrics.coco_files import write_results
from vistrain.pictures import class_colours, draw_boxes
from vistrain.structures import Detections, LabelSpace, Preprocessing
from vistrain.tasks.base.predictor import Predictor, take


class DetectionPredictor(Predictor[Detections]):
    """Any picture in, boxes in its own coordinates out.

    Args:
        model: a detector (`predict(batch) -> list[Detections]`).
        labels: of the checkpoint.
        preprocessing: of the checkpoint.
        resize: the evaluation resize.
        device: see `Predictor`.
        threshold: least score that is written and drawn.

    Raises:
        ConfigError: there is no such device, or the threshold is not in 0..1.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: LabelSpace,
        preprocessing: Preprocessing,
        resize: EvalResize,
        device: str = "auto",
        threshold: float = 0.3,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError("--threshold", f"{threshold} is not in 0..1")
        super().__init__(model, device)
        self.labels, self.preprocessing, self.resize, self.threshold = labels, preprocessing, resize, threshold

    @classmethod
    def from_facts(
        cls,
        model: nn.Module,
        facts: Mapping[str, Any],
        device: str = "auto",
        allow: Collection[str] = (),
        **options: Any,
    ) -> DetectionPredictor:
        """See `Predictor`; the one option is `threshold`."""
        from vistrain.config.builder import build
        from vistrain.data import CocoDetection

        (threshold,) = take(options, threshold=0.3)
        labels, preprocessing = LabelSpace.from_dict(facts["labels"]), Preprocessing.from_dict(facts["preprocessing"])
        # The data module knows the evaluation resize; constructing it touches no files
        data = build(facts["config"]["data"], CocoDetection, where="data", allow=allow)
        data.preprocessing = preprocessing
        return cls(model, labels, preprocessing, data.eval_resize, device, threshold)

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """The objects of several uint8 `[H, W, 3]` pictures at a time; they are padded to one size.

        Padding can change a score in its third digit, so one at a time is what evaluation does.

        Returns:
            Boxes in pixels of the upright pictures, best first, on the CPU; all that the network gives, down to its
            lowest score.
        """
        if not images:
            return []
        samples = [Sample(self.resize(image), i, (image.shape[0], image.shape[1])) for i, image in enumerate(images)]
        batch = collate(samples, self.preprocessing.size_divisor)
        moved = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        found: list[Detections] = self.model.predict(moved)  # type: ignore[operator]
        return [Detections(d.boxes.float().cpu(), d.scores.float().cpu(), d.labels.cpu()) for d in found]

    def select(self, detections: Detections) -> Detections:
        """Those of at least the threshold, without what is not finite and what no class is named for (COCO's raw
        ids)."""
        named = torch.tensor(list(self.labels.name_of), dtype=torch.int64)
        good = (detections.scores >= self.threshold) & detections.boxes.isfinite().all(1)
        kept = good & torch.isin(detections.labels, named)
        return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])

    def describe(self, image: np.ndarray, result: Detections) -> dict[str, Any]:
        """`detections`: class name, category id, score and the box in both notations."""
        found, detections = self.select(result), []
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
        return {"detections": detections}

    def draw(self, image: np.ndarray, result: Detections) -> np.ndarray:
        """A copy of a uint8 `[H, W, 3]` picture with its detections, in stable colours."""
        shown = self.select(result)
        names, colours = self.labels.name_of, class_colours(self.labels)
        return draw_boxes(image, shown.boxes, shown.labels, shown.scores, names, colours=colours)

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """How many objects."""
        return f"{sum(len(e['detections']) for e in entries)} objects of score >= {self.threshold:g}"

    def header(self) -> dict[str, Any]:
        """Threshold and categories."""
        categories = [{"id": i, "name": n} for i, n in zip(self.labels.ids, self.labels.names, strict=True)]
        return {"threshold": self.threshold, "categories": categories}

    def write(self, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
        """`coco_results.json`: a COCO results list, whose `image_id` is the picture's `id` in `predictions.json`."""
        results = (
            {"image_id": entry["id"], "category_id": d["category_id"], "bbox": d["box_xywh"], "score": d["score"]}
            for entry in entries
            for d in entry["detections"]
        )
        write_results(results, output / "coco_results.json")
