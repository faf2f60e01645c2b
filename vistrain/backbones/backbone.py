"""A timm model as a dense backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from vistrain.backbones import timm_body
from vistrain.backbones.create import create
from vistrain.backbones.dense import DenseBackbone
from vistrain.backbones.dense_keys import dense_names
from vistrain.backbones.sizes import fit, size_rule
from vistrain.backbones.swin_dense import pad_before_shift
from vistrain.errors import ConfigError
from vistrain.layers.norms import LayerNorm2d, freeze_batch_norms
from vistrain.structures import Channels

log = logging.getLogger(__name__)


class Backbone(DenseBackbone):
    """Maps of chosen strides from any timm model.

    Levels are chosen by stride, never by index: the last stage of that stride is taken. In models whose stages all
    have one stride (plain ViTs) the final norm is applied, since it is the norm that the weights were trained with; in
    pyramids it is not, as timm's `features_only` and the dense models of their papers leave it out. What comes after
    the coarsest chosen stage, that norm and the classifier are removed: every trainable parameter is used.

    Args:
        name: timm's name, with the tag of the weights (`resnet50.tv_in1k`).
        pretrained: load timm's weights of that name; or a file of classification weights.
        strides: of the maps wanted, ascending. A plain model gives its one map where several strides around its own
            are wanted: levels are made of it by the neck (`necks.default_neck`).
        freeze_at_stride: freeze everything up to and including the stage of this stride, batch norms too (ResNet: 2 is
            the stem, 4 the stem and `layer1`). A model whose first stage is coarser has nothing to freeze. None freezes
            nothing.
        frozen_norm: replace batch norms by ones whose statistics and weights never change; `statistics`: weights learn,
            as in OpenMMLab's detectors (`norm_eval`).
        args: timm's own arguments (`{drop_path_rate: 0.2}`); unknown ones are refused.
        image_channels: of the data set's images.
        output_norm_eps: normalise each map, by a norm with this epsilon, as the authors' dense codes do: 1e-5 for
            Swin, CSWin and NAT, 1e-6 for ConvNeXt, HorNet and BiFormer. None leaves maps alone.
        output_norm: `layer` normalises over the channels of each cell, `batch` (CAS-ViT) over images and cells.

    Attributes:
        strides, channels: of the maps given out, fine to coarse.
        wanted_strides: as they were asked for.
        preprocessing: how images must be prepared for these weights.
        body: the timm model; its parameters have the names that they have in classification.

    Raises:
        ConfigError: unknown name, stride or argument.
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        strides: tuple[int, ...] = (8, 16, 32),
        freeze_at_stride: int | None = None,
        frozen_norm: bool | Literal["statistics"] = False,
        args: dict[str, Any] | None = None,
        image_channels: Channels = Channels(3),  # noqa: B008 - an int
        output_norm_eps: float | None = None,
        output_norm: Literal["layer", "batch"] = "layer",
    ) -> None:
        super().__init__()
        body, flexible = create(name, pretrained, args or {}, image_channels)
        pad_before_shift(body)
        self.key_maps = dense_names(name, output_norm_eps is not None)
        self.input_layers = timm_body.input_layers(body)
        stages = _stages(body, name)
        last_of = {stage["reduction"]: index for index, stage in enumerate(stages)}  # a later one replaces an earlier
        self.wanted_strides = tuple(strides)
        strides = _strides_given(name, strides, last_of)
        self._indices = [last_of[stride] for stride in strides]
        self.strides = tuple(strides)
        self.channels = tuple(stages[index]["num_chs"] for index in self._indices)
        normalised = self.channels if output_norm_eps is not None else ()
        kind: type[nn.Module] = LayerNorm2d if output_norm == "layer" else nn.BatchNorm2d
        self.norms = nn.ModuleList(kind(c, output_norm_eps) for c in normalised)
        self._norm = len(last_of) == 1
        self._size_rule = size_rule(body, list(last_of), flexible)
        divisor = self._size_rule.divisor
        self.preprocessing = replace(timm_body.preprocessing(body, image_channels), size_divisor=divisor)

        frozen = _modules_up_to(body, name, stages, freeze_at_stride)
        body.prune_intermediate_layers(self._indices, prune_norm=not self._norm, prune_head=True)
        self.body: Any = freeze_batch_norms(body) if frozen_norm is True else body
        self._fixed_statistics = frozen_norm == "statistics"
        there = dict(self.body.named_modules())  # what was pruned, or lay inside of a replaced norm, is not
        self._frozen_names = [path for path in frozen if path in there]
        if frozen:
            for module in self._frozen_modules():
                module.requires_grad_(False)
            for parameter in self.body.parameters(recurse=False):  # class tokens, position tables: before any stage
                parameter.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes the maps.

        Args:
            images: `[B, C, H, W]` float, normalised, any height and width that the model allows.

        Returns:
            One `[B, C_i, ceil(H / stride_i), ceil(W / stride_i)]` per stride, fine to coarse.

        Raises:
            ConfigError: the model takes images of one size only, and these are larger.
        """
        padded = self._size_rule.pad(images)
        maps = self.body.forward_intermediates(
            padded,
            indices=self._indices,
            norm=self._norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        before, after = (images.shape[-2], images.shape[-1]), (padded.shape[-2], padded.shape[-1])
        maps = [fit(x, stride, before, after) for x, stride in zip(maps, self.strides, strict=True)]
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)] if self.norms else maps

    def train(self, mode: bool = True) -> Backbone:
        """Like `nn.Module.train`; frozen stages stay in evaluation mode, and so do norms of fixed statistics."""
        super().train(mode)
        for module in self.body.modules() if self._fixed_statistics else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        for module in self._frozen_modules():
            module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: activations are computed again in the backward pass."""
        self.body.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the model's authors exempt from weight decay (position tables, tokens)."""
        return {f"body.{name}" for name in timm_body.no_weight_decay(self.body)}

    def layers_above(self) -> dict[str, int] | None:
        """How many layers lie above each parameter's, by timm's `group_matcher`; see `Network.layers_above`."""
        known = timm_body.layers_above(self.body)
        return None if known is None else {f"body.{name}": above for name, above in known.items()}

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"strides={self.strides}, channels={self.channels}"

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.body.get_submodule(path) for path in self._frozen_names]


def _stages(body: Any, name: str) -> list[dict[str, Any]]:
    """timm's description of the stages: `reduction`, `num_chs`, `module` of each."""
    stages = timm_body.stages(body)
    if not stages or not hasattr(body, "prune_intermediate_layers"):
        raise ConfigError("name", f"timm's {name} gives no intermediate maps", "see docs/backbones.md")
    return stages


def _strides_given(name: str, strides: Sequence[int], known: dict[int, int]) -> tuple[int, ...]:
    """The strides of the maps that a model gives where `strides` are wanted."""
    there = ", ".join(map(str, sorted(known)))
    if len(known) == 1 and len(strides) > 1 and min(strides) <= min(known) <= max(strides):
        return tuple(known)
    for stride in strides:
        if stride not in known:
            more = "a neck adds coarser ones" if len(known) > 1 else "the neck SimplePyramid makes others of it"
            remedy = f"it has {there}; {more}"
            raise ConfigError("strides", f"{name} has no stride {stride}", remedy)
    if not strides or list(strides) != sorted(set(strides)):
        raise ConfigError("strides", f"{list(strides)} is not a list of ascending strides", f"{name} has {there}")
    return tuple(strides)


def _modules_up_to(body: nn.Module, name: str, stages: Sequence[dict[str, Any]], stride: int | None) -> list[str]:
    """Paths of the modules that run no later than the last stage of a stride.

    timm registers modules in the order in which they run, so these are all that come before the stage's end.
    """
    if stride is None:
        return []
    reductions = [stage["reduction"] for stage in stages]
    if stride < min(reductions):
        log.info("%s has no stage as fine as stride %d: nothing of it is frozen", name, stride)
        return []
    if stride not in reductions:
        there = ", ".join(map(str, sorted(set(reductions))))
        raise ConfigError("freeze_at_stride", f"{name} has no stage of stride {stride}", f"it has {there}")
    end = stages[len(reductions) - 1 - reductions[::-1].index(stride)]["module"]
    paths = [path for path, _ in body.named_modules()]
    if not end or end not in paths:
        problem = f"timm does not say where the stage of stride {stride} of {name} ends"
        raise ConfigError("freeze_at_stride", problem, "null freezes nothing")
    last = max(i for i, path in enumerate(paths) if path == end or path.startswith(f"{end}."))
    ancestors = {".".join(end.split(".")[:depth]) for depth in range(end.count(".") + 1)}
    return [path for path in paths[: last + 1] if path not in ancestors]
