"""What timm's models tell of themselves. They share methods, but no class, and not all of them have each method."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vistrain.structures import Preprocessing

Body = Any  # a timm model


def stages(body: Body) -> list[dict[str, Any]]:
    """`reduction` (the stride), `num_chs` and `module` of each stage that gives a map; none if it gives no maps."""
    if not hasattr(body, "forward_intermediates"):
        return []
    info = getattr(body, "feature_info", None)
    return list(getattr(info, "info", info) or ())


def built_size(body: Body) -> tuple[int, int] | None:
    """(H, W) of the images that its patches are built for (`args: {img_size: 384}`); None if it does not say."""
    size = getattr(getattr(body, "patch_embed", None), "img_size", None)
    return sides(size) if size else None


def fixed_size(body: Body) -> tuple[int, int]:
    """(H, W) of the images that a model takes which takes one size alone."""
    size = built_size(body) or getattr(body, "img_size", None) or body.pretrained_cfg["input_size"]
    return (size, size) if isinstance(size, int) else sides(size)


def no_weight_decay(body: Body) -> set[str]:
    """Names of parameters that the model's authors exempt from weight decay (position tables, tokens)."""
    return set(body.no_weight_decay()) if hasattr(body, "no_weight_decay") else set()


def input_layers(body: Body) -> tuple[str, ...]:
    """`Network.input_layers` of what holds it as `body`, by its default cfg; none if that does not say."""
    named = body.pretrained_cfg.get("first_conv") or ()
    return tuple(rf"^body\.{re.escape(name)}\.weight$" for name in ((named,) if isinstance(named, str) else named))


def layers(body: Body) -> tuple[dict[str, int], int] | None:
    """Parameter name -> number of its layer from the input, and the number of a classifier's, there or not.

    None if it does not say what its layers are.
    """
    if not callable(getattr(body, "group_matcher", None)):
        return None
    from timm.models import group_parameters

    found = group_parameters(_NamesAndTop(body), body.group_matcher(coarse=False), reverse=True)
    top = found.pop(_NamesAndTop.top)
    return found, top


def layers_above(body: Body) -> dict[str, int] | None:
    """How many layers lie above each parameter's, a classifier counted; see `Network.layers_above`.

    timm's top is where a classifier stands. A detector's head stands there, so that the body's last block has one layer
    above it with and without a classifier, as ViTDet's and BEiT's recipes have it.
    """
    known = layers(body)
    return None if known is None else {name: known[1] - layer for name, layer in known[0].items()}


def preprocessing(body: Body, channels: int) -> Preprocessing:
    """How images must be prepared for its weights, by the default cfg of their tag."""
    cfg = body.pretrained_cfg
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if len(mean) != channels:  # as timm spreads the weights of the first convolution: no channel is special
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return Preprocessing(
        mean=mean,
        std=std,
        interpolation=cfg["interpolation"],
        crop_pct=cfg["crop_pct"],
        input_size=sides(cfg["input_size"]),
    )


def sides(size: Sequence[int]) -> tuple[int, int]:
    """(H, W), from timm's (H, W) or (C, H, W)."""
    return int(size[-2]), int(size[-1])


class _NamesAndTop:
    """The parameters of a body and one name that no matcher knows: timm gives it the layer above all others."""

    top = "\0top"

    def __init__(self, body: Body) -> None:
        self.body = body

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        yield from self.body.named_parameters()
        yield self.top, None
