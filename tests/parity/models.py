"""The small backbones of the parity fixtures, and our models in the fixtures' configurations."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import DenseBackbone
from vistrain.detection import DeformableDETR
from vistrain.layers.boxes import cxcywh_to_xyxy
from vistrain.losses import SetCriterion
from vistrain.matching import HungarianMatcher
from vistrain.necks import ChannelMapper
from vistrain.structures import Factory, LabelSpace, Preprocessing


class TinyBody(nn.Module):
    """Strided convolutions with ReLU after each; the fixtures' stand-in for a torchvision ResNet."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 7, stride=4, padding=3)
        for i, (a, b) in enumerate(pairwise(widths)):
            self.add_module(f"layer{i + 2}", nn.Conv2d(a, b, 3, stride=2, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.children():
            x = layer(x).relu()
            maps.append(x)
        return maps[1:]


class FourMaps(TinyBody):
    """The small body with its finest map, too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.children():
            x = layer(x).relu()
            maps.append(x)
        return maps


class FrozenNorm(nn.Module):
    """Batch norm of constants, with detectron2's and torchvision's eps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class Bottleneck(nn.Module):
    """ResNet's bottleneck with torchvision's names and the stride on the 3x3 convolution."""

    def __init__(self, width_in: int, middle: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, middle, 1, bias=False), FrozenNorm(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False), FrozenNorm(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, width_out, 1, bias=False), FrozenNorm(width_out)
        if width_in != width_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), FrozenNorm(width_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + shortcut).relu()


class TinyResNet(nn.Module):
    """A ResNet of any widths and depths, read off a detectron2 state dict."""

    def __init__(self, state_dict: dict[str, Tensor]) -> None:
        super().__init__()
        shape = {k.removeprefix("backbone."): v.shape for k, v in state_dict.items() if k.startswith("backbone.")}
        width = shape["stem.conv1.weight"][0]
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), FrozenNorm(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        for stage in (1, 2, 3, 4):
            blocks = []
            while f"res{stage + 1}.{len(blocks)}.conv1.weight" in shape:
                name = f"res{stage + 1}.{len(blocks)}"
                middle, out = shape[f"{name}.conv1.weight"][0], shape[f"{name}.conv3.weight"][0]
                blocks.append(Bottleneck(width, middle, out, 1 if stage == 1 or blocks else 2))
                width = out
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer1(self.pool(self.bn1(self.conv1(x)).relu()))
        maps = []
        for layer in (self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class TinyBackbone(DenseBackbone):
    """Any module as a backbone."""

    def __init__(
        self,
        body: nn.Module,
        channels: tuple[int, ...],
        strides: tuple[int, ...] = (8, 16, 32),
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.body, self.channels, self.strides = body, channels, strides
        self.preprocessing = preprocessing or Preprocessing()

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)[-len(self.channels) :]


def as_batch(
    images: list[Tensor], labels: list[Tensor], boxes: list[Tensor], scale: int = 1, **extra: Any
) -> dict[str, Any]:
    """A batch of images `[3, H, W]` of several sizes, padded at the bottom and right.

    Args:
        images: of any dtype.
        labels, boxes: per image, boxes in xyxy pixels.
        scale: original size over image size.
        extra: further keys.
    """
    size = torch.tensor([x.shape[-2:] for x in images])
    padded = images[0].new_zeros((len(images), 3, *size.amax(0).tolist()))
    for whole, image in zip(padded, images, strict=True):
        whole[:, : image.shape[-2], : image.shape[-1]] = image
    target = [{"labels": x, "boxes": y} for x, y in zip(labels, boxes, strict=True)]
    return {
        "image": padded,
        "size": size,
        "original_size": size * scale,
        "id": list(range(len(images))),
        "target": target,
        **extra,
    }


def official_batch(fixture: dict[str, Any]) -> dict[str, Any]:
    """Normalised images of several sizes, with their targets in pixels."""
    images, targets = fixture["inputs"]["images_normalised"], fixture["inputs"]["targets_cxcywh_norm"]
    extents = [torch.tensor([x.shape[2], x.shape[1]] * 2) for x in images]
    boxes = [cxcywh_to_xyxy(t["boxes"]) * extent for t, extent in zip(targets, extents, strict=True)]
    original = torch.stack([t["orig_size"] for t in targets])
    return {**as_batch(images, [t["labels"] for t in targets], boxes), "original_size": original}


def contiguous(count: int) -> LabelSpace:
    """`count` classes numbered from 0."""
    return LabelSpace(tuple(f"class {i}" for i in range(count)), tuple(range(count)))


def _sizes(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """Sizes that the shapes of a state dict tell."""
    layers = {int(m[2]) for k in state_dict if (m := re.match(rf"({prefix}decoder\.layers)\.(\d+)\.", k))}
    encoder = {int(m[2]) for k in state_dict if (m := re.match(rf"({prefix}encoder\.layers)\.(\d+)\.", k))}
    level = next(v for k, v in state_dict.items() if re.match(rf"{prefix}level_embeds?$", k))
    ffn = next(v for k, v in state_dict.items() if re.search(r"decoder.*(linear1|ffns\.0\.layers\.0\.0)\.weight$", k))
    return {
        "num_levels": level.shape[0],
        "embed_dim": level.shape[1],
        "encoder_layers": len(encoder),
        "decoder_layers": len(layers),
        "ffn_dim": ffn.shape[0],
        "dropout": 0.0,
        "two_stage": f"{prefix}enc_output.weight" in state_dict,
        "box_refinement": any(".decoder.bbox_embed." in k for k in state_dict),
    }


def official_backbone(state: dict[str, Tensor], maps: int) -> TinyBackbone:
    """The backbone of the authors' fixtures, its last `maps` maps; they store images that are normalised."""
    widths = [state[f"backbone.0.body.{n}.weight"].shape[0] for n in ("stem", "layer2", "layer3", "layer4")]
    as_they_are = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return TinyBackbone(TinyBody(widths), tuple(widths[-maps:]), (8, 16, 32)[-maps:], as_they_are)


def official_deformable_detr(fixture: dict[str, Any], **changes: Any) -> DeformableDETR:
    """Ours in the configuration of an `official_defdetr*` fixture, weights not loaded."""
    state, config = fixture["state_dict"], fixture["config"]
    maps = 3 if config["num_feature_levels"] > 1 else 1
    arguments = {
        **_sizes(state, "transformer."),
        "num_heads": config["nheads"],
        "num_points": config["enc_n_points"],
        "num_queries": config["num_queries"],
        "aux_loss": config["aux_loss"],
    }
    return DeformableDETR(
        official_backbone(state, maps),
        contiguous(state["class_embed.0.bias"].shape[0]),
        **{**arguments, **changes},
    )


def detrex_deformable_detr(fixture: dict[str, Any], **changes: Any) -> DeformableDETR:
    """Ours in the configuration of a `deformable_detr*_detrex` fixture, weights not loaded."""
    state, text = fixture["state_dict"], fixture["constructor"]
    body = TinyResNet(state)
    channels = tuple(v.shape[1] for k, v in state.items() if re.match(r"neck\.convs\.\d+\.conv\.weight$", k))
    position = fixture["config"]["position_embedding"]
    numbers = {
        name: int(re.search(rf"{name} (\d+)", text)[1])
        for name in ("heads", "num_queries", "groups", "select_box_nums")
    }
    arguments = {
        **_sizes(state, "transformer."),
        "neck": Factory(ChannelMapper, num_groups=numbers["groups"]),
        "num_heads": numbers["heads"],
        "num_queries": numbers["num_queries"],
        "position_temperature": position["temperature"],
        "position_offset": position["offset"],
        "inverse_sigmoid_eps": 1e-3,
        "matcher": HungarianMatcher(giou_eps=1e-6),
        "criterion": SetCriterion(class_weight=1.0, giou_eps=1e-6),
        "mask_padding_in_eval": False,
        "clip_boxes": True,
        "detections_per_image": numbers["select_box_nums"],
    }
    classes = state["class_embed.0.bias"].shape[0]
    backbone = TinyBackbone(body, channels, (8, 16, 32)[-len(channels) :])
    return DeformableDETR(backbone, contiguous(classes), **{**arguments, **changes})
