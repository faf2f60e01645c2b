"""Protocols of image restoration: which pixels, which colours and which rounding a decibel is of."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vistrain.errors import DataError
from vistrain.metrics.base import Metric, Unit
from vistrain.metrics.image import luma, psnr, ssim, ssim_uniform

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

log = logging.getLogger(__name__)

Color = Literal["luma", "luma_rounded", "channels"]
Rounding = Literal["uint8", "clip", "none"]
Similarity = Literal["gaussian", "uniform"]

# The frozen arguments of each protocol; any other value prints as custom(...)
QUALITY: Mapping[str, Mapping[str, Any]] = {
    # super-resolution as BasicSR measures it: luma, without a border of `scale` pixels
    "sr_luma": {"color": "luma", "crop": None, "rounding": "uint8", "similarity": "gaussian"},
    # DnCNN and KAIR: every channel (grey or colour as the data is), every pixel, 8-bit output
    "denoise": {"color": "channels", "crop": 0, "rounding": "uint8", "similarity": "gaussian"},
    # NAFNet on SIDD: not rounded
    "clipped_rgb": {"color": "channels", "crop": 0, "rounding": "clip", "similarity": "gaussian"},
    # MAXIM's run_eval.py: neither rounded nor clipped
    "float_rgb": {"color": "channels", "crop": 0, "rounding": "none", "similarity": "gaussian"},
    # the all-in-one line (AirNet, PromptIR, MTAIR): not rounded, scikit-image's SSIM
    "skimage_rgb": {"color": "channels", "crop": 0, "rounding": "clip", "similarity": "uniform"},
}

# How numbers are printed: heading and digits
FORMATS: Mapping[str, tuple[str, str]] = {
    "psnr": ("PSNR dB", "%.2f"), "ssim": ("SSIM", "%.4f"), "lpips": ("LPIPS", "%.4f"),
}  # fmt: skip


@dataclass(frozen=True)
class QualityResult:
    """One evaluation.

    Attributes:
        numbers: `<protocol>/psnr` (dB) and `<protocol>/ssim` (or `lpips`), means over all images; and for each named
            test set `<protocol>/<set>/psnr`, `<protocol>/<set>/ssim`.
        protocol: its name, or `custom(...)` naming what differs.
        counts: images by set; the whole has the empty name.
    """

    numbers: dict[str, float]
    protocol: str
    counts: dict[str, int]

    def table(self) -> Table:
        """Sets and their numbers, for a Rich console."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.protocol, title_justify="left")
        table.add_column("test set", overflow="fold")
        prefix = next(iter(self.numbers)).partition("/")[0]
        keys = [key for key in FORMATS if f"{prefix}/{key}" in self.numbers]
        for heading in ("images", *(FORMATS[key][0] for key in keys)):
            table.add_column(heading, justify="right")
        for name, count in self.counts.items():
            start = f"{prefix}/{name}/" if name else f"{prefix}/"
            table.add_row(
                escape(name or "all"), str(count), *(FORMATS[key][1] % self.numbers[f"{start}{key}"] for key in keys)
            )
        return table

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self.table()


class ImageQuality(Metric):
    """PSNR and SSIM of restored images, per image and then the mean over images.

    Args:
        name: a protocol of `QUALITY`, which gives the arguments that are None.
        scale: of the network; where the protocol's crop is None, as many border pixels are cut off (none at scale 1).
        color: `luma` measures Y of BT.601 (studio range, not rounded; BasicSR), `luma_rounded` the rounded one
            (MATLAB's on uint8, KAIR), `channels` all channels as they are.
        crop: pixels cut off on each side, before the colour conversion.
        rounding: of the output before it is measured: `uint8` clips and rounds, `clip` only clips.
        similarity: `gaussian` or scikit-image's `uniform` window.

    Attributes:
        protocol: the name, or `custom(...)` naming what differs.
        result: the last `compute`.
    """

    families = tuple(QUALITY)

    def __init__(
        self,
        name: str,
        scale: int = 1,
        color: Color | None = None,
        crop: int | None = None,
        rounding: Rounding | None = None,
        similarity: Similarity | None = None,
    ) -> None:
        given = {"color": color, "crop": crop, "rounding": rounding, "similarity": similarity}
        changed = {k: v for k, v in given.items() if v is not None and v != QUALITY[name][k]}
        chosen = {**QUALITY[name], **changed}
        self.name, self.color, self.rounding, self.similarity = (
            name,
            *(chosen[k] for k in ("color", "rounding", "similarity")),
        )
        self.crop: int = (scale if scale > 1 else 0) if chosen["crop"] is None else chosen["crop"]
        self.protocol = f"custom({name}, {', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else name
        self.result: QualityResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Decibels, and similarities up to 1, which papers print as they are."""
        return Unit(digits=2) if name.endswith("psnr") else Unit()

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, `psnr` (dB, infinite for a perfect one), `ssim`.

        Args:
            ids: such as `Set5/baby`; what stands before `/` is the test set.
            predictions: `Restored`.
            targets: dicts with `image` `[C, H, W]` uint8, the truth.

        Raises:
            DataError: an output has another size than its truth.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            value, similarity = self.measure(prediction.image, target["image"], str(key))
            records.append({"id": key, "psnr": value, "ssim": similarity})
        return records

    def measure(self, output: Tensor, truth: Tensor, name: str = "image") -> tuple[float, float]:
        """PSNR in dB and SSIM of one image.

        Args:
            output: `[C, H, W]` floating point, brightest pixel 1.
            truth: `[C, H, W]` uint8.
            name: for the message.

        Raises:
            DataError: the sizes differ.
        """
        if output.shape != truth.shape:
            raise DataError(
                name,
                f"restored to {list(output.shape)}, the truth is {list(truth.shape)}",
                "does the network's scale fit the data?",
            )
        images = [x.detach().permute(1, 2, 0).cpu().numpy() for x in (output, truth)]
        restored = self.rounded(images[0].astype(np.float64))
        a, b = (self._color(self._cut(x)) for x in (restored, images[1]))
        similar = ssim if self.similarity == "gaussian" else ssim_uniform
        return psnr(a, b), similar(a, b)

    def rounded(self, image: np.ndarray) -> np.ndarray:
        """An output with brightest pixel 1 in the units that are measured, 0..255."""
        if self.rounding == "uint8":
            return np.clip(image * 255, 0, 255).round()
        return (np.clip(image, 0, 1) if self.rounding == "clip" else image) * 255

    def _cut(self, image: np.ndarray) -> np.ndarray:
        n = self.crop
        return image[n : image.shape[0] - n, n : image.shape[1] - n] if min(image.shape[:2]) > 2 * n else image

    def _color(self, image: np.ndarray) -> np.ndarray:
        if self.color == "channels":
            return image.astype(np.float64)
        return luma(image) if self.color == "luma" else luma(image).round()

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over all images, and over those of each set; an SSIM without a value (an image smaller than the window)
        does not count."""
        numbers, counts = averages(self.name, records, ("psnr", "ssim"))
        self.result = QualityResult(numbers, self.protocol, counts)
        return numbers


def averages(
    protocol: str, records: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> tuple[dict[str, float], dict[str, int]]:
    """Means over all records, and over those of each set: what stands before `/` in their `id`.

    Args:
        protocol: first part of the names of the numbers.
        records: with the keys; NaN does not count, and is warned of.
        keys: of what is averaged.

    Returns:
        `<protocol>/<key>` and `<protocol>/<set>/<key>`, and how many records each set has, the whole under "".
    """
    sets: dict[str, list[Mapping[str, Any]]] = {"": list(records)}
    for record in records:
        group = str(record["id"]).partition("/")[0] if "/" in str(record["id"]) else ""
        if group:
            sets.setdefault(group, []).append(record)
    numbers = {}
    for name, members in sets.items():
        start = f"{protocol}/{name}/" if name else f"{protocol}/"
        for key in keys:
            values = [r[key] for r in members if not math.isnan(r[key])]
            numbers[f"{start}{key}"] = float(np.mean(values)) if values else math.nan
    for key in keys:
        if small := sum(math.isnan(r[key]) for r in records):
            log.warning("%d images are too small for %s, which leaves them out", small, key.upper())
    return numbers, {name: len(members) for name, members in sets.items()}
