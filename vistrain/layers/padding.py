"""From uint8 batches to what networks compute with: normalisation on the device and padding masks."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.layers.precision import at_least_float32
from vistrain.structures import Preprocessing


def padding_mask(size: Tensor, *sides: int) -> Tensor:
    """Where a batch is padding.

    Args:
        size: `[B, len(S)]` int64, the sides of each unpadded image; padding is at the end of each side.
        sides: of the padded batch, S: height and width, or depth, height and width.

    Returns:
        `[B, *S]` bool, True on padding.
    """
    ones = [1] * len(sides)
    beyond = [
        torch.arange(side, device=size.device).view(1, *ones[:i], side, *ones[i + 1 :]) >= size[:, i].view(-1, *ones)
        for i, side in enumerate(sides)
    ]
    return functools.reduce(torch.bitwise_or, beyond)


def resize_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Nearest-neighbour resize of a `[B, *S]` bool mask to `[B, *size]`, as DETR does for its feature levels."""
    return F.interpolate(mask[None].float(), size=size)[0].to(torch.bool)


EdgeMode = Literal["reflect", "symmetric", "edge", "zeros"]


def to_unit(images: Tensor) -> Tensor:
    """uint8 (0..255), uint16 (0..65535) or floats (brightest pixel = 1) -> at least float32, brightest pixel 1."""
    brightest = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(images.dtype)
    return at_least_float32(images) if brightest is None else at_least_float32(images) / brightest


def extend(images: Tensor, *extra: int, mode: EdgeMode = "reflect") -> Tensor:
    """Pads images at the end of their sides by any number of pixels, more than the image has, too.

    Args:
        images: `[..., *S]`.
        extra: pixels to add to each side: bottom and right, or back, bottom and right; none where it is not positive.
        mode: `reflect` mirrors without the edge pixel (torch's and NumPy's `reflect`), `symmetric` with it, `edge`
            repeats it, `zeros` is black. Where a mirror image ends, it is mirrored again, as NumPy does.

    Returns:
        `[..., *T]`, T the sides with what was added.
    """
    known = not any(isinstance(more, torch.SymInt) for more in extra)  # of sizes that are not, none may be asked for
    if known and max(extra) <= 0:
        return images
    if mode == "zeros":
        return F.pad(images, [n for more in reversed(extra) for n in (0, more)])
    for dim, more in enumerate(extra, start=-len(extra)):
        if not known or more > 0:
            length = images.shape[dim]
            places = torch.arange(length + more, device=images.device)
            images = images.index_select(
                dim, places.clamp(max=length - 1) if mode == "edge" else mirrored(places, length, mode == "symmetric")
            )
    return images


def mirrored(places: Tensor, length: int, twice: bool = False) -> Tensor:
    """Which cell stands where, if an axis is mirrored at its end, and that again where it ends.

    Args:
        places: int64, from 0 on.
        length: cells of the axis.
        twice: whether the last and the first cell are there twice (NumPy's `symmetric`), and not once (`reflect`).

    Returns:
        Like `places`, from 0 to `length - 1`.
    """
    if length == 1:
        return torch.zeros_like(places)
    period = 2 * length - 2 + 2 * int(twice)
    places = places % torch.full_like(places, period)  # a tensor: a number that is not known yet has no ONNX for it
    return torch.where(places < length, places, period - places - int(twice))


class Normalize(nn.Module):
    """Raw images -> normalised images whose padding is zero, and the padding mask.

    Images come in RGB order; weights that want BGR get their channels turned here.

    Args:
        preprocessing: mean, std (brightest pixel = 1, in the weights' own channel order) and channel order.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.bgr = preprocessing.channel_order == "bgr"
        # Not persistent: they come with the preprocessing, and official checkpoints do not have them.
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise one batch.

        Args:
            images: `[B, C, *S]` uint8 (0..255), uint16 (0..65535) or floating point (brightest pixel = 1).
            size: `[B, len(S)]` int64, the sides of each unpadded image.

        Returns:
            images `[B, C, *S]` float32 (float64 in a network of float64), zero on padding, and the mask `[B, *S]` bool,
            True on padding.
        """
        brightest = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(images.dtype, 1.0)
        mask = padding_mask(size, *images.shape[2:])
        with torch.autocast(images.device.type, enabled=False):
            pixels = images.flip(1) if self.bgr else images
            mean, std = at_least_float32(self.mean), at_least_float32(self.std)
            if images.ndim == 5:
                mean, std = mean[..., None], std[..., None]
            pixels = (pixels.to(mean.dtype) - brightest * mean) / (brightest * std)
            # After normalising: a black border would be -2.1 and leak through the first convolutions.
            return pixels.masked_fill(mask[:, None], 0.0), mask
