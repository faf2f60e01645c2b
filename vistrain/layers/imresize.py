"""MATLAB's `imresize` with the bicubic kernel, which the low-resolution images of the literature are made with.

The kernel is Keys' cubic with a = -0.5; when an image is reduced and `antialias` is on, it is stretched by the factor.
Beyond its border the image is mirrored, edge pixel included; torch and Pillow cut the kernel off there instead, which
differs by up to 12 grey levels. Height is resized before width, as MATLAB does for equal factors.

Each side's resize is a banded matrix. It is multiplied in blocks, dense ones of a few outputs each, which is what
processors are quickest at; the blocks depend on the sizes alone and are kept.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # outputs per block; fewer where images are much reduced
WIDTH = 4  # of the kernel, pixels


def imresize(
    images: Tensor, scale: float | None = None, size: tuple[int, int] | None = None, antialias: bool = True
) -> Tensor:
    """Resizes images.

    Args:
        images: `[..., H, W]` floating point; any range, nothing is clipped.
        scale: factor of both sides; the result has `ceil(H * scale)` x `ceil(W * scale)` pixels.
        size: height and width of the result, instead of `scale`; each side then has its own factor.
        antialias: stretch the kernel where the image is reduced.

    Returns:
        `[..., h, w]`, of the type of `images`; differentiable.

    Raises:
        ValueError: neither or both of `scale` and `size` are given, or are not positive.
    """
    if (scale is None) == (size is None) or (scale is not None and scale <= 0) or (size is not None and min(size) < 1):
        raise ValueError(f"give one of scale ({scale}) and size ({size}), positive")
    factors = [scale, scale] if size is None else [n / side for n, side in zip(size, images.shape[-2:], strict=True)]
    for axis in sorted((0, 1), key=lambda i: float(factors[i])):  # type: ignore[arg-type]  # the smaller factor first
        factor, length = float(factors[axis]), images.shape[axis - 2]  # type: ignore[arg-type]
        output = math.ceil(length * factor) if size is None else size[axis]
        images = _along(images, axis, output, factor, antialias)
    return images


def imresize_uint8(image: np.ndarray, scale: float, antialias: bool = True, between: bool = True) -> np.ndarray:
    """Resizes an 8-bit image, rounded to 8 bits, halves up.

    MATLAB rounds twice, after each side, since its result has the type of its input: with that, Set5 and Set14's
    low-resolution images for x2, x3 and x4 come out to the bit.

    Args:
        image: uint8 `[H, W, C]`.
        scale: factor of both sides.
        antialias: see `imresize`.
        between: round between the sides, too.

    Returns:
        uint8 `[ceil(H * scale), ceil(W * scale), C]`.
    """
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    for axis in (0, 1):
        length = planes.shape[axis - 2]
        planes = _along(planes, axis, math.ceil(length * scale), float(scale), antialias)
        if between or axis == 1:
            planes = planes.add_(0.5).floor_().clamp_(0, 255)
    return planes.byte().permute(1, 2, 0).contiguous().numpy()


def _along(images: Tensor, axis: int, output: int, scale: float, antialias: bool) -> Tensor:
    """`[..., H, W]` with its height (axis 0) or width resized to so many pixels."""
    if isinstance(images.shape[axis - 2], torch.SymInt):
        return _enlarged(images, axis, scale)
    shape = list(images.shape)
    length, shape[axis - 2] = shape[axis - 2], output
    # A block's inputs, mostly zeros, grow as 1 / scale; measured: narrow products along rows are slower
    step = int(np.clip(round(BLOCK * scale), BLOCK // (2 if axis else 4), BLOCK))
    blocks = _blocks(length, output, scale, antialias, step, images.dtype, images.device)
    if images.requires_grad or torch.compiler.is_exporting():  # neither follows writing into a given tensor
        parts = [images.narrow(axis - 2, first, weights.shape[1]) for first, weights in blocks]
        pairs = zip(parts, (weights for _, weights in blocks), strict=True)
        return torch.cat([part @ weights.T if axis else weights @ part for part, weights in pairs], axis - 2)
    resized = images.new_empty(shape)
    # Plain products of matrices that are written where they belong: batched ones would copy weights and results
    sources, targets = (x.reshape(-1, *x.shape[axis - 2 :]) for x in (images, resized))
    for source, target in [(sources, targets)] if axis else zip(sources, targets, strict=True):
        start = 0
        for first, weights in blocks:
            part, place = source.narrow(axis, first, weights.shape[1]), target.narrow(axis, start, len(weights))
            torch.mm(*((part, weights.T) if axis else (weights, part)), out=place)
            start += len(weights)
    return resized


def _enlarged(images: Tensor, axis: int, scale: float) -> Tensor:
    """`_along` for sides that are not known while a network is exported: by a whole number, which has one set of
    weights for each of its phases.

    Raises:
        ValueError: it is no whole number.
    """
    if scale != int(scale):
        raise ValueError(f"sides that are not known cannot be resized by {scale}")
    dim, length = axis - 2, images.shape[axis - 2]
    firsts, weights = taps(int(scale), scale)
    margin = int(max(-firsts.min(), firsts.max() + weights.shape[1] - 1))
    ends = images.narrow(dim, 0, margin), images.narrow(dim, length - margin, margin)
    padded = torch.cat((ends[0].flip(dim), images, ends[1].flip(dim)), dim)
    phases = []
    for first, row in zip(firsts.tolist(), weights.tolist(), strict=True):
        read = [weight * padded.narrow(dim, margin + first + i, length) for i, weight in enumerate(row)]
        phases.append(torch.stack(read).sum(0))
    return torch.stack(phases, images.dim() + dim + 1).flatten(images.dim() + dim, images.dim() + dim + 1)


@functools.lru_cache(maxsize=256)
def _blocks(
    length: int, output: int, scale: float, antialias: bool, step: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[int, Tensor]]:
    """First input and weights `[outputs, inputs]` of each block of `step` outputs."""
    first, weights = taps(output, scale, antialias)
    indices = (first[:, None] + np.arange(weights.shape[1])) % (2 * length)
    indices = np.where(indices < length, indices, 2 * length - 1 - indices)
    blocks = []
    for start in range(0, output, step):
        place, weight = indices[start : start + step], weights[start : start + step]
        low, high = int(place.min()), int(place.max())
        dense = np.zeros((len(place), high - low + 1))
        # Near a border several taps meet the same pixel, once mirrored
        np.add.at(dense, (np.arange(len(place))[:, None], place - low), weight)
        blocks.append((low, torch.from_numpy(dense).to(device, dtype)))
    return blocks


def taps(output: int, scale: float, antialias: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Which inputs make up each output of one side.

    Args:
        output: number of outputs.
        scale: the factor; not always outputs over inputs, which is rounded up.
        antialias: see `imresize`.

    Returns:
        The first input of each output, `[output]` int64, which may lie beyond the border, and the weights of it and the
        following ones, `[output, taps]` float64, whose rows sum to 1.
    """
    stretch = min(scale, 1.0) if antialias else 1.0
    width = WIDTH / stretch
    center = (np.arange(output) + 0.5) / scale - 0.5
    first = np.floor(center - width / 2).astype(np.int64)
    offsets = np.arange(math.ceil(width) + 2)
    weights = cubic((center[:, None] - first[:, None] - offsets) * stretch)
    weights /= weights.sum(1, keepdims=True)
    used = np.flatnonzero((weights != 0).any(0))
    return first + used[0], weights[:, used[0] : used[-1] + 1]


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5 (IEEE TASSP 1981, equation 15), zero beyond 2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
