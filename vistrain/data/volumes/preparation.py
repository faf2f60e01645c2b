"""What is done to a case once, before a network sees anything of it: intensities, cropping, one spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from vistrain.data.base.transform import EvalTransform
from vistrain.errors import ConfigError, DataError

Intensities = Literal["zscore", "percentiles", "window", "none"]
Box = tuple[tuple[int, int], ...]  # from, to (exclusive) along z, y, x
AIR = 0.5  # share of the border's voxels that have one value, above which that value is air
LEAST = 1e-8
MOST = 2**31  # voxels of a case after resampling
FINER = 64  # times more voxels that resampling may make of a case: four along each axis


@dataclass(frozen=True)
class VolumePreparation(EvalTransform):
    """Intensities, cropping and spacing; checkpoints carry it to the predictor.

    Attributes:
        modalities: which images a case has, in the order of the network's channels.
        spacing: mm along z, y, x that cases are resampled to; None: each keeps its own.
        intensities: of all modalities, or one for each: `zscore`, mean 0 and standard deviation 1 over the brain;
            `percentiles`, the same after clipping to the `percentiles` there; `window`, of units that mean something
            (CT): clipped to the window's first two numbers, then less the third and divided by the fourth; `none`.
        percentiles: the lower and the upper one, 0..100.
        window: lowest and highest value, mean and standard deviation, as `vistrain check` proposes them.
        within: where intensities are measured: in the `brain`, which is the mask of a case, or, where it has none,
            whatever is not air; or in `all` voxels. Air is the one value that at least half of an image's border has
            (in skull-stripped images 0 as a rule, but not always). What is not brain becomes 0.
        crop: leave out what lies around the brain.
        previous: classes of a first stage (without the background) that are further channels, see `first_stage`.

    Raises:
        ConfigError: numbers make no sense.
    """

    modalities: tuple[str, ...] = ("image",)
    spacing: tuple[float, float, float] | None = None
    intensities: tuple[Intensities, ...] = ("zscore",)
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float, float, float] | None = None
    within: Literal["brain", "all"] = "brain"
    crop: bool = True
    previous: int = 0

    def __post_init__(self) -> None:
        if self.spacing is not None and not all(0 < length < math.inf for length in self.spacing):
            raise ConfigError("data.spacing", f"{list(self.spacing)}", "mm along z, y and x, above 0")
        if len(self.intensities) not in (1, len(self.modalities)):
            problem = f"{len(self.intensities)} of them for {len(self.modalities)} modalities"
            raise ConfigError("data.intensities", problem, "write one, or one for each modality")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ConfigError("data.percentiles", f"{list(self.percentiles)}", "a lower and an upper one, 0..100")
        if "window" in self.intensities:
            if self.window is None:
                raise ConfigError("data.window", "is missing", "`vistrain check` proposes one")
            if self.window[0] >= self.window[1] or self.window[3] <= 0:
                problem = f"{list(self.window)}"
                raise ConfigError("data.window", problem, "lowest and highest value, mean and standard deviation")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Intensities of `[*S, C]`, without cropping and resampling."""
        images = np.moveaxis(image, -1, 0).astype(np.float32)
        return np.moveaxis(self.normalised(images, self.brain_of(images)), 0, -1).astype(image.dtype)

    def brain_of(self, images: np.ndarray) -> np.ndarray | None:
        """Where any of the images `[C, *S]` is not air, bool `[*S]`; None: everywhere."""
        if self.within == "all":
            return None
        found: np.ndarray | None = None
        for image in images:
            air = air_of(image)
            if air is None:
                return None
            inside = image != air
            found = inside if found is None else found | inside
        return found if found is not None and found.any() else None

    def normalised(self, images: np.ndarray, brain: np.ndarray | None) -> np.ndarray:
        """Images float32 `[C, *S]` with their intensities as the network takes them; written in place.

        Args:
            images: as measured.
            brain: bool `[*S]`, or None for all.
        """
        kinds = self.intensities * (len(images) if len(self.intensities) == 1 else 1)
        for image, kind in zip(images, kinds, strict=True):
            if kind == "none":
                continue
            if kind == "window":
                low, high, mean, std = self.window or (0.0, 1.0, 0.0, 1.0)
                np.clip(image, low, high, out=image)
            else:
                seen = image.ravel() if brain is None else image[brain]
                if kind == "percentiles":
                    low, high = np.percentile(seen, self.percentiles)
                    np.clip(image, low, high, out=image)
                    seen = np.clip(seen, low, high)
                mean, std = float(seen.mean(dtype=np.float64)), float(seen.std(dtype=np.float64))
            image -= mean
            image /= max(std, LEAST)
            if brain is not None and kind != "window":
                image[~brain] = 0
        return images

    def box_of(self, sides: Sequence[int], brain: np.ndarray | None) -> Box:
        """The part of a case that is kept."""
        if not self.crop or brain is None:
            return tuple((0, side) for side in sides)
        box = []
        for axis in range(brain.ndim):
            there = np.flatnonzero(brain.any(tuple(a for a in range(brain.ndim) if a != axis)))
            box.append((int(there[0]), int(there[-1]) + 1))
        return tuple(box)

    def sides_of(self, sides: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
        """Sides of a part of a case after resampling.

        Raises:
            DataError: they are so many voxels that they cannot be meant, or an axis of several voxels has none left.
        """
        if self.spacing is None:
            return tuple(sides)
        exact = [side * old / new for side, old, new in zip(sides, spacing, self.spacing, strict=True)]
        own, made = (math.prod(map(float, lengths)) for lengths in (sides, exact))
        mm = "x".join(f"{length:g}" for length in self.spacing)
        was = f"{'x'.join(map(str, sides))} voxels of {'x'.join(f'{length:.3g}' for length in spacing)} mm"
        remedy = "data.spacing is in mm along z, y, x: `vistrain check` proposes one"
        if made > min(MOST, FINER * own):
            problem = f"{was} would be {'x'.join(f'{length:.0f}' for length in exact)} of {mm} mm"
            raise DataError("data.spacing", problem, remedy)
        found = [round(length) for length in exact]
        if any(new < 1 < old for new, old in zip(found, sides, strict=True)):
            problem = f"{was} would be less than one of {mm} mm along an axis"
            raise DataError("data.spacing", problem, remedy)
        return tuple(max(1, length) for length in found)

    def prepared(
        self,
        images: np.ndarray,
        spacing: Sequence[float],
        brain: np.ndarray | None = None,
        previous: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Box]:
        """All of it.

        Args:
            images: float32 `[C, z, y, x]`, as measured; may be written to.
            spacing: mm along z, y, x.
            brain: its mask, where there is one.
            previous: class channels `[z, y, x]` of the first stage, where the network takes them.

        Returns:
            float32 `[C, d, h, w]` of the box, with the channels of the first stage behind the images, and the box in
            voxels of the case.

        Raises:
            DataError: see `sides_of`.
        """
        if self.within == "all":
            brain = None
        elif brain is None or not brain.any():
            brain = self.brain_of(images)
        box = self.box_of(images.shape[1:], brain)
        sides = self.sides_of([high - low for low, high in box], spacing)
        inside = tuple(slice(low, high) for low, high in box)
        # A copy of the box alone, so that the whole can be let go of.
        images = np.ascontiguousarray(images[(slice(None), *inside)])
        self.normalised(images, None if brain is None else brain[inside])
        images = resampled(images, sides)
        if self.previous:
            if previous is None:
                raise DataError("data.previous", "has no label map of this case", "predict it with the first stage")
            found = one_hot(np.ascontiguousarray(previous[inside]), sides, self.previous)
            images = np.concatenate((images, found))
        return images, box


def air_of(image: np.ndarray) -> float | None:
    """The value that at least half of an image's border has; None if there is none."""
    faces = [np.take(image, place, axis).ravel() for axis in range(image.ndim) for place in (0, -1)]
    border = np.concatenate(faces)
    values, counts = np.unique(border, return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if counts[most] >= AIR * len(border) else None


def resampled(images: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Linear interpolation of float32 `[C, *S]` to `[C, *sides]`; voxels keep their borders."""
    if images.shape[1:] == tuple(sides):
        return images
    found = np.empty((len(images), *sides), np.float32)
    for image, target in zip(images, found, strict=True):
        target[:] = F.interpolate(
            torch.from_numpy(image)[None, None], tuple(sides), mode="trilinear", align_corners=False
        )[0, 0].numpy()
    return found


def resampled_labels(labels: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """The class that linear interpolation gives most weight, `[*sides]` of the labels' type; of equal ones the lowest.

    Args:
        labels: integers `[*S]`.
        sides: wanted.
    """
    if labels.shape == tuple(sides):
        return labels
    best = torch.full(tuple(sides), -1.0)
    found = torch.zeros(tuple(sides), dtype=torch.int64)
    for value in np.unique(labels).tolist():
        share = F.interpolate(
            torch.from_numpy((labels == value).astype(np.float32))[None, None],
            tuple(sides), mode="trilinear", align_corners=False,
        )[0, 0]  # fmt: skip
        better = share > best
        best[better] = share[better]
        found[better] = value
    return found.numpy().astype(labels.dtype)


def one_hot(classes: np.ndarray, sides: Sequence[int], count: int) -> np.ndarray:
    """Class channels of a first stage as the network takes them.

    Args:
        classes: `[*S]`, 0 is the background.
        sides: wanted.
        count: of the classes but the background.

    Returns:
        float32 `[count, *sides]` of 0 and 1.
    """
    there = resampled_labels(classes, sides)
    return np.stack([there == channel for channel in range(1, count + 1)]).astype(np.float32)
