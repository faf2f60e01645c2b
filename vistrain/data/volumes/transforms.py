"""Training augmentation of volumes, on tensors: one resampling for all that moves voxels, then what changes values.

The kinds, their order and their strengths are those of nnU-Net's default augmentation (Isensee et al. 2021, arXiv
1904.08128, supplementary note 4); written from that description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.data.volumes.first_stage import disturbed
from vistrain.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True)
class VolumeAugment:
    """Each kind with its probability, 0..1; 0 leaves it out.

    Attributes:
        rotate: probability; by up to `degrees` about each axis.
        degrees: largest angle.
        scale: probability; by a factor of `factors` (above 1 enlarges).
        factors: least and greatest.
        elastic: probability; smooth displacements of up to `displacement` voxels.
        displacement: in voxels of the patch.
        in_plane: move voxels within slices only, for slices that lie far apart (always so for patches of one slice).
        mirror: axes (0 z, 1 y, 2 x) along which a patch is mirrored, each with a probability of one half.
        noise: probability; Gaussian, with a variance of up to `variance`.
        variance: of intensities with a standard deviation of 1.
        blur: probability; of each modality by itself with one half, by a Gaussian with a sigma of `sigmas` voxels.
        sigmas: least and greatest.
        brightness: probability; times a factor of `brightness_factors`.
        brightness_factors: least and greatest.
        contrast: probability; away from the mean by a factor of `contrast_factors`, within the range of before.
        contrast_factors: least and greatest.
        low_resolution: probability; of each modality by itself with one half, made smaller to a share of `shares`, and
            enlarged again.
        shares: least and greatest.
        gamma: probability; an exponent of `exponents`, mean and deviation as before.
        exponents: least and greatest.
        inverted_gamma: probability; the same on the negative.
        reshape: probability; classes of a first stage grow and shrink, see `first_stage.disturbed`.
        drop: probability; a class of a first stage loses a component.

    Raises:
        ConfigError: a number makes no sense.
    """

    rotate: float = 0.2
    degrees: float = 30.0
    scale: float = 0.2
    factors: Range = (0.7, 1.4)
    elastic: float = 0.0
    displacement: float = 4.0
    in_plane: bool = False
    mirror: tuple[int, ...] = (0, 1, 2)
    noise: float = 0.1
    variance: float = 0.1
    blur: float = 0.2
    sigmas: Range = (0.5, 1.0)
    brightness: float = 0.15
    brightness_factors: Range = (0.75, 1.25)
    contrast: float = 0.15
    contrast_factors: Range = (0.75, 1.25)
    low_resolution: float = 0.25
    shares: Range = (0.5, 1.0)
    gamma: float = 0.3
    exponents: Range = (0.7, 1.5)
    inverted_gamma: float = 0.1
    reshape: float = 0.4
    drop: float = 0.2

    def __post_init__(self) -> None:
        shares = {
            "rotate": self.rotate, "scale": self.scale, "elastic": self.elastic, "noise": self.noise,
            "blur": self.blur, "brightness": self.brightness, "contrast": self.contrast,
            "low_resolution": self.low_resolution, "gamma": self.gamma, "inverted_gamma": self.inverted_gamma,
            "reshape": self.reshape, "drop": self.drop,
        }  # fmt: skip
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"data.augment.{name}", f"{value}", "a probability, 0..1")
        ranges = {"factors": self.factors, "sigmas": self.sigmas, "shares": self.shares, "exponents": self.exponents,
                  "brightness_factors": self.brightness_factors,
                  "contrast_factors": self.contrast_factors}  # fmt: skip
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ConfigError(f"data.augment.{name}", f"[{low}, {high}]", "the least first, both above 0")
        if not set(self.mirror) <= {0, 1, 2}:
            raise ConfigError("data.augment.mirror", f"{list(self.mirror)}", "some of the axes 0, 1 and 2")

    def motion(self, patch: Sequence[int], draw: np.random.Generator) -> Motion | None:
        """What moves voxels, drawn; None: nothing does, and the patch is read as it lies there."""
        chosen = draw.random(3) < (self.rotate, self.scale, self.elastic)
        angles = np.radians(draw.uniform(-self.degrees, self.degrees, 3)) * chosen[0]
        factor = _drawn(draw, self.factors) if chosen[1] else 1.0
        seed, strength = int(draw.integers(2**31)), float(draw.uniform(0.25, 1.0)) * self.displacement
        if not chosen.any():
            return None
        flat = self.in_plane or patch[0] == 1
        if flat:
            angles[1:] = 0.0
        matrix = rotation(angles)
        scales = np.array([1.0 if flat else 1 / factor, 1 / factor, 1 / factor])
        return Motion(matrix * scales[None, :], seed if chosen[2] else None, strength, flat)

    def values(
        self, image: Tensor, label: Tensor, draw: np.random.Generator, previous: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Everything that does not move voxels, and mirroring.

        Args:
            image: float32 `[C, d, h, w]`, of intensities with mean 0 and deviation 1; may be written to.
            label: `[d, h, w]`.
            draw: decides.
            previous: how many of the last channels are classes of a first stage, which have no intensities.
        """
        image, maps = image[: len(image) - previous], image[len(image) - previous :]
        chosen = draw.random(7) < (self.noise, self.blur, self.brightness, self.contrast, self.low_resolution,
                                   self.inverted_gamma, self.gamma)  # fmt: skip
        if chosen[0]:
            generator = torch.Generator().manual_seed(int(draw.integers(2**31)))
            deviation = math.sqrt(draw.uniform(0, self.variance))
            image = image + deviation * torch.randn(image.shape, generator=generator)
        for channel in range(len(image)):
            if chosen[1] and draw.random() < 0.5:
                image[channel] = blurred(image[channel], _drawn(draw, self.sigmas))
            if chosen[2]:
                image[channel] *= _drawn(draw, self.brightness_factors)
            if chosen[3]:
                part, factor = image[channel], _drawn(draw, self.contrast_factors)
                low, high, mean = part.min(), part.max(), part.mean()
                image[channel] = ((part - mean) * factor + mean).clamp(low, high)
            if chosen[4] and draw.random() < 0.5:
                image[channel] = coarse(image[channel], _drawn(draw, self.shares))
            if chosen[5]:
                image[channel] = -power(-image[channel], _drawn(draw, self.exponents))
            if chosen[6]:
                image[channel] = power(image[channel], _drawn(draw, self.exponents))
        if previous:
            image = torch.cat((image, disturbed(maps, draw, self.reshape, self.drop)))
        axes = [axis for axis in self.mirror if draw.random() < 0.5]
        if axes:
            image, label = image.flip([axis + 1 for axis in axes]), label.flip(axes)
        return image, label


@dataclass(frozen=True)
class Motion:
    """Where the voxels of a patch come from.

    Attributes:
        matrix: `[3, 3]`, from places in the patch (z, y, x from its middle, voxels) to places in the case, from there.
        seed: of elastic displacements, or None.
        displacement: their largest, voxels.
        flat: nothing moves along z.
    """

    matrix: np.ndarray
    seed: int | None
    displacement: float
    flat: bool

    def extent(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Sides of the part of a case around the middle that a patch is made of, voxels."""
        half = (np.asarray(patch, float) - 1) / 2
        reach = np.abs(self.matrix) @ half + (self.displacement if self.seed is not None else 0.0)
        sides = [2 * math.ceil(r) + 3 for r in reach]
        if self.flat:
            sides[0] = patch[0]
        return tuple(sides)

    def applied(self, image: Tensor, label: Tensor, patch: Sequence[int], ignored: int) -> tuple[Tensor, Tensor]:
        """A patch out of the part of a case that has its `extent`.

        Args:
            image: float32 `[C, *extent]`.
            label: integers `[*extent]`.
            patch: sides wanted.
            ignored: label of what lies outside.

        Returns:
            float32 `[C, *patch]` by linear interpolation, and labels of the nearest voxels.
        """
        sides = torch.tensor(label.shape, dtype=torch.float32)
        axes = [torch.arange(side, dtype=torch.float32) - (side - 1) / 2 for side in patch]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # [d, h, w, 3]: z, y, x
        moved = places @ torch.from_numpy(self.matrix.T).float()
        if self.seed is not None:
            moved = moved + self._displacements(patch)
        if self.flat:
            moved[..., 0] = places[..., 0]
        # From voxels around the middle to -1..1, where -1 and 1 are the borders; x comes first.
        grid = (2 * moved / sides).flip(-1)[None]
        found = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        shifted = (label.float() - ignored)[None, None]  # what lies outside is 0: ignored
        classes = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0]
        return found, (classes + ignored).round().to(label.dtype)

    def _displacements(self, patch: Sequence[int]) -> Tensor:
        """`[*patch, 3]`: random numbers on a coarse grid, enlarged."""
        generator = torch.Generator().manual_seed(self.seed or 0)
        knots = [max(2, min(side, round(side / 16) + 2)) for side in patch]
        coarse_field = torch.rand((1, 3, *knots), generator=generator) * 2 - 1
        field = F.interpolate(coarse_field, tuple(patch), mode="trilinear", align_corners=True)[0]
        return self.displacement * field.movedim(0, -1)


def rotation(angles: Sequence[float]) -> np.ndarray:
    """`[3, 3]`, about z, y and x by so many radians, of vectors (z, y, x)."""
    found = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        found = found @ turn
    return found


def blurred(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian over `[d, h, w]`, axis by axis; borders are repeated."""
    radius = max(1, math.ceil(3 * sigma))
    place = torch.arange(-radius, radius + 1, dtype=image.dtype)
    bell = torch.exp(-0.5 * (place / sigma) ** 2)
    bell /= bell.sum()
    for axis in range(3):
        if image.shape[axis] == 1:
            continue
        line = image.movedim(axis, -1)
        flat = F.pad(line.reshape(-1, 1, line.shape[-1]), (radius, radius), mode="replicate")
        image = F.conv1d(flat, bell[None, None]).view(line.shape).movedim(-1, axis)
    return image


def coarse(image: Tensor, share: float) -> Tensor:
    """`[d, h, w]` as if it had been taken with a share of the voxels along each side."""
    small = tuple(max(1, round(side * share)) for side in image.shape)
    shrunk = F.interpolate(image[None, None], small, mode="nearest-exact")
    return F.interpolate(shrunk, tuple(image.shape), mode="trilinear", align_corners=False)[0, 0]


def power(image: Tensor, exponent: float) -> Tensor:
    """`[d, h, w]` with its range raised to an exponent; mean and standard deviation stay."""
    low, mean, deviation = image.min(), image.mean(), image.std()
    span = (image.max() - low).clamp(min=1e-7)
    found = ((image - low) / span) ** exponent * span + low
    return (found - found.mean()) / found.std().clamp(min=1e-7) * deviation + mean


def _drawn(draw: np.random.Generator, bounds: Range) -> float:
    return float(draw.uniform(*bounds))
