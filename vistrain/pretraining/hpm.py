"""HPM: Hard Patches Mining for Masked Image Modeling (arXiv 2304.05919).

A second decoder predicts how badly the first one reconstructs each patch; an average of the network predicts that of
the whole image before each step, and what it finds hard is hidden, more and more as training goes on. Written from the
paper; names of weights are those of Haochen-Wang409/HPM (Apache-2.0).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.averaged import AveragedTeacher
from vistrain.pretraining.mae import MAE, MAE_NAMES
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import start_linear
from vistrain.pretraining.teachers import TeacherNames
from vistrain.pretraining.token_masks import Masking, TokenSplit, by_noise


class HPM(MAE):
    """MAE that hides what is hard.

    Args:
        guided_steps: optimizer steps of the whole run, over which the hard share of what is hidden rises to
            `hardest`.
        hardest: that share at the end of the run.
        relative: learn which of two patches is harder; else how hard each is, of mean 0 and variance 1 in an image.
        decay, final_decay: of the average, at the start and after `decay_steps`.
        decay_steps: optimizer steps over which it rises (100 epochs in the paper).
        backbone, masking, base: see `MAE`; the masking decides how many patches are hidden, and its own masks are those
            of evaluations.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        backbone: PatchEncoder,
        masking: Masking | None = None,
        *,
        guided_steps: int = 62500,
        hardest: float = 0.5,
        relative: bool = True,
        decay: float = 0.999,
        final_decay: float = 0.9999,
        decay_steps: int = 31250,
        **base: Any,
    ) -> None:
        super().__init__(backbone, masking, **base)
        if min(guided_steps, decay_steps) < 1 or not 0 <= hardest <= 1 or not 0 <= decay <= final_decay <= 1:
            problem = f"guided_steps={guided_steps}, decay_steps={decay_steps}, hardest={hardest}, decay={decay}"
            raise ConfigError("model", problem, "steps are 1 or more, the others in 0..1")
        self.guided_steps, self.hardest, self.relative = guided_steps, hardest, relative
        self.decay, self.final_decay, self.decay_steps = decay, final_decay, decay_steps
        self.decoder_blocks_losspred = copy.deepcopy(self.decoder_blocks).apply(start_linear)
        self.decoder_norm_losspred = nn.LayerNorm(self.decoder_pred.in_features, eps=1e-6)
        self.decoder_pred_losspred = nn.Linear(self.decoder_pred.in_features, self.decoder_pred.out_features)
        self.decoder_pred_losspred.apply(start_linear)
        teacher = copy.deepcopy(self)
        del teacher.decoder_blocks, teacher.decoder_norm, teacher.decoder_pred
        self.teacher = AveragedTeacher(teacher)
        self.key_maps = (TeacherNames(MAE_NAMES, tuple(teacher.state_dict())),)

    def hardness(self, latent: Tensor, split: TokenSplit, grid: tuple[int, int]) -> Tensor:
        """The predicted loss of each patch, `[B, N]`, in the order of `split`; arguments as of `decode`."""
        found = self.decode(latent, split, grid, self.decoder_blocks_losspred)
        rows: Tensor = self.decoder_pred_losspred(self.decoder_norm_losspred(found))
        return rows.mean(-1)

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels` as MAE's, and `loss_order`, see `order_loss`; of what the teacher has hidden."""
        return self.losses_of(images, self.hide_hard(images, split))

    def losses_of(self, images: Tensor, split: TokenSplit) -> dict[str, Tensor]:
        """See `learn`, with the mask as it is."""
        grid = self.backbone.grid(*images.shape[-2:])
        latent = self.backbone(images, split.shown)
        rows = self.pixel_rows(latent, split, grid)[:, split.kept :]
        target = self.compared(images, split.removed)[0]
        losses = (rows.float() - target).square().mean(-1)
        predicted = self.hardness(latent, split, grid)[:, split.kept :].float()
        learn = order_loss if self.relative else value_loss
        return {"loss_pixels": losses.mean(), "loss_order": learn(predicted, losses.detach())}

    @torch.no_grad()
    def hide_hard(self, images: Tensor, split: TokenSplit) -> TokenSplit:
        """Another split of the same sizes, of which as many hidden patches are the hardest as the step asks for."""
        grid = self.backbone.grid(*images.shape[-2:])
        hidden = grid[0] * grid[1] - split.kept
        share = self.hardest * min((int(self.teacher.steps) + 1) / self.guided_steps, 1.0)
        whole = TokenSplit(
            torch.arange(grid[0] * grid[1], device=images.device).expand(len(images), -1), grid[0] * grid[1]
        )
        teacher: HPM = self.teacher.network  # type: ignore[assignment]
        found = teacher.hardness(teacher.backbone(images), whole, grid)
        return TokenSplit(hard_order(found, int(hidden * share), torch.rand_like(found)), split.kept)

    def on_step_end(self, step: int) -> None:
        """Let the teacher follow."""
        progress = min(step / self.decay_steps, 1.0)
        self.teacher.follow(self, self.decay + (self.final_decay - self.decay) * progress, step)


def hard_order(hardness: Tensor, count: int, noise: Tensor) -> Tensor:
    """An order of patches whose last `count` are the hardest, the others by noise: `[B, N]` -> `[B, N]` int64."""
    if count <= 0:
        return by_noise(noise)
    hardest = hardness.argsort(1)[:, -count:]
    return by_noise(noise.scatter(1, hardest, 2.0))  # above all noise


def order_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """Cross-entropy of which of two patches of an image is harder, over all ordered pairs that differ (equation 5).

    Args:
        predicted, losses: `[B, n]`.
    """
    harder = losses[:, None] > losses[:, :, None]
    easier = losses[:, None] < losses[:, :, None]
    chance = (predicted[:, None] - predicted[:, :, None]).sigmoid()
    found = harder * (chance + 1e-6).log() + easier * (1 - chance + 1e-6).log()
    return -found.sum() / (harder | easier).sum().clamp(min=1)


def value_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """Mean squared error to losses of mean 0 and variance 1 in each image; arguments as of `order_loss`."""
    wanted = (losses - losses.mean(1, keepdim=True)) / (losses.var(1, keepdim=True) + 1e-6).sqrt()
    return F.mse_loss(predicted, wanted)
