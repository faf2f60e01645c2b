"""MiniLM: deep self-attention distillation between any two ViTs (arXiv 2002.10957, sections 3.1 and 3.2).

The student's last block learns the teacher's last attention, and how the teacher's values relate to one another.
Written from the paper; microsoft/unilm (MIT) has no code for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer
from vistrain.pretraining.teachers import FrozenViT, attention_parts, refuse_other_grid
from vistrain.pretraining.token_masks import TokenSplit

Parts = tuple[Tensor, Tensor, Tensor]


class MiniLM(Pretrainer):
    """Distillation of the last attention; both see the whole image.

    Args:
        backbone: the student, of any width and depth.
        teacher: a trained ViT.
        relation_heads: into how many heads both are split anew, as in MiniLMv2 (arXiv 2012.15828), where they have not
            as many; None: they have.

    Raises:
        ConfigError: their heads, or tokens, do not fit.
    """

    def __init__(self, backbone: PatchEncoder, teacher: FrozenViT, relation_heads: int | None = None) -> None:
        super().__init__(backbone)
        refuse_other_grid(teacher.network, backbone)
        heads = tuple(int(net.body.blocks[-1].attn.num_heads) for net in (backbone, teacher.network))
        if relation_heads is None and heads[0] != heads[1]:
            problem = f"the student has {heads[0]} heads, {teacher.network.name} has {heads[1]}"
            raise ConfigError("model.relation_heads", problem, "give a number that divides both widths")
        if relation_heads is not None and (
            relation_heads < 1 or backbone.dim % relation_heads or teacher.dim % relation_heads
        ):
            problem = f"{relation_heads} does not divide widths of {backbone.dim} and {teacher.dim}"
            raise ConfigError("model.relation_heads", problem, "give a number that does")
        # Nothing after the last attention is compared.
        last = backbone.body.blocks[-1]
        for part in (
            backbone.body.norm,
            backbone.body.fc_norm,
            last.attn.proj,
            last.norm2,
            last.mlp,
            last.ls1,
            last.ls2,
        ):
            part.requires_grad_(False)
        self.teacher, self.relation_heads = teacher, relation_heads

    def compare(self, images: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Both losses of each image, `[B]`: of attention, and of the relations of values."""
        own = last_parts(self.backbone, images)
        with torch.no_grad():
            theirs = last_parts(
                self.teacher.network, self.teacher.prepared(batch, self.backbone.grid(*images.shape[-2:]))
            )
        if self.relation_heads is not None:
            own, theirs = split_anew(own, self.relation_heads), split_anew(theirs, self.relation_heads)
        return relation_loss(theirs[0], theirs[1], own[0], own[1]), relation_loss(theirs[2], theirs[2], own[2], own[2])

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_attention`, `loss_values`."""
        return {name: value.mean() for name, value in self.judge(images, split, batch)[0].items()}

    def judge(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], None]:
        """See `Pretrainer`; no pixels, and nothing is hidden."""
        attention, values = self.compare(images, batch)
        return {"loss_attention": attention, "loss_values": values}, None


def last_parts(encoder: PatchEncoder, images: Tensor) -> Parts:
    """Queries, keys and values of the last block, each `[B, heads, n, d]`."""
    x = encoder.embed(images)
    for block in encoder.body.blocks[:-1]:
        x = block(x)
    return attention_parts(encoder.body.blocks[-1], x)


def split_anew(parts: Parts, heads: int) -> Parts:
    """The same channels in another number of heads."""
    q, k, v = (part.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    return q, k, v


def relation_loss(teacher: Tensor, teacher_keys: Tensor, student: Tensor, student_keys: Tensor) -> Tensor:
    """KL divergence of the teacher's relations to the student's, the mean over heads and tokens, `[B]`.

    Args:
        teacher, teacher_keys: `[B, heads, n, d]`; relations are softmax(teacher @ teacher_keys^T / sqrt(d)).
        student, student_keys: the same of another d.
    """
    taught = (teacher.float() @ teacher_keys.float().mT * teacher.shape[-1] ** -0.5).log_softmax(-1)
    said = (student.float() @ student_keys.float().mT * student.shape[-1] ** -0.5).log_softmax(-1)
    return F.kl_div(said, taught, reduction="none", log_target=True).sum(-1).mean((1, 2))
