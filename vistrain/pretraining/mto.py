"""MTO: Emerging Property of Masked Token for Effective Pre-training (ECCV 2024, arXiv 2404.08330).

The paper says that masked tokens should differ from those of the patches that are shown in the first blocks, and adds
three losses on their heterogeneity and entropy there, and a recalibration of weights. There is no code (no licence),
and the formulas are not known to us: those here are ours, and no number of the paper is claimed for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_negative
from vistrain.pretraining.mae import MAE
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.token_masks import Masking, TokenSplit


class MTO(MAE):
    """MAE whose masked tokens are told apart from the others in the decoder's first blocks.

    Args:
        early: interpretation: blocks of the decoder that count as its first ones.
        temperature: interpretation: of the softmax over the cosines between a masked token and all that are shown.
        fall: interpretation: what the weight of a block is multiplied by from one to the next.
        spatial_weight: interpretation: of L_spa, the mean square of these cosines.
        entropy_weight: interpretation: of L_e, the entropy of that softmax against its greatest value.
        recalibration: interpretation: in L_r, the reconstruction, a patch counts (1 - r) + r w, w the softmax over the
            hidden patches of how unlike the shown ones its token is, times their number; 0 is MAE's loss.
        backbone, masking, base: see `MAE`.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        backbone: PatchEncoder,
        masking: Masking | None = None,
        *,
        early: int = 2,
        temperature: float = 0.1,
        fall: float = 0.5,
        spatial_weight: float = 0.1,
        entropy_weight: float = 0.1,
        recalibration: float = 0.5,
        **base: Any,
    ) -> None:
        super().__init__(backbone, masking, **base)
        depth = len(self.decoder_blocks)
        if not 1 <= early <= depth:
            raise ConfigError("model.early", f"{early} of {depth} blocks", f"use 1 to {depth}")
        if temperature <= 0 or not 0 < fall <= 1 or not 0 <= recalibration <= 1:
            problem = f"temperature={temperature}, fall={fall}, recalibration={recalibration}"
            raise ConfigError("model", problem, "use more than 0, and shares in 0..1")
        refuse_negative(spatial_weight=spatial_weight, entropy_weight=entropy_weight)
        self.early, self.temperature, self.fall, self.recalibration = early, temperature, fall, recalibration
        self.spatial_weight, self.entropy_weight = spatial_weight, entropy_weight

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels` (L_r), `loss_spatial` (L_spa) and `loss_entropy` (L_e)."""
        grid, prefix = self.backbone.grid(*images.shape[-2:]), self.backbone.prefix
        x = self.decoder_input(self.backbone(images, split.shown), split, grid)
        spatial, entropy, unlike = x.new_zeros(()), x.new_zeros(()), x.new_zeros(())
        share, total = 1.0, 0.0
        for number, block in enumerate(self.decoder_blocks):
            x = block(x)
            if number < self.early:
                cosines = likeness(x[:, prefix:], split.kept)
                spatial = spatial + share * cosines.square().mean()
                entropy = entropy + share * relative_entropy(cosines / self.temperature).mean()
                unlike = unlike + share * (1 - cosines.detach().mean(-1))
                total, share = total + share, share * self.fall
        rows = self.decoder_pred(self.decoder_norm(x[:, prefix + split.kept :])).float()
        target = self.compared(images, split.removed)[0]
        weights = 1 - self.recalibration + self.recalibration * recalibrated(unlike / total)
        return {
            "loss_pixels": (weights * (rows - target).square().mean(-1)).mean(),
            "loss_spatial": self.spatial_weight * spatial / total,
            "loss_entropy": self.entropy_weight * entropy / total,
        }


def likeness(tokens: Tensor, kept: int) -> Tensor:
    """Cosines between masked tokens and those that are shown: `[B, N, C]`, the shown `kept` first -> `[B, N - K, K]`
    float32."""
    unit = F.normalize(tokens.float(), dim=-1)
    return unit[:, kept:] @ unit[:, :kept].mT


def relative_entropy(logits: Tensor) -> Tensor:
    """The entropy of the softmax over the last axis, 0 to 1: against that of equal shares. `[..., K]` -> `[...]`."""
    if logits.shape[-1] == 1:
        return torch.zeros_like(logits[..., 0])
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1) / math.log(logits.shape[-1])


def recalibrated(unlike: Tensor) -> Tensor:
    """Weights of the hidden patches, `[B, n]` -> `[B, n]`, of mean 1 in each image: the more unlike, the more."""
    return unlike.softmax(-1) * unlike.shape[-1]
