"""LUT: Learning with Unmasked Tokens drives stronger vision learners (arXiv 2310.13593).

MAE on one view, and in both views what is shown of one is to say what an average of the network sees in the whole of
the other. Written from the paper and from the description of naver-ai/lut (CC BY-NC 4.0), of whose code only the names
of weights are here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.averaged import AveragedTeacher
from vistrain.layers.loss_weights import refuse_negative
from vistrain.pretraining.mae import MAE, MAE_NAMES
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.teachers import TeacherNames
from vistrain.pretraining.token_masks import Masking, TokenSplit

NAMES = replace(
    MAE_NAMES,
    name="LUT",
    rules=(*MAE_NAMES.rules, (r"^predictor\.", "context_predictor.")),
    exports=(*MAE_NAMES.exports, (r"^context_predictor\.", ("predictor.",))),
)


class LUT(MAE):
    """MAE and a broad context of the image; wants two views of each training image (`data.views: 2`).

    Args:
        head_hidden: hidden channels of head and predictor.
        context_weight: of the second loss.
        decay: of the average at the start; it rises to 1 by a cosine over `decay_steps`.
        decay_steps: optimizer steps of the whole run.
        backbone, masking, base: see `MAE`.

    Raises:
        ConfigError: a number is out of its range, or two views of different patches do not fit beside each other.
    """

    def __init__(
        self,
        backbone: PatchEncoder,
        masking: Masking | None = None,
        *,
        head_hidden: int = 4096,
        context_weight: float = 0.25,
        decay: float = 0.996,
        decay_steps: int = 500000,
        **base: Any,
    ) -> None:
        super().__init__(backbone, masking, **base)
        if not 0 <= decay <= 1 or decay_steps < 1:
            raise ConfigError("model", f"decay={decay}, decay_steps={decay_steps}", "use 0..1, and 1 or more")
        if self.masking.ratio < 0.5:
            problem = f"{self.masking.ratio} leaves too few patches for a second view of others"
            raise ConfigError("model.masking.ratio", problem, "use 0.5 or more")
        refuse_negative(context_weight=context_weight)
        self.context_weight, self.decay, self.decay_steps = context_weight, decay, decay_steps
        self.head, self.context_predictor = projector(backbone.dim, head_hidden), projector(backbone.dim, head_hidden)
        teacher = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "head": copy.deepcopy(self.head)})
        self.teacher = AveragedTeacher(teacher)
        self.key_maps = (TeacherNames(NAMES, tuple(teacher.state_dict())),)

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels` as MAE's of the first view, and `loss_context`, see `context`.

        Raises:
            ConfigError: the batch has one view.
        """
        if "views" not in batch:
            raise ConfigError("data.views", "is 1, and LUT compares two views of each image", "set data.views=2")
        other = self.normalize(batch["views"][0], batch["size"])[0]
        losses, said, taught = self.compare(images, other, split)
        context = (2 - 2 * F.cosine_similarity(said, taught, dim=1)).mean()
        return {"loss_pixels": losses.mean(), "loss_context": self.context_weight * context}

    def compare(self, images: Tensor, other: Tensor, split: TokenSplit) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of the first view's hidden patches `[B, N - K]`; what the student says of what both views show,
        and what the teacher sees in the whole of the view that each is to match, `[2 B, D]`."""
        grid, prefix, kept = self.backbone.grid(*images.shape[-2:]), self.backbone.prefix, split.kept
        latent = self.backbone(images, split.shown)
        rows = self.decoder_pred(self.decoder_norm(self.decode(latent, split, grid)[:, kept:]))
        losses = (rows.float() - self.compared(images, split.removed)[0]).square().mean(-1)
        second = self.backbone(other, split.order[:, kept : 2 * kept])  # the next ones of the same permutation
        seen = torch.cat([latent[:, prefix:].mean(1), second[:, prefix:].mean(1)])
        said = self.context_predictor(self.head(seen))
        with torch.no_grad():
            network = self.teacher.network
            whole = network["backbone"](torch.cat((other, images)))[:, prefix:].mean(1)  # type: ignore[index]
            taught = network["head"](whole)  # type: ignore[index]
        return losses, said, taught

    def on_step_end(self, step: int) -> None:
        """Let the teacher follow."""
        progress = min(step / self.decay_steps, 1.0)
        self.teacher.follow(self, 1 - (1 - self.decay) * (math.cos(math.pi * progress) + 1) / 2, step)


def projector(dim: int, hidden: int) -> nn.Sequential:
    """`[B, D]` -> `[B, D]`: a hidden layer, normalised over the batch."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim, bias=False)
    )
