"""What timm expects of a backbone, once for all that are a stem, stages and a classifier.

A paper's file builds these parts and registers its variants; see `cswin.py`, and docs/backbones.md. Overlapping patches
are PVTv2's (arXiv 2106.13797; authors' code: whai362/PVT, Apache-2.0).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, SelectAdaptivePool2d, trunc_normal_
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistrain.checkpoints import KeyMap, find_state_dict
from vistrain.errors import DataError
from vistrain.layers.fusion import fuse
from vistrain.layers.norms import LayerNorm2d

Entrypoint = TypeVar("Entrypoint", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Published:
    """What a paper prints of a variant, to as many digits as it prints.

    Attributes:
        parameters: in millions.
        gmacs: multiply-adds of one image, in 10^9 (papers call them FLOPs).
        top1: accuracy on ImageNet-1k's validation set, in percent.
        size: side of the image that both are of, in pixels.
        fused: parameters and multiply-adds are those after `StagedBackbone.fuse`.
        counted: arguments of the model that the numbers are of, where these are not the defaults.
        why: what a difference of more than 1 % from what is counted here comes of.
    """

    parameters: float
    gmacs: float | None = None
    top1: float | None = None
    size: int = 224
    fused: bool = False
    counted: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


class Stage(nn.Module):
    """A downsampling layer, then blocks: `[B, C, H, W]` -> `[B, C', H', W']`.

    Args:
        downsample: `[B, C, H, W]` -> `[B, C', H', W']`; `nn.Identity()` where the stem has done it.
        blocks: each `[B, H, W, C']` -> the same shape; or `[B, C', H, W]` with `channels_last=False`.
        channels_last: how the blocks want their maps. Turning them moves no data.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], channels_last: bool = True) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.channels_last = channels_last
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        x = self.downsample(x)
        x = x.permute(0, 2, 3, 1) if self.channels_last else x
        for block in self.blocks:
            again = self.grad_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x.permute(0, 3, 1, 2) if self.channels_last else x


class NormedStage(Stage):
    """A stage whose map is normalised; what follows, in classification too, takes the normalised one.

    Args:
        downsample, blocks: see `Stage`.
        dim: channels.
        eps: of the norm.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dim: int, eps: float = 1e-6) -> None:
        super().__init__(downsample, blocks)
        self.norm = LayerNorm2d(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        return self.norm(super().forward(x))


class TokenBlock(nn.Module):
    """Attention and an MLP, each on normalised tokens and added to what came in.

    Args:
        dim: channels.
        attn: `[B, H * W, C]` and (H, W) -> `[B, H * W, C]`.
        mlp: `[B, H, W, C]` -> `[B, H, W, C]`.
        pos_kernel: of a convolution of each channel that is added first and encodes positions; 0 for none.
        layer_scale: initial factor of both branches, learnt for each channel; None for no factors.
        eps: of the norms.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        pos_kernel: int = 0,
        layer_scale: float | None = None,
        eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pos = nn.Conv2d(dim, dim, pos_kernel, padding=pos_kernel // 2, groups=dim) if pos_kernel else None
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn, self.mlp = attn, mlp
        scales = (None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale))) for _ in "12")
        self.gamma1, self.gamma2 = scales
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        size = (x.shape[1], x.shape[2])
        if self.pos is not None:
            x = x + self.pos(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        attended = self.attn(self.norm1(x).flatten(1, 2), size).unflatten(1, size)
        x = x + self.drop_path(attended if self.gamma1 is None else self.gamma1 * attended)
        changed = self.mlp(self.norm2(x))
        return x + self.drop_path(changed if self.gamma2 is None else self.gamma2 * changed)


class StagedBackbone(nn.Module):
    """A stem, stages that each give a map, a norm, pooling and a linear classifier.

    Args:
        stem: `[B, in_chans, H, W]` -> `[B, C, h, w]`.
        stages: each `[B, C, H, W]` -> `[B, C', H', W']` (see `Stage`).
        norm: of the last map `[B, C, h, w]`; with `pool_first`, of the pooled vector `[B, C]`.
        channels, strides: of the stages' maps, fine to coarse.
        num_classes: of the classifier; 0 for none.
        global_pool: `avg`, `max`, or empty for none (which goes with 0 classes).
        drop_rate: dropout before the classifier.
        num_features: C of what `norm` gives, where it widens the last map; None is the last of `channels`.

    Attributes:
        pool_first: whether maps are pooled before the norm.
        feature_info: timm's description of the maps: channels, stride and module of each.
        size_divisor: what image sides must be multiples of, where the class says so; None leaves it to be found out
            from the convolutions (`sizes.py`).
        smallest_side: pixels that an image must have along each axis: less leaves a convolution without padding
            nothing to look at.
    """

    sets_itself: tuple[str, ...] = ("stem", "stages", "norm", "channels", "strides", "num_features")
    pool_first = False
    size_divisor: int | None = None
    smallest_side = 1
    global_pool: Any  # timm's pooling, whose sources are not typed

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        norm: nn.Module,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.feature_info = [
            {"num_chs": c, "reduction": s, "module": f"stages.{i}"}
            for i, (_, c, s) in enumerate(zip(stages, channels, strides, strict=True))
        ]
        self.num_features = self.head_hidden_size = num_features or channels[-1]
        self.drop_rate = drop_rate
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, in_chans, H, W]` -> logits `[B, num_classes]`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `[B, in_chans, H, W]` -> the last map `[B, C, h, w]`, normalised unless the norm follows pooling.

        Raises:
            DataError: images are smaller than `smallest_side`.
        """
        x, _ = self.start(x)
        x = self.stages(x)
        return x if self.pool_first else self.norm(x)

    def _refuse_small(self, images: Tensor) -> None:
        least, (height, width) = self.smallest_side, images.shape[2:]
        if least > 1 and (height < least or width < least):
            problem = f"{height}x{width} pixels are too few for {type(self).__name__}"
            raise DataError("image", problem, f"use images of at least {least}x{least}")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map `[B, C, h, w]` -> logits `[B, num_classes]`, or with `pre_logits` what they are made from."""
        x = self.global_pool(x)
        x = self.head_drop(self.norm(x) if self.pool_first else x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of chosen stages, as all of timm's models give them.

        Args:
            x: images `[B, in_chans, H, W]`.
            indices: of stages, ascending; the last so many if one number, all if None.
            norm: apply the last norm to the last stage's map.
            stop_early: do not compute what comes after the last map asked for.
            output_fmt: `NCHW`, which is all there is.
            intermediates_only: leave out the first of the two results.

        Returns:
            What `forward_features` returns (what is computed of it), and the maps `[B, C_i, H_i, W_i]`.

        Raises:
            DataError: images are smaller than `smallest_side`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"maps come out as NCHW, not {output_fmt}")
        chosen, last = feature_take_indices(len(self.stages), indices)
        maps: list[Tensor] = []
        x, token = self.start(x)
        for index, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x, token = self.advance(stage, x, token)
            if index in chosen:
                maps.append(x)
        if norm and last == len(self.stages) - 1:
            maps[-1] = self.norm(x)
        if intermediates_only:
            return maps
        found = x if token is None else token
        whole = last == len(self.stages) - 1 or not stop_early
        return (self.norm(found) if whole and not self.pool_first else found), maps

    def start(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images `[B, in_chans, H, W]` -> the stem's map, and the class's token if there is one already.

        Raises:
            DataError: images are smaller than `smallest_side`.
        """
        self._refuse_small(images)
        return self.stem(images), None

    def advance(self, stage: nn.Module, x: Tensor, token: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A stage's map of a map, and beside them the class's token `[B, C, 1, 1]` where there is one."""
        return stage(x), None

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what `forward_intermediates` with these indices does not need; returns them counted from 0."""
        chosen, last = feature_take_indices(len(self.stages), indices)
        if prune_norm or last < len(self.stages) - 1:  # the norm is of the last stage
            self.norm = nn.Identity()
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        return list(chosen)

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes is none at all. `global_pool` as in the constructor, None keeps it.

        Raises:
            ValueError: classes are asked for, but no pooling.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        if num_classes and not pool:
            raise ValueError("a classifier needs pooling: set global_pool to 'avg', or num_classes to 0")
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=pool, flatten=bool(pool))
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = initialise(head).to(next(self.stem.parameters()))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: blocks are computed again in the backward pass."""
        for stage in self.stages:
            setattr(stage, "grad_checkpointing", enable)  # noqa: B010 - a flag, which mypy takes for a module

    def fuse(self) -> StagedBackbone:
        """Merges, in place, layers that compute as one in evaluation (`layers/fusion.py`); returns the model itself."""
        fuse(self)
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the authors exempt from weight decay, beside norms and biases."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's description of depth, for layer-wise learning rates: patterns of the stem and of blocks."""
        blocks = (
            r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^stem", "blocks": blocks}


def initialise(module: nn.Module, convolutions: Literal["torch", "truncated", "fan_out"] = "torch") -> nn.Module:
    """Start of training as in ViT, DeiT and Swin: linear layers from a normal distribution of deviation 0.02, no bias.

    Args:
        module: whose norms keep torch's start.
        convolutions: keep torch's, too; or have no bias, and weights as linear layers (ConvNeXt) or of a variance of 2
            over what a cell of the input goes into (PVT).

    Returns:
        `module`.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.weight.is_meta:  # drawing nothing takes a millisecond
            continue
        if isinstance(layer, nn.Linear) or convolutions == "truncated":
            trunc_normal_(layer.weight, std=0.02)
        elif convolutions == "fan_out":
            fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


def drop_path_rates(depths: Sequence[int], rate: float) -> Iterator[list[float]]:
    """Stochastic depth that grows evenly from 0 at the first block to `rate` at the last: a list for each stage."""
    rates = torch.linspace(0, rate, sum(depths), device="cpu").tolist()  # numbers, also where models are built on meta
    for depth in depths:
        yield rates[:depth]
        rates = rates[depth:]


def register_model(entrypoint: Entrypoint) -> Entrypoint:
    """timm's `register_model`, but that a name which exists is never overwritten.

    Raises:
        ValueError: there is a model of this name.
    """
    name = entrypoint.__name__
    if timm.is_model(name):
        there = timm.model_entrypoint(name).__module__
        raise ValueError(f"{entrypoint.__module__}.{name}: {there} has registered a model of this name; choose another")
    return timm.models.register_model(entrypoint)


def ours() -> list[str]:
    """Names of the registered models whose file stands in this folder, sorted."""
    folder = __name__.rpartition(".")[0]
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(f"{folder}.")]


def published(name: str) -> Published:
    """The row of a registered variant of ours in its file's `PUBLISHED`."""
    row: Published = sys.modules[timm.model_entrypoint(name).__module__].PUBLISHED[name]
    return row


def default_cfg(
    paper: str, origin: str, licence: str, first_conv: str = "stem.0", size: int = 224, **changes: Any
) -> dict[str, Any]:
    """timm's default cfg of a model: how images are prepared, which layer is first, where it comes from.

    Args:
        paper: arXiv identifier.
        origin: address of the authors' code.
        licence: of their code and weights.
        first_conv: path of the layer that sees the image.
        size: side of the images that it was trained and evaluated on.
        changes: to any other of timm's fields.
    """
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 0.9 if size == 224 else 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "head",
        "paper_ids": f"arXiv:{paper}",
        "origin_url": origin,
        "license": licence,
        **changes,
    }


def build_variant(
    cls: type[StagedBackbone],
    name: str,
    pretrained: bool,
    checkpoint_filter_fn: Callable[[dict[str, Any], nn.Module], dict[str, Tensor]],
    arguments: dict[str, Any],
    stages: int = 4,
) -> StagedBackbone:
    """A registered variant, as timm builds its own: with its default cfg, its weights, and `features_only`.

    Args:
        cls: of the model.
        name: of the variant.
        pretrained: load the weights that the default cfg or timm's `pretrained_cfg_overlay` names.
        checkpoint_filter_fn: turns the authors' names into ours (see `converter`).
        arguments: of the constructor, and timm's own.
        stages: of which `features_only` gives the maps.
    """
    return build_model_with_cfg(
        cls,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": "getter"},
        **arguments,
    )


def converter(*key_maps: KeyMap) -> Callable[[dict[str, Any], nn.Module], dict[str, Tensor]]:
    """timm's `checkpoint_filter_fn` for tables of names.

    Args:
        key_maps: from the authors' names, and those of others, to ours; the first that weights have is applied.

    Returns:
        A function of weights and the model that they are for. Weights may stand in the dictionary that training codes
        write around them (`state_dict_ema`, `model`), under the authors' names or ours; they come out under ours. Where
        the authors have a 1x1 convolution and we a linear layer (`[O, I, 1, 1]`, `[O, I]`), it is turned into one.
    """

    def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
        state, _ = find_state_dict(weights)
        key_map = next((known for known in key_maps if known.matches(state)), None)
        state = state if key_map is None else key_map.apply(state)
        linear = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        return {k: v[:, :, 0, 0] if k in linear and v.shape[2:] == (1, 1) else v for k, v in state.items()}

    return checkpoint_filter_fn


def dense_key_map(authors: KeyMap, norms: Sequence[str]) -> KeyMap:
    """Names of the authors' dense backbone, whose maps have a norm each -> of `Backbone(..., output_norm_eps=...)`.

    Args:
        authors: from their names in classification to ours.
        norms: their names of the norms, fine to coarse (`norm1` to `norm4`).
    """
    return KeyMap(
        name=f"dense {authors.name}",
        marker=authors.marker,
        rules=(
            *((rf"^{name}\.", f"norms.{i}.") for i, name in enumerate(norms)),
            *authors.rules,
            (r"^(?!norms\.)", "body."),
        ),
        drop=(*authors.drop, r"^(norm|head)\."),  # of classification
        exports=(
            *((rf"^norms\.{i}\.", (f"{name}.".replace("\\.", "."),)) for i, name in enumerate(norms)),
            (r"^body\.", ("",)),
            *authors.exports,
        )
        if authors.exports
        else (),
        layouts=authors.layouts,
        stacked=authors.stacked,
    )
