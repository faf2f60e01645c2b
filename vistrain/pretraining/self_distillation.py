"""Self-distillation for further pre-training (arXiv 2210.02871).

MAE goes on on a small set and overfits; so the result of a first run teaches a second one that starts from the weights
that the first has started from. Written from the paper and from the description of seanie12/self-distillation (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vistrain.layers.loss_weights import refuse_negative
from vistrain.pretraining.mae import MAE
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.teachers import FrozenViT, refuse_other_grid, refuse_other_width
from vistrain.pretraining.token_masks import Masking, TokenSplit


class SelfDistillation(MAE):
    """MAE, and the distance to a teacher's class token of the whole image.

    Args:
        teacher: `pretrained` is the first run's checkpoint; of the same width.
        weight: of the distance.
        backbone, masking, base: see `MAE`.

    Raises:
        ConfigError: student and teacher do not go together.
    """

    def __init__(
        self,
        backbone: PatchEncoder,
        teacher: FrozenViT,
        masking: Masking | None = None,
        *,
        weight: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, masking, **base)
        refuse_other_width(teacher.dim, backbone.dim)
        refuse_other_grid(teacher.network, backbone)
        refuse_negative(weight=weight)
        self.teacher, self.weight = teacher, weight
        self.key_maps = ()  # of a student alone; it is model.backbone.pretrained's to read these

    def distances(self, images: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The squared distance of class tokens (of means over patches, where there are none), `[B]`."""
        grid = self.backbone.grid(*images.shape[-2:])
        theirs = self.teacher.network(self.teacher.prepared(batch, grid))
        own = self.backbone(images)
        said, taught = (x[:, 0] if self.backbone.prefix else x.mean(1) for x in (own, theirs))
        return (said.float() - taught.float()).square().sum(1)

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels` as MAE's, and `loss_teacher` (equation 5)."""
        return {
            "loss_pixels": self.patch_losses(images, split).mean(),
            "loss_teacher": self.weight * self.distances(images, batch).mean(),
        }
