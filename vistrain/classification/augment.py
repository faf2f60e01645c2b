"""What recipes do to a whole batch on the device: random erasing, Mixup and CutMix, all of them timm's.

They belong to training, not to the data set: they need normalised images (erased pixels are noise of mean 0 and
variance 1) and give images of two classes, which only a loss on dense targets understands.

timm: github.com/huggingface/pytorch-image-models, Apache-2.0.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from vistrain.errors import ConfigError
from vistrain.layers.seeding import seeded


class BatchAugment:
    """Random erasing (arXiv 1708.04896), then Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    Everything is drawn from torch's generator, which the task seeds for each batch: a resumed run draws the same.

    Per local batch, as in timm: images are mixed with others that the same process sees at once, in shares that are
    drawn for that batch. So a global batch cut otherwise is mixed otherwise.

    Args:
        mixup, cutmix: alpha of the Beta distribution that the share is drawn from; 0 turns it off. With both, one of
            them is chosen for each batch.
        switch: probability of CutMix where both are on.
        mix_probability: that a batch (an image, in mode `elem`) is mixed at all.
        mode: `batch` draws once for all images, `pair` for each pair, `elem` for each image.
        erasing: probability that an image has a rectangle erased.
        erasing_mode: `pixel`: noise for each pixel, `rand`: one colour, `const`: the mean colour.
        erasing_count: rectangles per erased image.

    Raises:
        ConfigError: a probability is not in 0..1, or an alpha is negative.
    """

    def __init__(
        self,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        switch: float = 0.5,
        mix_probability: float = 1.0,
        mode: Literal["batch", "pair", "elem"] = "batch",
        erasing: float = 0.0,
        erasing_mode: Literal["pixel", "rand", "const"] = "pixel",
        erasing_count: int = 1,
    ) -> None:
        for name, value in (("switch", switch), ("mix_probability", mix_probability), ("erasing", erasing)):
            if not 0 <= value <= 1:
                raise ConfigError(name, f"{value} is not in 0..1")
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if value < 0:
                raise ConfigError(name, f"{value} is negative", "0 turns it off")
        self.mixup, self.cutmix, self.switch, self.mix_probability = mixup, cutmix, switch, mix_probability
        self.mode, self.erasing, self.erasing_mode, self.erasing_count = mode, erasing, erasing_mode, erasing_count

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Augment one batch.

        Args:
            images: `[B, C, H, W]` normalised; changed in place.
            targets: `[B, K]` dense.

        Returns:
            The same, mixed.

        Raises:
            ConfigError: images are to be mixed in pairs, and their number is odd.
        """
        with seeded(int(torch.randint(2**31, ()))):
            if self.erasing:
                erase = RandomErasing(
                    self.erasing, mode=self.erasing_mode, max_count=self.erasing_count, device=str(images.device)
                )
                images = erase(images)
            if self.mixup or self.cutmix:
                images, targets = self._mix(images, targets)
        return images, targets

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        if count % 2:
            problem = f"Mixup and CutMix pair the images of a batch, and {count} is odd"
            raise ConfigError("data.per_device", problem, f"use {count + 1}, or another even number")
        mix = Mixup(
            self.mixup, self.cutmix, None, self.mix_probability, self.switch, self.mode,
            label_smoothing=0.0, num_classes=count,
        )  # fmt: skip
        # As many "classes" as images: what comes back says how much of which image is in each.
        images, shares = mix(images, torch.arange(count, device=images.device))
        return images, shares.to(targets.dtype) @ targets
