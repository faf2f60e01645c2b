"""Pictures masked, and what a network makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from vistrain.pictures import grid
from vistrain.predictions import Reconstruction
from vistrain.tasks.base.predictor import ImagePredictor
from vistrain.tasks.pretraining.pictures import cells


class ReconstructionPredictor(ImagePredictor[Reconstruction]):
    """Any picture in; masked | reconstructed | original out, as evaluations see it.

    Args:
        model: a `Pretrainer`.
        device, base: see `Predictor`.
    """

    def batch(self, inputs: Sequence[np.ndarray]) -> dict[str, Any]:
        """See `Predictor`; in grey for a network of one channel."""
        found = super().batch(inputs)
        if self.model.channels == 1:
            shown = found["image"].float()
            luma = shown.new_tensor([0.299, 0.587, 0.114])[:, None, None]
            found["image"] = (shown * luma).sum(1, keepdim=True).round().to(torch.uint8)
        return found

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[Reconstruction]:
        """Losses and pictures of several uint8 `[H, W, 3]` pictures at a time, on the CPU."""
        found: list[Reconstruction] = self.model.predict(self.batch(inputs))
        return found

    def describe(self, image: np.ndarray, result: Reconstruction) -> dict[str, Any]:
        """Sides, and `losses` by name."""
        return {**super().describe(image, result), "losses": dict(result.loss)}

    def draw(self, image: np.ndarray, result: Reconstruction) -> np.ndarray:
        """See `pictures.cells`."""
        seen = image if self.transform is None else self.transform(image)
        if self.model.channels == 1:
            seen = np.repeat(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
        captions, images = zip(*cells(seen, result), strict=True)
        return grid([list(images)], [list(captions)])

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """The mean loss."""
        means = [sum(entry["losses"].values()) for entry in entries]
        return f"a loss of {sum(means) / len(means):.4f} on average"
