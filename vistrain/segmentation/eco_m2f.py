"""ECO-M2F: Efficient Transformer Encoders for Mask2Former-style models (Yao et al. 2024, arXiv 2404.15244).

Authors' code: github.com/GYeow/ECO-M2F, commit 291f1e1, a custom licence of NEC (no licence to take code): written from
its description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.detr.deformable import encoder_reference_points
from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_negative
from vistrain.segmentation.mask2former import Mask2Former
from vistrain.segmentation.mask_classifier import OFFICIAL
from vistrain.segmentation.pixel_decoder import DeformablePixelDecoder, PixelFeatures
from vistrain.structures import Factory, LabelSpace

# The authors keep the gate inside of the encoder.
GATE = (r"\bencoder\.gt\.head\.", "gate.")


class GatedPixelDecoder(DeformablePixelDecoder):
    """A pixel decoder that decides by the coarsest level after how many layers it stops.

    Exits lie after layers `num_layers - num_gates` to `num_layers`. The authors' code takes one decision for a batch
    (an arg-max over all images' gates, which is meant for one image); here each image has its own, and images that go
    on are encoded without those that have stopped.

    Args:
        num_gates: exits before the last layer.
        base: see `DeformablePixelDecoder`.

    Raises:
        ConfigError: more exits than layers.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_gates: int = 4, **base: Any) -> None:
        super().__init__(channels, strides, **base)
        layers = len(self.encoder.layers)
        if not 0 < num_gates < layers:
            raise ConfigError("num_gates", f"{num_gates} exits of {layers} layers", f"1 to {layers - 1}")
        self.first_exit = layers - num_gates
        self.gate = nn.Linear(self.embed_dim, num_gates + 1)
        nn.init.zeros_(self.gate.bias)

    def encode(
        self, tokens: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `DeformablePixelDecoder`; also `gates` `[B, num_gates + 1]` and `exits` `[B]`, layers that were run."""
        coarsest = shapes[0][0] * shapes[0][1]
        gates = self.gate(tokens[:, :coarsest].mean(1))
        exits = gates.argmax(1) + self.first_exit
        points = encoder_reference_points(shapes, None, tokens.device)
        if torch.compiler.is_exporting():  # a file has no branches: all layers run, images keep what their exit gave
            out = tokens
            for i, layer in enumerate(self.encoder.layers):
                goes_on = (exits > i)[:, None, None] | self.complete
                out = torch.where(goes_on, layer(out, position, points, shapes, None), out)
            return out, {"gates": gates, "exits": exits}
        out, going = tokens, torch.arange(len(tokens), device=tokens.device)
        left = [len(self.encoder.layers)] * len(tokens) if self.complete else exits.tolist()
        for i, layer in enumerate(self.encoder.layers):
            running = [j for j, last in enumerate(left) if last > i]
            if not running:
                break
            if len(running) == len(left):
                out = layer(out, position, points, shapes, None)
            else:
                index = going[running]
                out = out.index_copy(0, index, layer(out[index], position, points, shapes, None))
        return out, {"gates": gates, "exits": exits}


def gate_targets(quality: Tensor, price: float) -> Tensor:
    """What the gates are trained towards: quality weighed against cost (section 3.4).

    Args:
        quality: `[B, E]`, the panoptic quality (0..1) that each exit gives on each image.
        price: of a layer, beta in the paper.

    Returns:
        `[B, E]`; the softmax is over the batch, as in the authors' code, where the paper means exits.
    """
    exits = torch.arange(1, quality.shape[1] + 1, device=quality.device)
    return (quality - price * exits).softmax(0)


class ECOMask2Former(Mask2Former):
    """Mask2Former with a gated pixel decoder, in the last step of its training: the gates learn.

    `target` of a batch may hold `exit_quality` `[E]`, see `gate_targets`, for the loss of the gates.

    Args:
        price: of a layer, see `gate_targets`.
        gate_weight: of the loss of the gates.
        base: see `Mask2Former`.
    """

    default_pixel_decoder = Factory(GatedPixelDecoder)
    key_maps = (
        replace(
            OFFICIAL,
            rules=(*OFFICIAL.rules, GATE),
            exports=((r"^pixel_decoder\.gate\.", ("pixel_decoder.encoder.gt.head.",)), *OFFICIAL.exports),
        ),
    )

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        price: float = 0.0005,
        gate_weight: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, labels, **base)
        refuse_negative(price=price, gate_weight=gate_weight)
        self.price, self.gate_weight = price, gate_weight

    def weighed(self, losses: dict[str, Tensor], pixels: PixelFeatures, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """All losses times the layers that were run, as published (the mean, where images differ), and `loss_gates`.

        That is the mean squared distance of the gates' shares, over the batch as published, to their targets; 0 without
        targets.
        """
        gates, exits = pixels.extras["gates"], pixels.extras["exits"]
        scaled = {name: value * exits.float().mean() for name, value in losses.items()}
        if any("exit_quality" not in target for target in batch["target"]):
            return {**scaled, "loss_gates": gates.sum() * 0.0}
        quality = torch.stack([target["exit_quality"] for target in batch["target"]]).to(gates)
        loss = F.mse_loss(gates.softmax(0), gate_targets(quality, self.price))
        return {**scaled, "loss_gates": self.gate_weight * loss}
