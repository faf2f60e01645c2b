"""CAE: Context Autoencoder for Self-Supervised Representation Learning (arXiv 2202.03026).

The encoder reads what is shown; a regressor predicts from it what the encoder would say of the hidden patches, and a
decoder their visual words. Written from the paper and from the description of Atten4Vis/CAE (licence is not stated), of
whose code only the names of weights are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_negative
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer
from vistrain.pretraining.token_blocks import NORM, BiasedBlock, BiasedCrossAttention
from vistrain.pretraining.token_masks import BlockMasking, Masking, TokenSplit, take
from vistrain.pretraining.visual_words import RandomWords, VisualWords

# Its second encoder is always a copy of the first: files have both.
NAMES = KeyMap(
    name="CAE",
    marker=r"^regresser\.",
    rules=((r"^encoder\.", "backbone.body."),),
    drop=(r"^alignment_encoder\.",),
)


class RegressorBlock(nn.Module):
    """Cross-attention from masked tokens to all tokens; positions are added to queries and keys alone.

    Args:
        dim, heads, mlp_ratio, scale: see `BiasedBlock`.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, scale: float) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v, self.norm2_cross = (NORM(dim) for _ in range(4))
        self.cross_attn, self.mlp_cross = BiasedCrossAttention(dim, heads), Mlp(dim, int(dim * mlp_ratio))
        self.gamma_1_cross = nn.Parameter(torch.full((dim,), scale))
        self.gamma_2_cross = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor, memory: Tensor, where: Tensor, where_memory: Tensor) -> Tensor:
        """Masked tokens `[B, n, D]`, all tokens `[B, m, D]`, and the positions of both -> `[B, n, D]`."""
        keys, values = self.norm1_k(memory + where_memory), self.norm1_v(memory)
        x = x + self.gamma_1_cross * self.cross_attn(self.norm1_q(x + where), keys, values)
        x = self.norm2_cross(x)  # the shortcut of the next part passes through the norm, too
        return x + self.gamma_2_cross * self.mlp_cross(x)


class CAE(Pretrainer):
    """The context autoencoder.

    Args:
        backbone: a BEiT with a table of positions (`positions: fixed_rows`).
        masking: 98 of 196 patches in blocks if None.
        words: what the decoder predicts; see `VisualWords`.
        regressor_depth, decoder_depth, heads, mlp_ratio, scale: of their blocks.
        align_weight: of the second loss.
    """

    key_maps = (NAMES,)

    def __init__(
        self,
        backbone: PatchEncoder,
        masking: Masking | None = None,
        words: VisualWords | None = None,
        regressor_depth: int = 4,
        decoder_depth: int = 4,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        scale: float = 0.1,
        align_weight: float = 2.0,
    ) -> None:
        super().__init__(backbone, masking or BlockMasking(0.5))
        if backbone.prefix != 1:
            raise ConfigError("backbone", f"has {backbone.prefix} tokens before its patches", "CAE has one class token")
        dim = backbone.dim
        refuse_negative(align_weight=align_weight)
        self.align_weight = align_weight
        self.words = words or RandomWords(patch=backbone.patch, channels=backbone.channels)
        table = backbone.positions(backbone.grid(*backbone.size)).detach().clone()
        self.rd_pos_embed = nn.Parameter(table, requires_grad=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        shape = (dim, heads, mlp_ratio, scale)
        self.regresser = nn.ModuleDict({
            "regressor_blocks": nn.ModuleList(RegressorBlock(*shape) for _ in range(regressor_depth)),
            "norm": NORM(dim),
        })  # fmt: skip
        self.decoder = nn.ModuleDict({
            "decoder_blocks": nn.ModuleList(BiasedBlock(*shape) for _ in range(decoder_depth)),
            "norm": NORM(dim),
            "head": nn.Linear(dim, self.words.count),
        })  # fmt: skip
        for part in (self.regresser, self.decoder):
            part.apply(_start)

    def complete(self, images: Tensor, split: TokenSplit) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the words of the hidden patches `[B, n, K]`, and their tokens as regressed and as the encoder has
        them, `[B, n, D]`; in the order of `split.removed`."""
        grid = self.backbone.grid(*images.shape[-2:])
        table = self.rd_pos_embed if grid == self.backbone.grid(*self.backbone.size) else self.backbone.positions(grid)
        shown = self.backbone(images, split.shown)[:, 1:]
        with torch.no_grad():
            target = self.backbone(images, split.removed)[:, 1:]
        here, there = take(table[:, 1:], split.shown), take(table[:, 1:], split.removed)
        where, x = torch.cat((here, there), 1), self.mask_token.expand_as(target).to(shown.dtype)
        for block in cast(nn.ModuleList, self.regresser["regressor_blocks"]):
            x = block(x, torch.cat((shown, x), 1), there, where)
        regressed = self.regresser["norm"](x)
        x = regressed + there
        for block in cast(nn.ModuleList, self.decoder["decoder_blocks"]):
            x = block(x)
        return self.decoder["head"](self.decoder["norm"](x)), regressed, target

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_words`: cross-entropy; `loss_align`: squared distance of regressed tokens."""
        return {name: value.mean() for name, value in self.judge(images, split, batch)[0].items()}

    def judge(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], None]:
        """See `Pretrainer`; no pixels."""
        logits, regressed, target = self.complete(images, split)
        words = self.words(images).gather(1, split.removed)
        entropy = F.cross_entropy(logits.float().mT, words, reduction="none").mean(1)
        distance = (regressed.float() - target.float()).square().mean((1, 2))
        return {"loss_words": entropy, "loss_align": self.align_weight * distance}, None


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
