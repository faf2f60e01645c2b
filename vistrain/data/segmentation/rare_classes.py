"""Rare-class sampling: classes are drawn first, the rarer the likelier, then an image that has the class (DAFormer,
Hoyer et al. 2022, arXiv 2111.14887, section 3.3). Written from the paper."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vistrain.data.base.check import opened
from vistrain.data.segmentation.label_files import LabelRule
from vistrain.data.segmentation.mask_pairs import MaskPair
from vistrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RareClasses:
    """How training images are drawn.

    Args:
        temperature: T of `P(c) ~ exp((1 - f_c) / T)`, f_c the share of the training set's pixels that are c: the
            smaller, the more rare classes are preferred.
        least_pixels: of a class that an image must have to count as having it.
        crop_share: of `least_pixels` that a crop should have, see `MaskAugment`.

    Raises:
        ConfigError: a number is not positive.
    """

    temperature: float = 0.01
    least_pixels: int = 3000
    crop_share: float = 0.5

    def __post_init__(self) -> None:
        """Check."""
        for name in ("temperature", "least_pixels"):
            if {"temperature": self.temperature, "least_pixels": self.least_pixels}[name] <= 0:
                raise ConfigError(f"data.rare_classes.{name}", "must be above 0")

    def table(self, pixels: np.ndarray) -> np.ndarray:
        """How often each image is drawn for each class.

        Args:
            pixels: `[N, K]`, of each class in each image.

        Returns:
            float64 `[N, K]`, of sum 1: P(c) in equal shares for the images that have c.

        Raises:
            DataError: no image has enough of any class.
        """
        has = pixels >= self.least_pixels
        images = has.sum(0)
        if not images.any():
            problem = f"no training image has {self.least_pixels} pixels of any class"
            raise DataError("data.train", problem, "lower data.rare_classes.least_pixels")
        logits = np.where(images > 0, (1 - pixels.sum(0) / pixels.sum()) / self.temperature, -np.inf)
        share = np.exp(logits - logits.max())
        share /= share.sum()
        drawn: np.ndarray = has * (share / np.maximum(images, 1))
        return drawn


def class_pixels(pairs: Sequence[MaskPair], rule: LabelRule) -> np.ndarray:
    """How many pixels of each class label files have, int64 `[N, K]`; zeros where one cannot be read."""
    count = rule.labels.num_classes
    log.info("counting the classes of %d masks", len(pairs))

    def look(pair: MaskPair) -> np.ndarray:
        channels = rule.read(pair.mask)
        return np.bincount(channels[channels != rule.ignored].astype(np.int64), minlength=count)

    found = np.zeros((len(pairs), count), np.int64)
    for row, (_, result) in enumerate(opened(pairs, look, "counting classes")):
        if not isinstance(result, DataError):
            found[row] = result
    return found
