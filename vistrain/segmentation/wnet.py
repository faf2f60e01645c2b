"""W-Net: State-of-the-art retinal vessel segmentation with minimalistic models (Galdran et al. 2022, arXiv 2009.01907).

Authors' code: github.com/agaldran/lwnet, commit ce72dda, MIT (models/res_unet_adrian.py); names of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.precision import at_least_float32
from vistrain.predictions import Segmentation
from vistrain.segmentation.inference import enlarged_in_python
from vistrain.segmentation.semantic import SemanticNetwork
from vistrain.structures import Channels, Exported, LabelSpace, Preprocessing


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, activation before norm, and a projection beside them.

    Args:
        in_channels, out_channels: N and M.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.block = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out_channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, H, W]` -> `[B, M, H, W]`."""
        return self.block(x) + self.shortcut(x)


class UpBlock(nn.Module):
    """Doubles the coarse map, takes the fine one over a bridge, and convolves both.

    Args:
        coarse, fine: channels of the two maps.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.up_layer = _named(nn.ConvTranspose2d(coarse, fine, 2, 2))
        self.conv_bridge_layer = _named(nn.Conv2d(fine, fine, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(fine))
        self.conv_layer = ResidualBlock(2 * fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """`[B, C, H / 2, W / 2]` and `[B, C', H, W]` -> `[B, C', H, W]`."""
        return self.conv_layer(torch.cat((self.up_layer(coarse), self.conv_bridge_layer(fine)), 1))


class UNet(nn.Module):
    """A small U-Net of residual blocks.

    Args:
        in_channels: of the image.
        widths: channels of each level, fine to coarse.
        out_channels: K.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.first = ResidualBlock(in_channels, widths[0])
        self.down_path = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.up_path = nn.ModuleList(UpBlock(b, a) for a, b in reversed(list(pairwise(widths))))
        self.final = nn.Conv2d(widths[0], out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.final:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, H, W]`, sides multiples of 2^(levels - 1) -> logits `[B, K, H, W]`."""
        maps = [self.first(x)]
        for block in self.down_path:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for block in self.up_path:
            x = block(x, maps.pop())
        return self.final(x)


class WNet(SemanticNetwork):
    """Two U-Nets in a row: the second sees the image and the first one's logits.

    With two classes (background and vessel) it has one output, of the second class; with more, one for each.

    Args:
        labels: the classes.
        widths: channels of each level of both networks (`big_wnet`: 8, 16, 32, 64).
        mirrored: predict the mean probability of the image and its three mirror images, as published for DRIVE.
        threshold: of the probability, with two classes; a pixel above it is of the second.
        shared: with more classes, one whose probability is given in equal parts to all others but the first before the
            most probable one is chosen (`uncertain`, of arteries and veins).
        enlargement: of probabilities to the image's size: `spline` as published, see `spline_resized`, or `bilinear`.
        quantised: round the probabilities of two classes to 8 bits, as published for DRIVE.
        channels: of the images.
        base: see `SemanticNetwork`.

    Raises:
        ConfigError: less than two classes, or none is called as `shared` says.
    """

    class_layers = (r"^unet\d\.final\.", r"^unet2\.first\.")
    input_layers = (r"^unet1\.first\.(shortcut|block)\.0\.weight$",)
    sets_itself = ("preprocessing",)

    def __init__(
        self,
        labels: LabelSpace,
        widths: tuple[int, ...] = (8, 16, 32),
        mirrored: bool = True,
        threshold: float = 107 / 255,
        shared: str | None = None,
        enlargement: Literal["spline", "bilinear"] = "spline",
        quantised: bool = True,
        channels: Channels = Channels(3),  # noqa: B008 - an int
        **base: Any,
    ) -> None:
        if labels.num_classes < 2:
            raise ConfigError(
                "data.labels", f"{labels.num_classes} classes", "W-Net takes background and something else"
            )
        if not widths or min(widths) < 1:
            raise ConfigError("model.widths", f"{list(widths)}", "the channels of each level, 1 or more")
        plain = Preprocessing((0.0,) * channels, (1.0,) * channels, size_divisor=2 ** (len(widths) - 1))
        super().__init__(labels, plain, **base)
        self.outputs = 1 if labels.num_classes == 2 else labels.num_classes
        if shared is not None and (self.outputs == 1 or shared not in labels.names[1:]):
            remedy = f"name one of {', '.join(labels.names[1:])}, of three classes or more"
            raise ConfigError("model.shared", f"{shared!r}", remedy)
        self.mirrored, self.threshold, self.enlargement, self.quantised = mirrored, threshold, enlargement, quantised
        self.shared = None if shared is None else labels.names.index(shared)
        self.unet1 = UNet(channels, widths, self.outputs)
        self.unet2 = UNet(channels + self.outputs, widths, self.outputs)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, W]` in 0..1 -> logits `[B, 1 or K, H, W]` of both networks."""
        first = self.unet1(images)
        return first, self.unet2(torch.cat((images, first), 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]` in 0..1 -> logits `[B, 1 or K, H, W]`."""
        return self.both(images)[1]

    def exported_facts(self) -> Exported:
        """See `Network`; mirror images and classes that are shared out are left to the reader."""
        if self.outputs > 1:
            facts = super().exported_facts()
            return facts if self.shared is None else Exported(facts.outputs)
        reading = (
            'found["logits"] = 1 / (1 + np.exp(-found["logits"]))',
            *enlarged_in_python("logits"),
            f"Image.fromarray((255 * (planes[0] > {self.threshold})).astype(np.uint8)).save(sys.argv[2])",
        )
        return Exported({"logits": "[B, 1, H, W] logits of the second class; sigmoid makes probabilities"}, reading)

    def training_losses(self, images: Tensor, labels: Tensor, count: Tensor | None) -> dict[str, Tensor]:
        """See `SemanticNetwork`: cross-entropy, binary with two classes, of both networks."""
        first, second = self.both(images)
        return {
            "loss_first": self.pixel_loss(self._two(first), labels, count),
            "loss_seg": self.pixel_loss(self._two(second), labels, count),
        }

    def _two(self, logits: Tensor) -> Tensor:
        """One logit as two, `(0, x)`, whose softmax is its sigmoid."""
        return logits if self.outputs > 1 else torch.cat((torch.zeros_like(logits), logits), 1)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]` in 0..1 -> probabilities `[B, K, H, W]`, of the mirror images' mean if `mirrored`."""
        turns: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3)) if self.mirrored else ((),)
        found = [self._two(at_least_float32(self(images.flip(t)))).softmax(1).flip(t) for t in turns]
        return torch.stack(found).mean(0)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Segmentation]:
        """Class and probabilities of each pixel of the original images.

        Args:
            batch: `image`, `size` and `original_size`.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        sizes = zip(batch["size"].tolist(), batch["original_size"].tolist(), strict=True)
        found = zip(self.probabilities(images), sizes, strict=True)
        return [self._decided(self._resized(share[:, :h, :w], tuple(size))) for share, ((h, w), size) in found]

    def _resized(self, shares: Tensor, size: tuple[int, int]) -> Tensor:
        if shares.shape[1:] == size:
            return shares
        if self.enlargement == "bilinear":
            return F.interpolate(shares[None], size, mode="bilinear")[0]
        if self.outputs > 1:
            return spline_resized(shares, size)
        second = spline_resized(shares[1:], size)
        return torch.cat((1 - second, second))

    def _decided(self, shares: Tensor) -> Segmentation:
        if self.outputs == 1:
            if self.quantised:
                shares = (255 * shares).round() / 255
            return Segmentation((shares[1] > self.threshold).long(), probabilities=shares)
        if self.shared is None:
            return Segmentation(shares.argmax(0), probabilities=shares)
        given = shares.clone()
        given[1:] += shares[self.shared] / (len(shares) - 2)
        given[self.shared] = 0
        return Segmentation(given.argmax(0), probabilities=given)


def spline_resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolating cubic B-splines with pixel centres at half integers and mirrored borders, cut off at each map's own
    least and greatest value; a side that shrinks is smoothed by a Gaussian first. The authors resize like that, through
    scikit-image.

    Args:
        maps: `[K, h, w]`.
        size: (H, W).

    Returns:
        `[K, H, W]` float32, on the device of `maps`. Computed on the CPU in double precision.
    """
    resized = []
    for values in maps.double().cpu().numpy():
        sigma = [max(0.0, (old / new - 1) / 2) for old, new in zip(values.shape, size, strict=True)]
        smooth = ndimage.gaussian_filter(values, sigma, mode="mirror") if any(sigma) else values
        factors = [new / old for old, new in zip(values.shape, size, strict=True)]
        found = ndimage.zoom(smooth, factors, order=3, mode="mirror", grid_mode=True)
        resized.append(found.clip(values.min(), values.max()))
    return torch.from_numpy(np.stack(resized)).float().to(maps.device)


def _named(*layers: nn.Module) -> nn.Sequential:
    """Layers under the name `block`, as the authors hold them."""
    outer = nn.Sequential()
    outer.add_module("block", nn.Sequential(*layers))
    return outer
