"""A whole timm model, body and classifier, as classification trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import timm_body
from vistrain.backbones.create import convert, create, official
from vistrain.backbones.sizes import takes_any_size
from vistrain.errors import ConfigError
from vistrain.structures import Channels, LabelSpace, Preprocessing


class TimmModel(nn.Module):
    """Any timm model with a classifier for the data's classes.

    Args:
        name: timm's name, with the tag of the weights (`resnet50.a1_in1k`).
        pretrained: load timm's weights of that name; or a file of classification weights. Their classifier is kept if
            it is for as many classes as the data has, else a new one is drawn.
        trainable_blocks: train the classifier and this many of the topmost blocks (timm's layers, as `layer_decay`
            counts them); 0 is a linear probe. What is frozen stays in evaluation mode. None trains everything.
        args: timm's own arguments (`{drop_path_rate: 0.1}`); unknown ones are refused.
        labels: of the data set.
        image_channels: of the data set's images.

    Attributes:
        body: the timm model.
        classifiers: names of its classification layers; distilled models have two.
        input_layers: as in `Network`, of its own names.
        preprocessing: how images must be prepared for these weights, and at which size they are evaluated.
        num_features: C of `features`.
        knows_classes: whether the classifier came with the weights.
        any_size: whether the model gives maps of images of any size (see `Backbone`).
        strides: of the maps that it gives, ascending; none where timm knows of no maps.

    Raises:
        ConfigError: unknown name or argument, or the model has no classifier or fewer blocks.
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(
        self,
        name: str,
        labels: LabelSpace,
        pretrained: bool | str = False,
        trainable_blocks: int | None = None,
        args: dict[str, Any] | None = None,
        image_channels: Channels = Channels(3),  # noqa: B008 - an int
    ) -> None:
        super().__init__()
        if not labels.num_classes:
            raise ConfigError("labels", "the data has no classes", "a classifier needs at least one")
        self.name = name
        kept = None if pretrained is not False else labels.num_classes
        body, flexible = create(name, pretrained, args or {}, image_channels, kept)
        self.any_size = takes_any_size(body, flexible)
        self.strides = tuple(sorted({int(stage["reduction"]) for stage in timm_body.stages(body)}))
        self.knows_classes = pretrained is not False and body.num_classes == labels.num_classes
        if body.num_classes != labels.num_classes:
            body.reset_classifier(labels.num_classes)
        self.body: Any = body
        self.classifiers = _classifiers(body, name)
        self.input_layers = timm_body.input_layers(body)
        self.num_features = int(getattr(body, "head_hidden_size", None) or body.num_features)
        self.preprocessing = _preprocessing(body, image_channels)
        if trainable_blocks is not None:
            self._freeze(trainable_blocks)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits.

        Args:
            images: `[B, C, H, W]` float, normalised.

        Returns:
            `[B, K]`; two of them, of the classification and the distillation token, while a model with both trains
            with `distilled_training`.
        """
        logits: Tensor | tuple[Tensor, Tensor] = self.body(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: `[B, C, H, W]` normalised images -> `[B, F]`."""
        features: Tensor = self.body.forward_head(self.body.forward_features(images), pre_logits=True)
        return features.flatten(1)

    def train(self, mode: bool = True) -> TimmModel:
        """Like `nn.Module.train`; what is frozen stays in evaluation mode, its batch statistics too."""
        super().train(mode)
        if mode and not all(p.requires_grad for p in self.parameters()):
            for module in self.body.modules():
                own = list(module.parameters())
                if own and not any(p.requires_grad for p in own):
                    module.eval()
        return self

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of a size that the model cannot take; tried on `meta`, so nothing is computed.

        Raises:
            ConfigError: naming sizes that it can take.
        """
        if self._takes(height, width):
            return
        native = self.preprocessing.input_size or (224, 224)
        steps = {side for step in (16, 28, 32) for side in (height // step * step, -(-height // step) * step)}
        near = sorted(steps, key=lambda side: abs(side - height))
        sizes = [s for s in dict.fromkeys([native, *((side, side) for side in near if side)]) if self._takes(*s)]
        if not sizes:  # a model that cannot be tried this way says by itself what it dislikes
            return
        shown = ", ".join(f"{h}x{w}" for h, w in sizes[:4])
        problem = f"{self.name} cannot take images of {height}x{width}; it takes {shown}"
        remedy = f"set data.image_size={sizes[0][0]}, or build it for another size with model.backbone.args.img_size"
        raise ConfigError("data.image_size", problem, remedy)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the model's authors exempt from weight decay (position tables, tokens)."""
        return {f"body.{name}" for name in timm_body.no_weight_decay(self.body)}

    def layers_above(self) -> dict[str, int] | None:
        """How many layers lie above each parameter's, by timm's `group_matcher`; see `Network.layers_above`."""
        known = timm_body.layers_above(self.body)
        return None if known is None else {f"body.{name}": above for name, above in known.items()}

    def learn_from_teachers(self) -> None:
        """Give two results in training where the model has a token of its own for what a teacher says."""
        if hasattr(self.body, "set_distilled_training"):  # timm's models with two tokens have it
            self.body.set_distilled_training(True)

    def convert(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of `body` under timm's names, from timm's or, where timm knows them, the authors'.

        Raises:
            WeightsError: they are of another model.
        """
        return convert(weights, self.body, self.name, f"weights of {self.name}")

    def official(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of `body` under its authors' names, or timm's where timm has the model.

        Raises:
            WeightsError: a name cannot be told.
        """
        return official(weights, self.name)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training: activations are computed again in the backward pass."""
        self.body.set_grad_checkpointing(enable)

    def _takes(self, height: int, width: int) -> bool:
        tensors = {
            name: value.to("meta") for name, value in (*self.body.named_parameters(), *self.body.named_buffers())
        }
        was_training = self.body.training
        images = torch.empty(2, len(self.preprocessing.mean), height, width, device="meta")
        try:
            self.body.eval()
            with torch.no_grad():
                torch.func.functional_call(self.body, tensors, (images,))
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            return False
        finally:
            self.train(was_training)
        return True

    def _freeze(self, blocks: int) -> None:
        if blocks < 0:
            raise ConfigError("trainable_blocks", f"{blocks} is negative", "0 trains the classifier alone")
        self.requires_grad_(False)
        for classifier in self.classifiers:
            self.body.get_submodule(classifier).requires_grad_(True)
        if not blocks:
            return
        known = timm_body.layers(self.body)
        if known is None:
            raise ConfigError("trainable_blocks", f"{self.name} does not say what its blocks are", "use 0 or null")
        layers = known[0]
        heads = tuple(f"{classifier}." for classifier in self.classifiers)
        top = max(layers.values())
        # A norm before the classifier is often a layer of its own: it learns with any block.
        depth = sorted({layer for name, layer in layers.items() if not name.startswith(heads) and layer < top})
        if blocks > len(depth):
            raise ConfigError("trainable_blocks", f"{self.name} has {len(depth)} blocks", "null trains all of it")
        chosen = set(depth[-blocks:])
        for name, parameter in self.body.named_parameters():
            if layers[name] in chosen or layers[name] == top:
                parameter.requires_grad_(True)


def _classifiers(body: Any, name: str) -> tuple[str, ...]:
    """Names of the classification layers, of those that timm lists the ones that are there."""
    listed = body.pretrained_cfg.get("classifier") or ()
    names = (listed,) if isinstance(listed, str) else tuple(listed)
    modules = dict(body.named_modules())
    found = tuple(n for n in names if n in modules and any(True for _ in modules[n].parameters()))
    if not found:
        raise ConfigError(
            "name", f"timm's {name} has no classifier", "it is meant for other uses; choose another model"
        )
    return found


def _preprocessing(body: Any, channels: int) -> Preprocessing:
    """The evaluation protocol of timm's default cfg; `body.pretrained_cfg` is that of the tag."""
    cfg, basic = body.pretrained_cfg, timm_body.preprocessing(body, channels)
    size, test, built = basic.input_size, cfg.get("test_input_size"), timm_body.built_size(body)
    if built is not None and built != size:
        size, test = built, None
    return replace(
        basic,
        input_size=size,
        crop_mode=cfg.get("crop_mode") or "center",
        test_size=timm_body.sides(test) if test else None,
        test_crop_pct=cfg.get("test_crop_pct") if test else None,
    )
