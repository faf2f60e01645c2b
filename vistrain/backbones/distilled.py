"""Backbones with a second classifier, which learns from a teacher.

DeiT, arXiv 2012.12877, section 4. Authors' code: facebookresearch/deit, Apache-2.0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones.staged import StagedBackbone, initialise


class DistilledBackbone(StagedBackbone):
    """A backbone that may have a second classifier beside the first; evaluated, it answers with their mean.

    Args:
        stem, stages, norm: see `StagedBackbone`.
        distillation: whether it has. While it trains it gives the mean too, unless `set_distilled_training` asks for
            both answers.
        base: see `StagedBackbone`.

    Attributes:
        head_dist: the second classifier; the identity if there is none.
        norm_dist: of the pooled vector before it, in models whose norm follows pooling.
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], norm: nn.Module, *, distillation: bool = False, **base: Any
    ) -> None:
        self.distillation, self.distilled_training = distillation, False
        super().__init__(stem, stages, norm, **base)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Give two answers while training, of the classifier and of the one that a teacher teaches."""
        self.distilled_training = enable

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers, as many as there are; see `StagedBackbone`."""
        super().reset_classifier(num_classes, global_pool)
        has = self.distillation and num_classes > 0
        self.norm_dist = copy.deepcopy(self.norm) if has and self.pool_first else nn.Identity()
        second = nn.Linear(self.num_features, num_classes) if has else nn.Identity()
        self.head_dist = initialise(second).to(next(self.stem.parameters()))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """The last map `[B, C, h, w]` -> logits `[B, num_classes]`, or two of them (see `set_distilled_training`)."""
        if pre_logits or not self.distillation or not self.num_classes:
            return super().forward_head(x, pre_logits)
        pooled = self.global_pool(x)
        first = self.head(self.head_drop(self.norm(pooled) if self.pool_first else pooled))
        second = self.head_dist(self.head_drop(self.norm_dist(pooled)))
        return (first, second) if self.training and self.distilled_training else (first + second) / 2


def average_heads(state: dict[str, Tensor], second: str = "head_dist") -> dict[str, Tensor]:
    """Weights of two linear classifiers of one vector as those of one, which answers with their mean.

    Args:
        state: under our names, `head` and the second classifier among them.
        second: name of the latter.
    """
    one = {key: value for key, value in state.items() if not key.startswith(f"{second}.")}
    with torch.no_grad():
        return one | {k: (one[k] + state[f"{second}.{k[5:]}"]) / 2 for k in one if k.startswith("head.")}
