"""Images as rows of patches, and back."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """`[B, C, H, W]` -> `[B, N, p * q * C]`: row by row, the channels of a pixel beside each other.

    Args:
        images: sides are multiples of the patch's.
        patch: height and width p, q of a patch, pixels.
    """
    batch, channels, height, width = images.shape
    p, q = patch
    cut = images.view(batch, channels, height // p, p, width // q, q)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * q * channels)


def unpatchify(rows: Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: `[B, N, p * q * C]` -> `[B, C, H, W]`.

    Args:
        rows: the patches.
        patch: height and width of a patch, pixels.
        grid: rows and columns of patches.
    """
    (p, q), (h, w) = patch, grid
    cut = rows.reshape(len(rows), h, w, p, q, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(rows), -1, h * p, w * q)


def normalised(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches of mean 0 and (unbiased) variance 1, as MAE's `norm_pix_loss` compares them.

    Args:
        rows: `[B, N, D]`.

    Returns:
        the patches, their means and their deviations, `[B, N, 1]`.
    """
    mean, deviation = rows.mean(-1, keepdim=True), (rows.var(-1, keepdim=True) + 1e-6).sqrt()
    return (rows - mean) / deviation, mean, deviation
