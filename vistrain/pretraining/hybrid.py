"""Hybrid Distillation: Connecting Masked Autoencoders with Contrastive Learners (arXiv 2306.15876).

One teacher was pre-trained by masks, the other with labels or by contrast: the first teaches how tokens relate, the
second what they are. The authors' code is not published (no licence); the abstract pins down the three parts and not
their formulas, which are ours here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.averaged import AveragedTeacher
from vistrain.layers.loss_weights import refuse_all_zero
from vistrain.pretraining.minilm import last_parts, relation_loss, split_anew
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer
from vistrain.pretraining.teachers import FrozenViT, attention_parts, refuse_other_grid
from vistrain.pretraining.token_masks import Masking, RandomMasking, TokenSplit, take


class HybridDistillation(Pretrainer):
    """Relations from one teacher, features from another, and fewer and fewer redundant tokens.

    Interpretation: relations are those of the values in the last block, compared as in MiniLM; features are compared by
    the smooth L1 distance of tokens of mean 0 and variance 1 through a linear layer; a token is redundant as far as the
    second teacher's token of it is like the mean of all (cosine); the share that is left out rises linearly.

    Args:
        backbone: the student.
        relation_teacher: pre-trained by masks.
        feature_teacher: pre-trained with labels, or by contrast.
        masking: its ratio is the share that is left out at the end; 30 % if None.
        masking_steps: optimizer steps over which the share rises.
        relation_weight, feature_weight: of both losses; interpretation: 1 each.
        relation_heads: see `MiniLM`; interpretation: 4.

    Raises:
        ConfigError: teachers and student do not go together, or a number is out of its range.
    """

    def __init__(
        self,
        backbone: PatchEncoder,
        relation_teacher: FrozenViT,
        feature_teacher: FrozenViT,
        masking: Masking | None = None,
        masking_steps: int = 100000,
        relation_weight: float = 1.0,
        feature_weight: float = 1.0,
        relation_heads: int = 4,
    ) -> None:
        super().__init__(backbone, masking or RandomMasking(0.3))
        for teacher in (relation_teacher, feature_teacher):
            refuse_other_grid(teacher.network, backbone)
        if masking_steps < 1:
            raise ConfigError("model.masking_steps", f"{masking_steps} is too small", "use 1 or more")
        widths = (backbone.dim, relation_teacher.dim)
        if relation_heads < 1 or any(width % relation_heads for width in widths):
            problem = f"{relation_heads} does not divide widths of {widths[0]} and {widths[1]}"
            raise ConfigError("model.relation_heads", problem, "give a number that does")
        self.relation_teacher, self.feature_teacher = relation_teacher, feature_teacher
        self.masking_steps, self.relation_heads = masking_steps, relation_heads
        refuse_all_zero(relation_weight=relation_weight, feature_weight=feature_weight)
        self.relation_weight, self.feature_weight = relation_weight, feature_weight
        self.feature_head = nn.Linear(backbone.dim, feature_teacher.dim)
        self.progress = AveragedTeacher(nn.Identity())  # counts steps, so that a resumed run goes on exactly

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_relations`, `loss_features`."""
        return {name: value.mean() for name, value in self.judge(images, split, batch)[0].items()}

    def judge(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], None]:
        """See `Pretrainer`; no pixels. What is shown depends on the step and on the second teacher, not on the mask."""
        grid, prefix = self.backbone.grid(*images.shape[-2:]), self.backbone.prefix
        with torch.no_grad():
            features = self.feature_teacher.network(self.feature_teacher.prepared(batch, grid))
            chosen = self.least_redundant(features[:, prefix:])
            theirs = last_parts(self.relation_teacher.network, self.relation_teacher.prepared(batch, grid))
            values = split_anew(theirs, self.relation_heads)[2]
            index = torch.cat((torch.arange(prefix, device=chosen.device).expand(len(chosen), -1), chosen + prefix), 1)
            values = values.gather(2, index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1]))
            taught = F.layer_norm(take(features, index), features.shape[-1:])
        x = self.backbone.embed(images, chosen)
        own = None
        for number, block in enumerate(self.backbone.body.blocks):
            if number == len(self.backbone.body.blocks) - 1:
                own = split_anew(attention_parts(block, x), self.relation_heads)[2]
            x = block(x)
        assert own is not None
        relations = relation_loss(values, values, own, own)
        distance = F.smooth_l1_loss(self.feature_head(self.backbone.norm(x)).float(), taught, reduction="none")
        return {
            "loss_relations": self.relation_weight * relations,
            "loss_features": self.feature_weight * distance.mean((1, 2)),
        }, None

    def least_redundant(self, tokens: Tensor) -> Tensor:
        """The patches that are shown at this step, `[B, K]`, of a teacher's tokens `[B, N, D]`."""
        count = tokens.shape[1]
        share = self.masking.ratio * min(int(self.progress.steps) / self.masking_steps, 1.0)
        likeness = F.cosine_similarity(tokens, tokens.mean(1, keepdim=True), dim=-1)
        return likeness.argsort(1)[:, : max(count - int(count * share), 1)]

    def on_step_end(self, step: int) -> None:
        """Count."""
        self.progress.steps.fill_(step)
