"""MP3: Position Prediction as an Effective Pretraining Strategy (arXiv 2207.07611).

A ViT without positions is to say where each patch belongs; all tokens ask, a random few of them are asked. Written from
the paper; there is no official code. Which tokens are asked is drawn as in a fork of timm (arshadshk, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer, seed_of
from vistrain.pretraining.teachers import attention_parts
from vistrain.pretraining.token_masks import Masking, RandomMasking, TokenSplit


class MP3(Pretrainer):
    """Prediction of positions; images have the size that the network is built for.

    Args:
        backbone: a ViT; its table of positions is set to zero, and learns after it is handed over.
        masking: its ratio is the share of the tokens that are not asked.
        resample: whether each block asks others; whether the paper's do is not known, the fork's do.
    """

    def __init__(self, backbone: PatchEncoder, masking: Masking | None = None, resample: bool = True) -> None:
        super().__init__(backbone, masking or RandomMasking(0.75))
        self.resample = resample
        with torch.no_grad():
            backbone.body.pos_embed.zero_()
        backbone.body.pos_embed.requires_grad_(False)
        grid = backbone.grid(*backbone.size)
        self.position_head = nn.Linear(backbone.dim, grid[0] * grid[1])

    def logits(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Of the positions of each patch, `[B, N, N]`."""
        x = self.backbone.embed(images)
        kept = self.masking.kept(x.shape[1])
        asked: Tensor | None = None
        for block in self.backbone.body.blocks:
            if asked is None or self.resample:
                device = None if generator is not None else x.device
                asked = asked_of(torch.randn(x.shape[:2], generator=generator, device=device), kept).to(x.device)
            x = block_asking(block, x, asked)
        found: Tensor = self.position_head(self.backbone.norm(x)[:, self.backbone.prefix :])
        return found

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_position`: cross-entropy over all patches."""
        return {"loss_position": self._entropy(self.logits(images)).mean()}

    def judge(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], None]:
        """See `Pretrainer`; no pixels."""
        seeds = [torch.Generator().manual_seed(seed_of(name)) for name in batch["id"]]
        logits = torch.cat([self.logits(images[i : i + 1], seed) for i, seed in enumerate(seeds)])
        return {"loss_position": self._entropy(logits)}, None

    def check_size(self, *size: int) -> None:
        """Refuse all sizes but the one that there are positions for."""
        super().check_size(*size)
        if tuple(size) != self.backbone.size:
            (h, w), (height, width) = self.backbone.size, size
            problem = f"{height}x{width}, and there are positions for {h}x{w}"
            raise ConfigError("data.image_size", problem, "set model.backbone.args.img_size to the same")

    def _entropy(self, logits: Tensor) -> Tensor:
        truth = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        return F.cross_entropy(logits.float().mT, truth, reduction="none").mean(1)


def asked_of(noise: Tensor, kept: int) -> Tensor:
    """Which tokens are asked: noise `[B, n]` -> `[B, kept]` int64. The order of the noise is applied to itself, as in
    the fork; a random set all the same."""
    order = noise.argsort(1)
    return order.gather(1, order[:, :kept])


def block_asking(block: Any, x: Tensor, asked: Tensor) -> Tensor:
    """A block of timm's ViT whose keys and values are those of the tokens `asked` `[B, K]` alone: `[B, n, D]` twice."""
    q, k, v = attention_parts(block, x)
    index = asked[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[-1])
    attended = F.scaled_dot_product_attention(q, k.gather(2, index), v.gather(2, index)).transpose(1, 2).flatten(2)
    x = x + block.drop_path1(block.ls1(block.attn.proj_drop(block.attn.proj(attended))))
    changed: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return changed
