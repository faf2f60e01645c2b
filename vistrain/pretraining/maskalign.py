"""MaskAlign: Stare at What You See, masked image modeling without reconstruction (arXiv 2211.08887).

The student reads the patches that a trained teacher attends to, and learns the teacher's tokens of these patches; a
learned mixture of its blocks is compared with each of the teacher's. Written from the paper and from the description of
OpenDriveLab/maskalign (Apache-2.0), of whose code only the names of weights are here.

Where a teacher's images are of another size (224 pixels in patches of 16 beside 196 in patches of 14), they are resized
with antialiasing here, and so is its table of positions; the authors resize both without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer, start_linear
from vistrain.pretraining.teachers import FrozenViT, refuse_other_grid
from vistrain.pretraining.token_masks import Masking, RandomMasking, TokenSplit, take

NAMES = KeyMap(
    name="MaskAlign",
    marker=r"^distill_heads\.0\.",
    rules=((r"^(cls_token$|pos_embed$|patch_embed\.|blocks\.|norm\.)", r"backbone.body.\1"),),
)


class MaskAlign(Pretrainer):
    """Alignment with a teacher, without a decoder.

    Args:
        teacher: a trained ViT; it may have another width, depth and patch.
        layers: the topmost blocks of the teacher that are learned, K.
        backbone, masking: see `Pretrainer`; 70 % are hidden if None. Training draws which patches are shown by the
            teacher's attention, whatever the masking.

    Raises:
        ConfigError: student and teacher do not go together.
    """

    def __init__(
        self, backbone: PatchEncoder, teacher: FrozenViT, masking: Masking | None = None, layers: int = 5
    ) -> None:
        super().__init__(backbone, masking or RandomMasking(0.7))
        depth = teacher.depth
        refuse_other_grid(teacher.network, backbone)
        if not 1 <= layers <= depth:
            problem = f"{layers} of the {depth} blocks of {teacher.network.name}"
            raise ConfigError("model.layers", problem, f"use 1 to {depth}")
        backbone.body.blocks.apply(start_linear)
        # What is learned is taken before the final norm, which no loss reaches.
        backbone.body.norm.requires_grad_(False)
        self.top = layers
        self.distill_weights = nn.Parameter(first_mixture(depth, len(backbone.body.blocks)))
        self.distill_heads = nn.ModuleList(nn.Linear(backbone.dim, teacher.dim) for _ in range(depth)).apply(
            start_linear
        )
        self.teacher = teacher
        self.key_maps = (NAMES,)

    def student(self, images: Tensor, shown: Tensor) -> list[Tensor]:
        """What each head says, `[B, P + K, D']` of the teacher's width D'."""
        blocks = torch.stack(self.backbone.layers(images, shown))
        mixed = torch.einsum("kl,l...->k...", self.distill_weights.to(blocks.dtype), blocks)
        return [head(x) for head, x in zip(self.distill_heads, mixed, strict=True)]

    def align(self, said: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
        """The loss of each image `[B]`: twice the smooth L1 distance, the mean over the topmost K layers."""
        pairs = list(zip(said, taught, strict=True))[-self.top :]
        errors = [2 * F.smooth_l1_loss(a.float(), b.float(), reduction="none").mean((1, 2)) for a, b in pairs]
        return torch.stack(errors).sum(0) / self.top

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_align`, with patches drawn in proportion to the attention of the teacher's class token."""
        hidden, attention = self._ask(images, batch)
        order = torch.multinomial(importance(attention, self.backbone.prefix), split.order.shape[1])
        chosen = TokenSplit(order, split.kept)
        return {"loss_align": self.align(self.student(images, chosen.shown), self.taught(hidden, chosen.shown)).mean()}

    def judge(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], None]:
        """See `Pretrainer`; no pixels."""
        hidden, _ = self._ask(images, batch)
        return {"loss_align": self.align(self.student(images, split.shown), self.taught(hidden, split.shown))}, None

    def taught(self, hidden: Sequence[Tensor], shown: Tensor) -> list[Tensor]:
        """The teacher's tokens `[B, P + N, D']` of what is shown, each of mean 0 and variance 1."""
        prefix = self.backbone.prefix
        parts = [torch.cat((x[:, :prefix], take(x[:, prefix:], shown)), 1) for x in hidden]
        return [F.layer_norm(x, x.shape[-1:]) for x in parts]

    def no_weight_decay(self) -> set[str]:
        """See `Network`: the mixture is not decayed either."""
        return super().no_weight_decay() | {"distill_weights"}

    def _ask(self, images: Tensor, batch: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
        return self.teacher.hidden(self.teacher.prepared(batch, self.backbone.grid(*images.shape[-2:])))


def first_mixture(taught: int, learning: int) -> Tensor:
    """What each of the teacher's blocks is compared with at first, `[taught, learning]`: nearly the student's block of
    the same place where both have as many, else the mean of all."""
    if taught == learning:
        return torch.eye(taught) + 0.01
    return torch.full((taught, learning), 1 / learning)


def importance(attention: Tensor, prefix: int = 1) -> Tensor:
    """How much the class token attends to each patch: `[B, heads, P + N, P + N]` -> `[B, N]`, the mean of the heads."""
    return attention[:, :, 0, prefix:].mean(1)
