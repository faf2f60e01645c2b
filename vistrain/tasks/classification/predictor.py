"""Classes of pictures."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vistrain.classification import Classifier
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.pictures import grid
from vistrain.predictions import ClassScores
from vistrain.tasks.base.predictor import ImagePredictor
from vistrain.writing import whole_file

TOP = 5


class ClassificationPredictor(ImagePredictor[ClassScores]):
    """Any picture in, scores of all classes out.

    Args:
        model: a classifier (`predict(batch) -> list[ClassScores]`).
        device, base: see `Predictor`.
        threshold: least score that counts, where a picture may have any number of classes.

    Raises:
        ConfigError: there is no such device, or the threshold is not in 0..1.
    """

    def __init__(self, model: Network, device: str = "auto", *, threshold: float = 0.5, **base: Any) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError("--threshold", f"{threshold} is not in 0..1")
        super().__init__(model, device, **base)
        self.threshold = threshold

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[ClassScores]:
        """Scores of several uint8 `[H, W, 3]` pictures at a time, on the CPU."""
        found: list[ClassScores] = self.model.predict(self.batch(inputs))
        return [ClassScores(f.scores.float().cpu(), f.multi_label) for f in found]

    def select(self, result: ClassScores) -> list[tuple[int, float]]:
        """Class channels and scores, best first: the best five, or with many labels those of at least the threshold."""
        scores, order = result.scores.sort(descending=True, stable=True)
        ranked = [(int(k), float(s)) for k, s in zip(order, scores, strict=True)]
        return [r for r in ranked if r[1] >= self.threshold] if result.multi_label else ranked[:TOP]

    def describe(self, image: np.ndarray, result: ClassScores) -> dict[str, Any]:
        """Sides, and `classes`: name, id and score, best first."""
        rows = [
            {"name": self.labels.name_of[k], "category_id": self.labels.category_of[k], "score": score}
            for k, score in self.select(result)
        ]
        return {**super().describe(image, result), "classes": rows}

    def draw(self, image: np.ndarray, result: ClassScores) -> np.ndarray:
        """The uint8 `[H, W, 3]` picture, at most 1280 pixels long, with its best classes above it."""
        shown = self.select(result) if result.multi_label else self.select(result)[:2]
        caption = ", ".join(f"{self.labels.name_of[k]} {score:.2f}" for k, score in shown) or "-"
        return grid([[image]], [[caption]], max_side=1280)

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """The most frequent first choices."""
        first = Counter(entry["classes"][0]["name"] for entry in entries if entry["classes"])
        return ", ".join(f"{count} {name}" for name, count in first.most_common(3)) or "no class"

    def header(self) -> dict[str, Any]:
        """Categories."""
        return {"categories": [{"id": i, "name": n} for i, n in zip(self.labels.ids, self.labels.names, strict=True)]}

    def write(self, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
        """`classes.csv`: a line for each picture: file, first class (or all, with many labels), score of the first."""
        names: Any = {"encoding": "utf-8", "errors": "surrogateescape"}  # of files, as they are on the disk
        with whole_file(output / "classes.csv") as partial, open(partial, "w", newline="", **names) as file:
            table = csv.writer(file)
            table.writerow(["file", "label", "score"])
            many = isinstance(self.model, Classifier) and self.model.multi_label
            for entry in entries:
                found = entry["classes"]
                names = "|".join(c["name"] for c in (found if many else found[:1]))
                table.writerow([entry["file"], names, f"{found[0]['score']:.6f}" if found else ""])
