"""Restoration: degraded images in, decibels out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import RenderableType
from torch import Tensor
from torch.optim import Optimizer

from vistrain.checkpoints import merged
from vistrain.data.base.module import DataModule
from vistrain.data.restoration.module import RestorationData
from vistrain.data.restoration.pixels import ColorName
from vistrain.errors import ConfigError
from vistrain.layers.imresize import imresize
from vistrain.layers.padding import to_unit
from vistrain.metrics import QUALITY, ImageQuality, Metric, protocol
from vistrain.network import Network
from vistrain.predictions import Restored
from vistrain.restoration import RestorationModel
from vistrain.structures import Factory
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.restoration.evaluate import evaluate_folder
from vistrain.tasks.restoration.predictor import RestorationPredictor
from vistrain.writing import whole_file

DIGITS = {"psnr": 4, "ssim": 5, "lpips": 5}  # behind the point, in per_image.csv


class RestorationTask(Task):
    """Trains and evaluates a restoration network against the targets in the batches.

    Args:
        lpips: files of weights for the protocol `lpips`, see `metrics.Lpips`: torchvision's AlexNet (or VGG-16) and the
            linear heads.
        model, optimizer, base: see `Task`.
    """

    predictor = RestorationPredictor
    protocols = (*QUALITY, "lpips")

    def __init__(
        self, model: Network, optimizer: Factory[Optimizer], *, lpips: tuple[str, ...] = (), **base: Any
    ) -> None:
        super().__init__(model, optimizer, **base)
        self.lpips = lpips

    @property
    def scale(self) -> int:
        """How many times larger restored images are."""
        return cast(RestorationModel, self.model).scale

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """One metric for each protocol name.

        Raises:
            ConfigError: a name is no protocol, or the network enlarges by another factor than the data is reduced.
        """
        data, scale = self.datamodule, self.scale
        if isinstance(data, RestorationData) and data.scale != scale:
            problem = f"is {data.scale}, but the network enlarges {scale} times"
            raise ConfigError("data.scale", problem, "make them equal")
        files: dict[str, Any] = {"weights": merged(self.lpips)} if "lpips" in self.metrics else {}
        return {name: protocol(name, scale=scale, **(files if name == "lpips" else {})) for name in self.metrics}

    def draw_sample(self, batch: Batch, index: int, prediction: Restored | None, side: int, threshold: float) -> Cells:
        """Input (enlarged bicubically) | restored | truth with the decibels of the first protocol, as far as there are;
        of large images the middle, so that pixels stay visible."""
        height, width = (int(n) for n in batch["size"][index])
        low, truth = batch["image"][index, :, :height, :width], batch["target"][index]["image"]
        name = str(batch["id"][index])
        plain = to_unit(low) if self.scale == 1 else imresize(to_unit(low), self.scale)
        what = f"{name}: {'input' if self.scale == 1 else 'bicubic'}"
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
            partial.write_text(
                "".join(",".join(row) + "\n" for row in rows), encoding="utf-8", errors="backslashreplace"
            )

    @classmethod
    def evaluate_file(
        cls,
        predictions: Path,
        data: DataModule | None = None,
        *,
        truth: Path | None = None,
        protocol: str = "sr_luma",
        scale: int = 1,
        color: ColorName = "rgb",
        lpips: Sequence[str] = (),
    ) -> RenderableType:
        """A protocol's numbers of a folder of restored pictures, of whatever program; see `evaluate_folder`.

        Args:
            predictions: the folder.
            data: none: the truth is a folder, too.
            truth: folder of true images.
            protocol: how they are measured.
            scale: that the pictures were enlarged by.
            color: `rgb`, `grey` or `luma`: of what is measured.
            lpips: weights for the protocol lpips, two files.

        Raises:
            ConfigError: there is no truth, or no such protocol for pictures.
            DataError: a folder or file is missing or cannot be read, or sizes differ.
            WeightsError: those of `lpips` are not what it needs.
        """
        if truth is None:
            raise ConfigError("evaluate", "no truth to compare with", "give --truth FOLDER")
        if data is not None:
            raise ConfigError("--truth", "is for pictures alone", "leave out --config")
        return evaluate_folder(predictions, truth, protocol, scale, color, lpips)


def pixels(image: Tensor) -> np.ndarray:
    """`[C, H, W]` uint8 or floating point -> uint8 `[H, W, C]`, to look at."""
    values = (to_unit(image.detach().cpu()).clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())


def middle(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image.

    Args:
        image: uint8 `[H, W, 3]` or `[H, W, 1]`.
        side: of the part, pixels.

    Returns:
        uint8 `[h, w, 3]` with sides of at most `side`.
    """
    top, left = (max(n - side, 0) // 2 for n in image.shape[:2])
    part = image[top : top + side, left : left + side]
    return np.ascontiguousarray(np.repeat(part, 3, 2) if part.shape[2] == 1 else part)
