"""SCNN: Spatial As Deep: Spatial CNN for Traffic Scene Understanding (Pan et al. 2018, arXiv 1712.06080).

Authors' code: github.com/XingangPan/SCNN, commit 428d5e0, MIT (Lua); names of the parameters are those of the port
github.com/harryhan618/SCNN_Pytorch, commit bbe0acf, MIT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import KeyMap
from vistrain.devices import upload
from vistrain.errors import ConfigError, DataError
from vistrain.layers.loss_weights import refuse_negative
from vistrain.layers.padding import Normalize
from vistrain.layers.precision import at_least_float32
from vistrain.predictions import LaneMaps
from vistrain.segmentation.lane_network import LaneDecoder, LaneNetwork
from vistrain.structures import Exported, Preprocessing

# VGG16 with batch norms: channels of the convolutions between poolings; the last two poolings are left out.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLED = 3
STATISTICS = Preprocessing(mean=(0.3598, 0.3653, 0.3662), std=(0.2573, 0.2663, 0.2756))


class MessagePassing(nn.Module):
    """Rows, then columns, hand on what they know to their neighbours, one after the other (section 3.1).

    Args:
        dim: C.
        kernel_size: cells of the neighbouring row or column that one cell hears.
    """

    DIRECTIONS = (("up_down", 2, False), ("down_up", 2, True), ("left_right", 3, False), ("right_left", 3, True))

    def __init__(self, dim: int, kernel_size: int = 9) -> None:
        super().__init__()
        for name, axis, _ in self.DIRECTIONS:
            shape = (1, kernel_size) if axis == 2 else (kernel_size, 1)
            padding = (shape[0] // 2, shape[1] // 2)
            self.add_module(name, nn.Conv2d(dim, dim, shape, padding=padding, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        for name, axis, backwards in self.DIRECTIONS:
            conv = self.get_submodule(name)
            slices = list(x.split(1, axis))
            order = range(len(slices) - 1, -1, -1) if backwards else range(len(slices))
            last: Tensor | None = None
            for i in order:
                if last is not None:
                    slices[i] = slices[i] + conv(last).relu()
                last = slices[i]
            x = torch.cat(slices, axis)
        return x


class SCNN(LaneNetwork):
    """VGG16 with message passing: a map of lanes, and which of them are there.

    `target` of a batch holds `label_map` `[H, W]` (0 background, 1 to L the lanes from left to right) and `exist`
    `[L]`, 0 or 1.

    Args:
        num_lanes: L.
        input_size: (height, width) that images have, pixels; multiples of 16. The last layers know it.
        background_weight: of background in the loss of the map.
        exist_weight: of the loss of existence.
        decoder: from maps to points; CULane's if None.
    """

    preprocessing = STATISTICS
    compiled_parts = ("backbone",)
    # The port keeps the loss's weights among its own.
    key_maps = (KeyMap("port", r"^ce_loss\.", drop=(r"^ce_loss\.",)),)
    class_layers = (r"^layer2\.1\.", r"^fc\.")

    def __init__(
        self,
        num_lanes: int = 4,
        input_size: tuple[int, int] = (288, 800),
        background_weight: float = 0.4,
        exist_weight: float = 0.1,
        decoder: LaneDecoder | None = None,
    ) -> None:
        super().__init__(decoder)
        self.normalize = Normalize(self.preprocessing)
        self.measured_size = tuple(input_size)
        refuse_negative(background_weight=background_weight, exist_weight=exist_weight)
        self.class_weights, self.exist_weight = (background_weight, *[1.0] * num_lanes), exist_weight
        self.backbone = _vgg()
        self.layer1 = nn.Sequential(
            nn.Conv2d(512, 1024, 3, padding=4, dilation=4, bias=False), nn.BatchNorm2d(1024), nn.ReLU(),
            nn.Conv2d(1024, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        )  # fmt: skip
        self.message_passing = MessagePassing(128)
        self.layer2 = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(128, num_lanes + 1, 1))
        cells = (input_size[0] // 16) * (input_size[1] // 16)
        self.fc = nn.Sequential(nn.Linear((num_lanes + 1) * cells, 128), nn.ReLU(), nn.Linear(128, num_lanes))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images `[B, 3, H, W]` of the input size.

        Returns:
            logits `[B, L + 1, H, W]` of the map, and `[B, L]` of existence.
        """
        x = self.layer2(self.message_passing(self.layer1(self.backbone(images))))
        exist = self.fc(F.avg_pool2d(x.softmax(1), 2).flatten(1))
        return F.interpolate(x, scale_factor=8, mode="bilinear", align_corners=True), exist

    def exported_facts(self) -> Exported:
        """See `Network`."""
        maps = "[B, L + 1, H, W] logits of background and the lanes; softmax makes probabilities of them"
        return Exported({"maps": maps, "exist": "[B, L] logits of the lanes' being there"})

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses `loss_seg` and `loss_exist`.

        Args:
            batch: `image`, `size` and `target`, all of the input size.

        Raises:
            DataError: targets have another number of lanes.
        """
        for index, target in enumerate(batch["target"]):
            if len(target["exist"]) != len(self.class_weights) - 1:
                problem = f"{len(target['exist'])} lanes, the network has {len(self.class_weights) - 1}"
                name = str(batch["id"][index]) if "id" in batch else f"image {index} of the batch"
                raise DataError(name, problem, "set data.num_lanes and model.num_lanes alike")
        maps, exist = self(self.normalize(batch["image"], batch["size"])[0])
        labels = torch.stack([t["label_map"] for t in batch["target"]]).long()
        there = torch.stack([t["exist"] for t in batch["target"]])
        with torch.autocast(maps.device.type, enabled=False):
            maps, exist = at_least_float32(maps), at_least_float32(exist)
            return {
                "loss_seg": F.cross_entropy(maps, labels, upload(self.class_weights, maps.device, maps.dtype)),
                "loss_exist": self.exist_weight * F.binary_cross_entropy_with_logits(exist, there.to(exist.dtype)),
            }

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[LaneMaps]:
        """The lanes of each image, and their probabilities at the size at which the network saw it.

        Args:
            batch: `image`, `size`, and `original_size` where that is another.
        """
        maps, exist = self(self.normalize(batch["image"], batch["size"])[0])
        sizes = batch.get("original_size", batch["size"]).tolist()
        found = zip(maps.float().softmax(1), exist.float().sigmoid(), sizes, strict=True)
        return [LaneMaps(p, there, self.decoder(p, there, (h, w))) for p, there, (h, w) in found]

    def check_size(self, *size: int) -> None:
        """See `Network`: its last layers know the size.

        Raises:
            ConfigError: it is another.
        """
        if size != self.measured_size:
            problem = f"{size[0]}x{size[1]} pixels, the network is for {self.measured_size[0]}x{self.measured_size[1]}"
            raise ConfigError("model.input_size", problem, "the last layers know the size: use that one")


def _vgg() -> nn.Sequential:
    """VGG16's convolutions under torchvision's numbers; those of the last stage are dilated."""
    layers, index, width = nn.Sequential(), 0, 3
    for stage, widths in enumerate(STAGES):
        dilation = 2 if stage > POOLED else 1
        for out in widths:
            conv = nn.Conv2d(width, out, 3, padding=dilation, dilation=dilation)
            for part in (conv, nn.BatchNorm2d(out), nn.ReLU()):
                layers.add_module(str(index), part)
                index += 1
            width = out
        if stage < POOLED:
            layers.add_module(str(index), nn.MaxPool2d(2, 2))
        index += 1
    return layers
