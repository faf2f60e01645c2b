"""Restoration: degraded images in, decibels out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistrain.errors import ConfigError
from vistrain.files import whole_file
from vistrain.layers.imresize import imresize
from vistrain.layers.padding import to_unit
from vistrain.metrics import protocol
from vistrain.pictures.restoration import middle
from vistrain.structures import Restored
from vistrain.tasks.base import Metric, Task


class RestorationTask(Task):
    """Trains and evaluates a restoration network against the targets in the batches.

    Args: see `Task`.
    """

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """One metric for each protocol name.

        Raises:
            ConfigError: a name is no protocol, or the network enlarges by another factor than the data is reduced.
        """
        scale = getattr(self.model, "scale", 1)
        found = getattr(getattr(self.trainer, "datamodule", None), "scale", scale)
        if found != scale:
            raise ConfigError("data.scale", f"is {found}, but the network enlarges {scale} times", "make them equal")
        return {name: protocol(name, scale=scale) for name in self.metrics}

    def draw_sample(
        self, batch: Mapping[str, Any], index: int, prediction: Restored | None, side: int
    ) -> list[tuple[str, np.ndarray]]:
        """Input (enlarged bicubically) | restored | truth with the decibels of the first protocol, as far as there are.

        Args:
            batch: as the network gets it.
            index: of the image in it.
            prediction: what was restored, or None.
            side: of the part that is shown, pixels of the restored image.
        """
        height, width = (int(n) for n in batch["size"][index])
        low, truth = batch["image"][index, :, :height, :width], batch["target"][index]["image"]
        name = str(batch["id"][index])
        scale = getattr(self.model, "scale", 1)
        plain = to_unit(low) if scale == 1 else imresize(to_unit(low), scale)
        what = f"{name}: {'input' if scale == 1 else 'bicubic'}"
        shown = [(f"{what} {self._numbers(plain, truth)}", pixels(plain)), ("truth", pixels(truth))]
        if prediction is not None:
            shown.insert(1, (f"restored {self._numbers(prediction.image, truth)}", pixels(prediction.image)))
        return [(caption.strip(), middle(image, side)) for caption, image in shown]

    def _numbers(self, image: Tensor, truth: Tensor) -> str:
        """Decibels and similarity by the first protocol, if there is one."""
        for metrics in self.evaluators.values():
            for metric in metrics.values():
                decibels, similarity = metric.measure(image, truth)  # type: ignore[attr-defined]
                return f"{decibels:.2f} dB, {similarity:.4f}"
        return ""

    def write_predictions(self, path: Path) -> None:
        """Write the numbers of each image in the latest evaluation as `per_image.csv`; on rank 0, which has them."""
        rows = [
            f"{protocol_name},{r['id']},{r['psnr']:.4f},{r['ssim']:.5f}"
            for protocol_name, records in self.records.items()
            for r in records
        ]
        with whole_file(path.with_name("per_image.csv")) as partial:
            partial.write_text("\n".join(["protocol,image,psnr,ssim", *rows]) + "\n", encoding="utf-8")


def pixels(image: Tensor) -> np.ndarray:
    """`[C, H, W]` uint8 or floating point -> uint8 `[H, W, C]`, to look at."""
    values = (to_unit(image.detach().cpu()).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())
