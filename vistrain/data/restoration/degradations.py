"""What makes low images of good ones: bicubic reduction, noise, JPEG. Local, so that a patch can be degraded alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from vistrain.errors import ConfigError
from vistrain.layers.imresize import imresize, imresize_uint8


class Degradation(ABC):
    """Base of all degradations.

    Attributes:
        scale: how many times smaller the result is.
        margin: how many pixels of the result beyond a patch's border its pixels depend on.
    """

    scale = 1
    margin = 0

    @abstractmethod
    def __call__(self, image: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
        """The degraded image.

        Args:
            image: `[H, W, C]`, uint8, or float32 with brightest pixel 1 where an earlier degradation left it so.
            draw: of all random choices. Evaluation gives each image a generator of seed 0, as KAIR seeds NumPy.

        Returns:
            `[H / scale, W / scale, C]`, uint8 or float32.
        """


class Bicubic(Degradation):
    """MATLAB's bicubic reduction.

    Args:
        scale: the factor, 2 or more.
        rounding: `matlab` rounds to 8 bits after each side, as `imresize` does with 8-bit images and as the published
            sets were made; `once` at the end; `none` not at all (SRCNN's protocol).

    Raises:
        ConfigError: the factor or the rounding is unknown.
    """

    margin = 3  # the kernel reaches two pixels of the result to either side

    def __init__(self, scale: int, rounding: str = "matlab") -> None:
        if scale < 2:
            raise ConfigError("scale", f"{scale} is too small", "use 2 or more")
        if rounding not in ("matlab", "once", "none"):
            raise ConfigError("rounding", f"unknown {rounding!r}", "use 'matlab', 'once' or 'none'")
        self.scale, self.rounding = scale, rounding

    def __call__(self, image: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
        """See `Degradation`; float images stay float."""
        if image.dtype == np.uint8 and self.rounding != "none":
            return imresize_uint8(image, 1 / self.scale, between=self.rounding == "matlab")
        planes = torch.from_numpy(np.ascontiguousarray(as_float(image).transpose(2, 0, 1)))
        return imresize(planes, 1 / self.scale).permute(1, 2, 0).contiguous().numpy()


class GaussianNoise(Degradation):
    """White Gaussian noise, added in floating point: neither clipped nor rounded (DnCNN, KAIR).

    Args:
        sigma: standard deviation in grey levels of 255, or the bounds that it is drawn between, evenly, for each image
            (blind denoising).
        quantize: clip to 0..255 and cut off to 8 bits, as the all-in-one line does (AirNet, PromptIR, MTAIR).

    Raises:
        ConfigError: sigma is negative, or bounds are not in order.
    """

    def __init__(self, sigma: float | tuple[float, float], quantize: bool = False) -> None:
        self.bounds = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        if not 0 <= self.bounds[0] <= self.bounds[1]:
            raise ConfigError("sigma", f"{sigma} is not a deviation, nor bounds of one")
        self.quantize = quantize

    def __call__(self, image: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
        """See `Degradation`; float32, or uint8 with `quantize`."""
        low, high = self.bounds
        sigma = low if low == high else draw.uniform(low, high)
        if self.quantize:
            noisy = as_float(image).astype(np.float64) * 255 + draw.randn(*image.shape) * sigma
            return noisy.clip(0, 255).astype(np.uint8)
        return (as_float(image) + draw.normal(0, sigma / 255, image.shape)).astype(np.float32)


class Jpeg(Degradation):
    """JPEG compression, baseline, colour at half resolution, as OpenCV writes it (KAIR).

    Args:
        quality: 1..100, or the bounds that it is drawn between.

    Raises:
        ConfigError: the quality is out of range.
    """

    def __init__(self, quality: int | tuple[int, int]) -> None:
        self.bounds = quality if isinstance(quality, tuple) else (quality, quality)
        if not 1 <= self.bounds[0] <= self.bounds[1] <= 100:
            raise ConfigError("quality", f"{quality} is not in 1..100, nor bounds of one")

    def __call__(self, image: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
        """See `Degradation`; uint8."""
        low, high = self.bounds
        quality = low if low == high else int(draw.randint(low, high + 1))
        pixels = image if image.dtype == np.uint8 else (image * 255).clip(0, 255).round().astype(np.uint8)
        _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
        return decoded[..., None] if decoded.ndim == 2 else np.ascontiguousarray(decoded[..., ::-1])


class Chain(Degradation):
    """Degradations one after the other.

    Args:
        steps: in their order; at most one changes the size, and it comes first among those that look around a pixel.
    """

    def __init__(self, steps: tuple[Degradation, ...]) -> None:
        self.steps = steps
        self.scale = int(np.prod([step.scale for step in steps])) if steps else 1
        self.margin = sum(step.margin for step in steps)

    def __call__(self, image: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
        """See `Degradation`."""
        for step in self.steps:
            image = step(image, draw)
        return image


def as_float(image: np.ndarray) -> np.ndarray:
    """uint8 or float -> float32 with brightest pixel 1."""
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image.astype(np.float32)


def generator(seed: int | Sequence[int]) -> np.random.RandomState:
    """A generator of a seed of any size; of 0 the stream is that of `np.random.seed(0)`."""
    if isinstance(seed, int) and seed >= 2**32:
        seed = (seed & 0xFFFFFFFF, seed >> 32)
    return np.random.RandomState(seed)
