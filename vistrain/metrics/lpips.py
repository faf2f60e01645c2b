"""LPIPS: how different two images look to a network trained on ImageNet, with weights that the user brings.

Zhang, Isola, Efros, Shechtman and Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv
1801.03924), equation 1, in the calibrated form `lin` of version 0.1. Authors' code:
github.com/richzhang/PerceptualSimilarity, BSD-2-Clause. Nothing is downloaded: two files are needed, the network as
torchvision publishes it and the authors' linear heads (`weights/v0.1/alex.pth` or `vgg.pth` there).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.metrics.base import Metric, Unit
from vistrain.metrics.image_quality import QualityResult, averages

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of colours in -1..1, the authors' constants
EPSILON = 1e-10

# Indices of convolutions in torchvision's `features`, by stage; a stage begins with a pooling but for the first, and
# features are taken at its end. Then kernel and stride of the pooling, the first convolution's stride and padding, and
# the least side of an image.
NETWORKS: dict[str, dict[str, Any]] = {
    "alex": {
        "stages": ((0,), (3,), (6,), (8,), (10,)), "pooled": (False, True, True, False, False),
        "pool": 3, "stride": 4, "padding": (2, 2, 1, 1, 1), "least": 31,
    },
    "vgg": {
        "stages": ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), "pooled": (False, True, True, True, True),
        "pool": 2, "stride": 1, "padding": (1, 1, 1, 1, 1), "least": 16,
    },
}  # fmt: skip
REMEDY = (
    "give two files, torchvision's alexnet-owt-*.pth (or vgg16-*.pth) and the linear heads, weights/v0.1/alex.pth (or "
    "vgg.pth) of richzhang/PerceptualSimilarity"
)


class Lpips(Metric):
    """The protocol `lpips`: 8-bit output, whole images, AlexNet; the mean over images, lower is better.

    Args:
        weights: tensors of both files together, under their own names (`features.0.weight`, `lin0.model.1.weight`).
            Which network they are of is seen from them; VGG's prints as `custom(lpips, network=vgg)`.
        scale: not used; every protocol of restoration is told.

    Attributes:
        protocol: see above.
        network: `alex` or `vgg`.
        result: the last `compute`.

    Raises:
        ConfigError: there are no weights.
        WeightsError: they are not those of such a network with its heads.
    """

    name = "lpips"
    families = ("lpips",)

    def __init__(self, weights: Mapping[str, Tensor] | None = None, scale: int = 1) -> None:
        if not weights:
            raise ConfigError("metrics", "lpips has no weights", f"{REMEDY}: task.lpips=[FILE, FILE]")
        self.network = "vgg" if "features.28.weight" in weights else "alex"
        self.plan = NETWORKS[self.network]
        wanted = [f"features.{i}.{kind}" for s in self.plan["stages"] for i in s for kind in ("weight", "bias")]
        heads = [f"lin{i}.model.1.weight" for i in range(len(self.plan["stages"]))]
        if missing := [name for name in (*wanted, *heads) if name not in weights]:
            raise WeightsError("lpips", f"weights of {self.network} lack {missing[0]}", REMEDY)
        self.weights = {name: weights[name].detach().float() for name in (*wanted, *heads)}
        for head, stage in zip(heads, self.plan["stages"], strict=True):
            channels = len(self.weights[f"features.{stage[-1]}.bias"])
            if self.weights[head].numel() != channels:
                counts = f"{self.weights[head].numel()} channels, the network has {channels}"
                raise WeightsError("lpips", f"{head} is for {counts}", "take the heads of this network")
        self.protocol = "lpips" if self.network == "alex" else f"custom(lpips, network={self.network})"
        self.result: QualityResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Distances: low is good."""
        return Unit(lower_is_better=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each image, `id` and `lpips`; see `ImageQuality.update`.

        Raises:
            DataError: an output has another size than its truth.
        """
        rows = zip(ids, predictions, targets, strict=True)
        return [{"id": key, "lpips": self.measure(p.image, target["image"], str(key))} for key, p, target in rows]

    @torch.no_grad()
    def measure(self, output: Tensor, truth: Tensor, name: str = "image") -> float:
        """Distance of one image from its truth, 0 or more; NaN for images that are too small for the network.

        Args:
            output: `[C, H, W]` floating point, brightest pixel 1; clipped and rounded to 8 bits here.
            truth: `[C, H, W]` uint8.
            name: for the message.

        Raises:
            DataError: the sizes differ.
        """
        if output.shape != truth.shape:
            sizes = f"restored to {list(output.shape)}, the truth is {list(truth.shape)}"
            raise DataError(name, sizes, "does the network's scale fit the data?")
        if min(output.shape[-2:]) < self.plan["least"]:
            return math.nan
        rounded = (output.detach().float().cpu().clamp(0, 1) * 255).round()
        pair = torch.stack([x.expand(3, -1, -1) for x in (rounded, truth.float().cpu())]) / 127.5 - 1
        total = 0.0
        for i, features in enumerate(self._features(pair)):
            unit = features / (features.square().sum(1, keepdim=True).sqrt() + EPSILON)
            difference = (unit[0] - unit[1]).square().mean((-2, -1), dtype=torch.float64)
            total += float(difference @ self.weights[f"lin{i}.model.1.weight"].flatten().double())
        return total

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over all images, `lpips/lpips`, and over those of each set, `lpips/<set>/lpips`."""
        numbers, counts = averages(self.name, records, ("lpips",))
        self.result = QualityResult(numbers, self.protocol, counts)
        return numbers

    def _features(self, images: Tensor) -> list[Tensor]:
        """Activations at the end of each stage, of images `[B, 3, H, W]` in -1..1."""
        shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (SHIFT, SCALE))
        x, found = (images - shift) / scale, []
        plan = self.plan
        for stage, is_pooled, padding in zip(plan["stages"], plan["pooled"], plan["padding"], strict=True):
            if is_pooled:
                x = F.max_pool2d(x, plan["pool"], 2)
            for i in stage:
                weight, bias = (self.weights[f"features.{i}.{kind}"] for kind in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, plan["stride"] if i == 0 else 1, padding))
            found.append(x)
        return found
