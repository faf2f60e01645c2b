"""ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation (Mehta et al. 2018, arXiv
1803.06815).

Authors' code: github.com/sacmehta/ESPNet, commit afe71c3, MIT (train/Model.py, test/Model.py); names of its
checkpoints.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.segmentation.espnet_parts import EPS, ESP, ConvNormAct, Convolution, DownESP, NormAct
from vistrain.segmentation.semantic import SemanticNetwork
from vistrain.structures import Channels, LabelSpace, Preprocessing

# `(v - mean) / std / 255` of values 0..255, in the order B, G, R: std is in 0..255 although values are divided again.
CAMVID = Preprocessing(
    mean=(110.33102643 / 255, 108.40886315 / 255, 105.03319369 / 255),
    std=(72.12571015, 72.69074534, 69.90434816),
    channel_order="bgr",
    size_divisor=8,
)
CITYSCAPES = Preprocessing(
    mean=(72.3923111 / 255, 82.90893555 / 255, 73.15840149 / 255),
    std=(45.3192215, 46.15289307, 44.91483307),
    channel_order="bgr",
    size_divisor=8,
)
STATISTICS = {"camvid": CAMVID, "cityscapes": CITYSCAPES}


class ESPNetEncoder(nn.Module):
    """The encoder, with a classifier of its own.

    Args:
        num_classes: K.
        alpha2, alpha3: residual pyramids at strides 4 and 8 (p and q in the names of the published files).
        in_channels: of the images.
    """

    def __init__(self, num_classes: int, alpha2: int, alpha3: int, in_channels: int = 3) -> None:
        super().__init__()
        self.level1 = ConvNormAct(in_channels, 16, 3, 2)
        self.b1 = NormAct(16 + in_channels)
        self.level2_0 = DownESP(16 + in_channels, 64)
        self.level2 = nn.ModuleList(ESP(64, 64) for _ in range(alpha2))
        self.b2 = NormAct(128 + in_channels)
        self.level3_0 = DownESP(128 + in_channels, 128)
        self.level3 = nn.ModuleList(ESP(128, 128) for _ in range(alpha3))
        self.b3 = NormAct(256)
        self.classifier = Convolution(256, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images `[B, C, H, W]`, sides multiples of 8.

        Returns:
            logits `[B, K, H / 8, W / 8]`; the maps `[B, 128 + C, H / 4, W / 4]` and `[B, 16 + C, H / 2, W / 2]` that
            the decoder uses; and the latter before its norm and without the image, `[B, 16, H / 2, W / 2]`.
        """
        half = F.avg_pool2d(x, 3, 2, 1)  # padded zeros count
        raw = self.level1(x)
        fine = self.b1(torch.cat((raw, half), 1))
        first = last = self.level2_0(fine)
        for block in self.level2:
            last = block(last)
        middle = self.b2(torch.cat((last, first, F.avg_pool2d(half, 3, 2, 1)), 1))
        first = last = self.level3_0(middle)
        for block in self.level3:
            last = block(last)
        return self.classifier(self.b3(torch.cat((first, last), 1))), middle, fine, raw


class _ESP(SemanticNetwork):
    """What both networks share.

    Args:
        labels: the classes.
        alpha2, alpha3: see `ESPNetEncoder`.
        statistics: of the images that the published weights were trained on.
        channels: of the images.
        base: see `SemanticNetwork`.

    Raises:
        ConfigError: unknown statistics, or images that are not of three channels.
    """

    measured_size = (512, 1024)
    sets_itself = ("preprocessing",)

    def __init__(
        self,
        labels: LabelSpace,
        alpha2: int = 2,
        alpha3: int = 8,
        statistics: Literal["camvid", "cityscapes"] = "cityscapes",
        channels: Channels = Channels(3),  # noqa: B008 - an int
        **base: Any,
    ) -> None:
        if channels != 3:
            raise ConfigError("model.channels", f"ESPNet's statistics are of three channels, the data has {channels}")
        super().__init__(labels, STATISTICS[statistics], **base)
        self.encoder = ESPNetEncoder(labels.num_classes, alpha2, alpha3, channels)


class ESPNetC(_ESP):
    """The encoder alone, whose logits are enlarged eightfold; trained first, against labels an eighth of the size.

    Args:
        base: see `_ESP`.
    """

    class_layers = (r"^encoder\.classifier\.",)
    sets_itself = ("align_corners",)
    key_maps = (KeyMap("official", r"^level1\.conv\.", ((r"^", "encoder."),)),)

    def __init__(self, labels: LabelSpace, **base: Any) -> None:
        # torch 0.3, which the published numbers come from, aligned corners
        super().__init__(labels, align_corners=True, **base)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, 3, H, W]` -> logits `[B, K, H / 8, W / 8]`."""
        return self.encoder(images)[0]


class ESPNet(_ESP):
    """ESPNet with its light decoder.

    The two published forms differ in the map that the decoder sees last: after norm, activation and with the image
    (`normalised`, the CamVid weights), or the first convolution alone (`raw`, those of Cityscapes).

    Args:
        skip: the form.
        base: see `_ESP`.
    """

    class_layers = (
        r"^encoder\.classifier\.", r"^level3_C\.", r"^br\.", r"^up_l3\.", r"^combine_l2_l3\.", r"^up_l2\.", r"^conv\.",
        r"^classifier\.",
    )  # fmt: skip

    def __init__(self, labels: LabelSpace, skip: Literal["normalised", "raw"] = "normalised", **base: Any) -> None:
        super().__init__(labels, **base)
        self.skip, k = skip, labels.num_classes
        self.level3_C = Convolution(131, k, 1)
        self.br = nn.BatchNorm2d(k, eps=EPS)
        self.up_l3 = nn.Sequential(_double(k))
        self.combine_l2_l3 = nn.Sequential(NormAct(2 * k), ESP(2 * k, k, residual=False))
        self.up_l2 = nn.Sequential(_double(k), NormAct(k))
        self.conv = ConvNormAct(k + (19 if skip == "normalised" else 16), k, 3)
        self.classifier = _double(k)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, 3, H, W]`, sides multiples of 8 -> logits `[B, K, H, W]`."""
        coarse, middle, fine, raw = self.encoder(images)
        x = torch.cat((self.level3_C(middle), self.up_l3(self.br(coarse))), 1)
        x = self.up_l2(self.combine_l2_l3(x))
        return self.classifier(self.conv(torch.cat((x, fine if self.skip == "normalised" else raw), 1)))


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, 2, bias=False)
