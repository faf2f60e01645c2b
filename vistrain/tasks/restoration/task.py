"""Restoration: degraded images in, decibels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vistrain.checkpoints import merged
from vistrain.errors import ConfigError
from vistrain.layers.imresize import imresize
from vistrain.layers.padding import to_unit
from vistrain.metrics import ImageQuality, protocol
from vistrain.optim import ParameterGroups, Schedule
from vistrain.structures import Factory, Restored
from vistrain.tasks.base.task import Metric, Task
from vistrain.tasks.restoration.pictures import middle
from vistrain.writing import whole_file

DIGITS = {"psnr": 4, "ssim": 5, "lpips": 5}  # behind the point, in per_image.csv


class RestorationTask(Task):
    """Trains and evaluates a restoration network against the targets in the batches.

    Args:
        model, optimizer, groups, schedule, metrics, compile, seed, channels_last: see `Task`.
        lpips: files of weights for the protocol `lpips`, see `metrics.Lpips`: torchvision's AlexNet (or VGG-16) and the
            linear heads.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Factory[Optimizer],
        groups: ParameterGroups | None = None,
        schedule: Schedule | None = None,
        metrics: Sequence[str] = (),
        compile: bool = False,
        seed: int = 0,
        channels_last: bool = False,
        lpips: tuple[str, ...] = (),
    ) -> None:
        super().__init__(model, optimizer, groups, schedule, metrics, compile, seed, channels_last)
        self.lpips = lpips

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """One metric for each protocol name.

        Raises:
            ConfigError: a name is no protocol, or the network enlarges by another factor than the data is reduced.
        """
        scale = getattr(self.model, "scale", 1)
        found = getattr(getattr(self.trainer, "datamodule", None), "scale", scale)
        if found != scale:
            raise ConfigError("data.scale", f"is {found}, but the network enlarges {scale} times", "make them equal")
        files: dict[str, Any] = {"weights": merged(self.lpips)} if "lpips" in self.metrics else {}
        return {name: protocol(name, scale=scale, **(files if name == "lpips" else {})) for name in self.metrics}

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
        """Decibels and similarity by the first protocol that has them."""
        for metrics in self.evaluators.values():
            for metric in metrics.values():
                if isinstance(metric, ImageQuality):
                    decibels, similarity = metric.measure(image, truth)
                    return f"{decibels:.2f} dB, {similarity:.4f}"
        return ""

    def write_predictions(self, path: Path) -> None:
        """Write the numbers of each image in the latest evaluation as `per_image.csv`; on rank 0, which has them."""
        records = [(name, record) for name, members in self.records.items() for record in members]
        numbers = [
            key for key, digits in DIGITS.items() if key in ("psnr", "ssim") or any(key in r for _, r in records)
        ]
        rows = [["protocol", "image", *numbers]]
        for name, record in records:
            cells = (f"{record[key]:.{DIGITS[key]}f}" if key in record else "" for key in numbers)
            rows.append([name, str(record["id"]), *cells])
        with whole_file(path.with_name("per_image.csv")) as partial:
            partial.write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")


def pixels(image: Tensor) -> np.ndarray:
    """`[C, H, W]` uint8 or floating point -> uint8 `[H, W, C]`, to look at."""
    values = (to_unit(image.detach().cpu()).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())
