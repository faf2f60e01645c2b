"""Convolutional host networks: a ResNet and a MobileNet whose blocks have any module of `vistrain/modules/`.

Deep Residual Learning for Image Recognition, arXiv 1512.03385 (stride on the 3x3 convolution, as torchvision, BSD-3-
Clause, has it); MobileNetV2, arXiv 1801.04381 (authors' code: tensorflow/models, Apache-2.0). Weights of timm's and
torchvision's ResNets, of ECA-Net (BangguWu/ECANet, MIT), IBN-Net (XingangPan/IBN-Net, MIT) and of timm's MobileNetV2
load under their own names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from timm.layers import DropPath
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.by_name import Choice, Chosen
from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError, nearest
from vistrain.modules.base import MODULES, ConvModule, Place

Module = Choice | None  # None: blocks as they are

RESNET = KeyMap(
    name="ResNet",
    marker=r"^layer1\.0\.conv1\.weight$",
    rules=(
        (r"^(conv1|bn1)\.", r"stem.\1."),
        *((rf"^layer{i}\.", f"stages.{i - 1}.blocks.") for i in range(1, 5)),
        (r"^(stages\.\d\.blocks\.\d+)\.(eca|se)\.", r"\1.branch."),
        (r"^(stages\.\d\.blocks\.\d+)\.IN\.", r"\1.end.IN."),
        (r"^fc\.", "head."),
    ),
)
_FIRST = {"conv_dw": "conv_dw", "bn1": "bn2", "conv_pw": "conv_pwl", "bn2": "bn3"}  # of the block that is not widened
MOBILENET = KeyMap(
    name="MobileNetV2",
    marker=r"^blocks\.0\.0\.conv_dw\.weight$",
    rules=(
        (r"^conv_stem\.", "stem.conv."),
        (r"^bn1\.", "stem.bn."),
        *((rf"^blocks\.0\.0\.{theirs}\.", f"stem.block.{ours}.") for theirs, ours in _FIRST.items()),
        *((rf"^blocks\.{i}\.", f"stages.{i - 1}.blocks.") for i in (1, 2, 3)),
        *((rf"^blocks\.4\.{i}\.", f"stages.2.blocks.{i + 4}.") for i in (0, 1, 2)),
        (r"^blocks\.5\.", "stages.3.blocks."),
        (r"^blocks\.6\.0\.", "stages.3.blocks.3."),
        (r"^conv_head\.", "norm.conv."),
        (r"^bn2\.", "norm.bn."),
        (r"^classifier\.", "head."),
    ),
)
checkpoint_filter_fn = converter(RESNET, MOBILENET)


class Places:
    """Where a stage's module may stand, and what stands there without one: the one insertion point of both hosts.

    Args:
        chosen: the module; None for none.
        grid: (H, W) of the stage's maps, at the size that the host is built for.
        where: dotted key, for messages.
    """

    def __init__(self, chosen: Chosen[ConvModule] | None, grid: tuple[int, int], where: str = "args.module") -> None:
        self.chosen, self.grid, self.where = chosen, grid, where

    @property
    def least_cells(self) -> int:
        """Fewest cells of the maps that the module takes."""
        return 1 if self.chosen is None else self.chosen.cls.least_cells

    def convolution(self, in_channels: int, out_channels: int, stride: int, groups: int = 1) -> nn.Module:
        """A 3x3 convolution without bias, or the module."""
        facts = {"kernel_size": 3, "stride": stride, "padding": 1, "groups": groups}
        plain = nn.Conv2d(in_channels, out_channels, 3, stride, 1, groups=groups, bias=False)
        return self._or("convolution", plain, in_channels=in_channels, out_channels=out_channels, **facts)

    def norm(self, dim: int) -> nn.Module:
        """A batch norm, or the module."""
        return self._or("norm", nn.BatchNorm2d(dim), dim=dim)

    def branch(self, dim: int) -> nn.Module:
        """Nothing, or the module."""
        return self._or("branch", nn.Identity(), dim=dim)

    def end(self, dim: int) -> nn.Module:
        """Nothing, or the module."""
        return self._or("end", nn.Identity(), dim=dim)

    def _or(self, place: Place, plain: nn.Module, **facts: Any) -> nn.Module:
        if self.chosen is None or self.chosen.cls.place != place:
            return plain
        return self.chosen.made({**facts, "grid": self.grid}, self.where)


class ResidualBlock(nn.Module):
    """What the blocks of ResNets share: the sum, and what stands around it.

    Args:
        dim_in, dim: channels before and after it.
        stride: of the block.
        places: for the module.
        drop_path: probability that the branch is left out of a sample in training.
        is_last: whether it ends its stage.
    """

    def __init__(
        self, dim_in: int, dim: int, stride: int, places: Places, drop_path: float = 0.0, is_last: bool = False
    ) -> None:
        super().__init__()
        self.branch = places.branch(dim)
        self.end = places.end(dim) if is_last else nn.Identity()
        self.drop_path = DropPath(drop_path)
        changes = stride != 1 or dim_in != dim
        shortcut = (nn.Conv2d(dim_in, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))
        self.downsample = nn.Sequential(*shortcut) if changes else nn.Identity()

    def added(self, x: Tensor) -> Tensor:
        """`[B, dim_in, H, W]` -> `[B, dim, H', W']`: the branch, up to its last norm."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """`[B, dim_in, H, W]` -> `[B, dim, H', W']`."""
        added = self.drop_path(self.branch(self.added(x)))
        return self.end(self.downsample(x) + added).relu()


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions.

    Args:
        dim_in, planes: channels before it, and after it.
        stride, places: see `ResidualBlock`.
        base: see `ResidualBlock`.
    """

    sets_itself = ("dim",)
    expansion = 1

    def __init__(self, dim_in: int, planes: int, stride: int, places: Places, **base: Any) -> None:
        super().__init__(dim_in, planes, stride, places=places, **base)
        self.conv1 = nn.Conv2d(dim_in, planes, 3, stride, 1, bias=False)
        self.bn1 = places.norm(planes)
        self.conv2 = places.convolution(planes, planes, 1)
        self.bn2 = nn.BatchNorm2d(planes)

    def added(self, x: Tensor) -> Tensor:
        """`[B, dim_in, H, W]` -> `[B, planes, H', W']`."""
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class Bottleneck(ResidualBlock):
    """A 3x3 convolution of few channels between 1x1 ones.

    Args:
        dim_in, planes: channels before it, and of its 3x3 convolution; four times as many come out.
        stride, places: see `ResidualBlock`.
        base: see `ResidualBlock`.
    """

    sets_itself = ("dim",)
    expansion = 4

    def __init__(self, dim_in: int, planes: int, stride: int, places: Places, **base: Any) -> None:
        super().__init__(dim_in, 4 * planes, stride, places=places, **base)
        self.conv1 = nn.Conv2d(dim_in, planes, 1, bias=False)
        self.bn1 = places.norm(planes)
        self.conv2 = places.convolution(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)

    def added(self, x: Tensor) -> Tensor:
        """`[B, dim_in, H, W]` -> `[B, 4 * planes, H', W']`."""
        x = self.bn1(self.conv1(x)).relu()
        return self.bn3(self.conv3(self.bn2(self.conv2(x)).relu()))


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class InvertedResidual(nn.Module):
    """A depthwise 3x3 convolution of many channels between 1x1 ones.

    Args:
        dim_in, dim: channels before and after it.
        stride: of the block.
        places: for the module.
        ratio: channels of the depthwise convolution by `dim_in`; at 1 no convolution widens.
        drop_path: probability that the branch is left out of a sample in training.
        is_last: whether it ends its stage.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        stride: int,
        places: Places,
        ratio: int = 6,
        drop_path: float = 0.0,
        is_last: bool = False,
    ) -> None:
        super().__init__()
        hidden = dim_in * ratio
        self.is_sum = stride == 1 and dim_in == dim
        self.act = nn.ReLU6()
        if ratio > 1:
            self.conv_pw, self.bn1 = nn.Conv2d(dim_in, hidden, 1, bias=False), places.norm(hidden)
        self.conv_dw, self.bn2 = places.convolution(hidden, hidden, stride, hidden), nn.BatchNorm2d(hidden)
        self.branch = places.branch(hidden)
        self.conv_pwl, self.bn3 = nn.Conv2d(hidden, dim, 1, bias=False), nn.BatchNorm2d(dim)
        self.end = places.end(dim) if is_last else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.widens = ratio > 1

    def forward(self, x: Tensor) -> Tensor:
        """`[B, dim_in, H, W]` -> `[B, dim, H', W']`."""
        out = self.act(self.bn1(self.conv_pw(x))) if self.widens else x
        out = self.branch(self.act(self.bn2(self.conv_dw(out))))
        out = self.bn3(self.conv_pwl(out))
        return self.end(x + self.drop_path(out) if self.is_sum else out)


class ModuleResNet(StagedBackbone):
    """A ResNet whose blocks have a module.

    Args:
        in_chans: channels of the images.
        module: of all stages, or of each: a name, a class, or a mapping; None for blocks as they are. See
            `by_name.NamedParts`.
        module_args: arguments of every module.
        img_size: side or (H, W) of the images that modules which know their map are built for.
        block: `basic` (ResNet-18 and 34) or `bottleneck`.
        depths: blocks of each stage.
        width: channels of the stem and, times four in bottlenecks, of the first stage; they double.
        stem_norm: `instance` for IBN-Net-b.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.

    Raises:
        ConfigError: no such module or argument.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        module: Module | Sequence[Module] = None,
        module_args: Mapping[str, Any] | None = None,
        img_size: int | Sequence[int] = 224,
        block: Literal["basic", "bottleneck"] = "bottleneck",
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        stem_norm: Literal["batch", "instance"] = "batch",
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        if block not in BLOCKS:
            raise ConfigError("args.block", f"no block {block!r}", nearest(block, BLOCKS))
        kind = BLOCKS[block]
        strides = [4 * 2**i for i in range(len(depths))]
        places = _places(module, module_args, strides, img_size)
        norm = nn.BatchNorm2d(width) if stem_norm == "batch" else nn.InstanceNorm2d(width, affine=True)
        first = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
        stem = nn.Sequential(OrderedDict(conv1=first, bn1=norm, act=nn.ReLU(), pool=nn.MaxPool2d(3, 2, 1)))
        stages, dim = [], width
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            blocks = []
            for j, rate in enumerate(rates):
                last = j == len(rates) - 1
                stride = 2 if i and not j else 1
                blocks.append(kind(dim, width * 2**i, stride, places[i], drop_path=rate, is_last=last))
                dim = width * 2**i * kind.expansion
            stages.append(Stage(nn.Identity(), blocks, channels_last=False))
        dims = [width * 2**i * kind.expansion for i in range(len(depths))]
        super().__init__(stem, stages, nn.Identity(), channels=dims, strides=strides, **base)
        self.smallest_side = _smallest_side(places, strides)
        self.img_size = img_size
        _start(self)


class ModuleMobileNet(StagedBackbone):
    """A MobileNetV2 whose blocks have a module; the first one, which is not widened, has none.

    Args:
        in_chans, module, module_args, img_size: see `ModuleResNet`.
        stem_dims: channels of the first convolution, and of the block behind it.
        plan: of each stage, channels and how many blocks have them, one pair after the other.
        features: channels of the last map, from which classes are told.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.

    Raises:
        ConfigError: no such module or argument.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        module: Module | Sequence[Module] = None,
        module_args: Mapping[str, Any] | None = None,
        img_size: int | Sequence[int] = 224,
        stem_dims: Sequence[int] = (32, 16),
        plan: Sequence[Sequence[Sequence[int]]] = (((24, 2),), ((32, 3),), ((64, 4), (96, 3)), ((160, 3), (320, 1))),
        features: int = 1280,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        strides = (4, 8, 16, 32)
        places = _places(module, module_args, strides, img_size)
        first = nn.Conv2d(in_chans, stem_dims[0], 3, 2, 1, bias=False)
        block = InvertedResidual(stem_dims[0], stem_dims[1], 1, Places(None, (0, 0)), ratio=1)
        stem = nn.Sequential(OrderedDict(conv=first, bn=nn.BatchNorm2d(stem_dims[0]), act=nn.ReLU6(), block=block))
        widths = [[out for out, count in stage for _ in range(count)] for stage in plan]
        stages, dim = [], stem_dims[1]
        for i, rates in enumerate(drop_path_rates([len(stage) for stage in widths], drop_path_rate)):
            blocks = []
            for j, (rate, out) in enumerate(zip(rates, widths[i], strict=True)):
                last = j == len(rates) - 1
                blocks.append(InvertedResidual(dim, out, 1 if j else 2, places[i], drop_path=rate, is_last=last))
                dim = out
            stages.append(Stage(nn.Identity(), blocks, channels_last=False))
        wider = nn.Conv2d(dim, features, 1, bias=False)
        norm = nn.Sequential(OrderedDict(conv=wider, bn=nn.BatchNorm2d(features), act=nn.ReLU6()))
        channels = [stage[-1] for stage in widths]
        super().__init__(stem, stages, norm, channels=channels, strides=strides, num_features=features, **base)
        self.smallest_side = _smallest_side(places, strides)
        self.img_size = img_size
        _start(self)


def _places(
    module: Module | Sequence[Module],
    module_args: Mapping[str, Any] | None,
    strides: Sequence[int],
    img_size: int | Sequence[int],
) -> list[Places]:
    """Those of each stage."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    chosen = MODULES.choose(module, module_args, len(strides), "args.module")
    grids = [(-(-height // stride), -(-width // stride)) for stride in strides]
    return [Places(part, grid) for part, grid in zip(chosen, grids, strict=True)]


def _smallest_side(places: Sequence[Places], strides: Sequence[int]) -> int:
    """Of an image, so that no stage with a module that wants several cells has a single one."""
    return max([1, *(stride + 1 for place, stride in zip(places, strides, strict=True) if place.least_cells > 1)])


def _start(network: nn.Module) -> None:
    """Convolutions of the host start as the authors' do; modules keep the start that they give themselves."""
    own = {id(layer) for part in network.modules() if isinstance(part, ConvModule) for layer in part.modules()}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and id(layer) not in own:
            initialise(layer, "fan_out")


# Nothing is published of the hosts with modules; what they are counted with is none
PUBLISHED = {
    "module_resnet18": Published(11.69, 1.82),
    "module_resnet34": Published(21.80, 3.67),
    "module_resnet50": Published(25.56, 4.11),
    "module_resnet101": Published(44.55, 7.83),
    "module_mobilenetv2": Published(3.50, 0.30),
}
_RESNET = partial(default_cfg, "1512.03385", "https://github.com/pytorch/vision", "bsd-3-clause", "stem.conv1")
_MOBILENET = partial(default_cfg, "1801.04381", "https://github.com/tensorflow/models", "apache-2.0", "stem.conv")
default_cfgs = generate_default_cfgs({name: (_MOBILENET if "mobilenet" in name else _RESNET)() for name in PUBLISHED})


def _resnet(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(ModuleResNet, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def module_resnet18(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """ResNet-18 with a module."""
    return _resnet("module_resnet18", pretrained, {"block": "basic", "depths": (2, 2, 2, 2)}, kwargs)


@register_model
def module_resnet34(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """ResNet-34 with a module."""
    return _resnet("module_resnet34", pretrained, {"block": "basic"}, kwargs)


@register_model
def module_resnet50(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """ResNet-50 with a module."""
    return _resnet("module_resnet50", pretrained, {}, kwargs)


@register_model
def module_resnet101(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """ResNet-101 with a module."""
    return _resnet("module_resnet101", pretrained, {"depths": (3, 4, 23, 3)}, kwargs)


@register_model
def module_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """MobileNetV2 with a module."""
    return build_variant(ModuleMobileNet, "module_mobilenetv2", pretrained, checkpoint_filter_fn, kwargs)
