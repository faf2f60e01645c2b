"""MAE: Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377).

An encoder reads the patches that are shown; a small decoder reads its tokens and one learned token for each patch that
is not, and predicts the pixels of these (section 3). Written from the paper; names of weights are those of
facebookresearch/mae, CC BY-NC 4.0, of which nothing else is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.layers.position import grid_table
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.patches import normalised, patchify, unpatchify
from vistrain.pretraining.pretrainer import Pretrainer, start_linear
from vistrain.pretraining.token_blocks import refuse_uneven_heads
from vistrain.pretraining.token_masks import Masking, TokenSplit, take

MAE_NAMES = KeyMap(
    name="MAE",
    marker=r"^decoder_blocks\.0\.norm1\.",
    rules=((r"^(cls_token$|pos_embed$|patch_embed\.|blocks\.|norm\.)", r"backbone.body.\1"),),
    exports=((r"^backbone\.body\.", ("",)),),
)


class MAE(Pretrainer):
    """The masked autoencoder.

    Args:
        decoder_dim: C of the decoder's tokens.
        decoder_depth: its blocks.
        decoder_heads: heads of each.
        mlp_ratio: how many times wider its hidden layers are.
        norm_pix: compare with patches of mean 0 and variance 1 instead of pixels.
        backbone, masking: see `Pretrainer`.

    Raises:
        ConfigError: the decoder has no block.
    """

    key_maps: Sequence[KeyMap] = (MAE_NAMES,)

    def __init__(
        self,
        backbone: PatchEncoder,
        masking: Masking | None = None,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_pix: bool = True,
    ) -> None:
        super().__init__(backbone, masking)
        if decoder_depth < 1:
            raise ConfigError("model.decoder_depth", f"{decoder_depth} is too small", "use 1 or more")
        if decoder_dim < 1 or decoder_dim % 4:
            raise ConfigError(
                "model.decoder_dim", f"{decoder_dim} is no multiple of 4", "its positions are sines of it"
            )
        self.norm_pix = norm_pix
        if backbone.starts_fresh:
            backbone.body.blocks.apply(start_linear)
            nn.init.xavier_uniform_(backbone.body.patch_embed.proj.weight.flatten(1))
            if backbone.body.cls_token is not None:
                nn.init.normal_(backbone.body.cls_token, std=0.02)
        p, q = backbone.patch
        self.decoder_embed = nn.Linear(backbone.dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        table = grid_table(backbone.grid(*backbone.size), decoder_dim)
        table = torch.cat((table.new_zeros(backbone.prefix, decoder_dim), table))
        self.decoder_pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.decoder_blocks = self.decoder_of(decoder_depth, decoder_heads, mlp_ratio)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, p * q * backbone.channels)
        for part in (self.decoder_embed, self.decoder_pred):
            part.apply(start_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def decoder_of(self, depth: int, heads: int, mlp_ratio: float) -> nn.ModuleList:
        """Fresh blocks of a decoder."""
        norm, dim = partial(nn.LayerNorm, eps=1e-6), self.mask_token.shape[-1]
        refuse_uneven_heads(dim, heads)
        blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        return blocks.apply(start_linear)

    def decode(
        self, latent: Tensor, split: TokenSplit, grid: tuple[int, int], blocks: nn.ModuleList | None = None
    ) -> Tensor:
        """Tokens of all patches after the decoder's blocks, in the order of `split`; blocks do not mind the order.

        Args:
            latent: `[B, P + K, D]`, of the encoder.
            split: what it was shown.
            grid: rows and columns of patches.
            blocks: of the decoder; its own if None.

        Returns:
            `[B, N, C]`, those that were shown first.
        """
        x = self.decoder_input(latent, split, grid)
        for block in self.decoder_blocks if blocks is None else blocks:
            x = block(x)
        return x[:, self.backbone.prefix :]

    def decoder_input(self, latent: Tensor, split: TokenSplit, grid: tuple[int, int]) -> Tensor:
        """What the decoder's first block reads, `[B, P + N, C]`; arguments as of `decode`."""
        x = self.decoder_embed(latent)
        prefix, hidden = self.backbone.prefix, split.order.shape[1] - split.kept
        x = torch.cat((x, self.mask_token.to(x.dtype).expand(len(x), hidden, -1)), 1)
        table = self.decoder_positions(grid)
        where = torch.cat((table[:, :prefix].expand(len(x), -1, -1), take(table[:, prefix:], split.order)), 1)
        return x + where

    def decoder_positions(self, grid: tuple[int, int]) -> Tensor:
        """The decoder's table `[1, P + N, C]` for a grid of patches."""
        own, prefix = self.decoder_pos_embed, self.backbone.prefix
        if grid == self.backbone.grid(*self.backbone.size):
            return own
        table = grid_table(grid, own.shape[-1]).to(own.device, own.dtype)
        return torch.cat((own[:, :prefix], table[None]), 1)

    def pixel_rows(self, latent: Tensor, split: TokenSplit, grid: tuple[int, int]) -> Tensor:
        """`[B, N, p * q * C]`, in the order of `split`; arguments as of `decode`."""
        rows: Tensor = self.decoder_pred(self.decoder_norm(self.decode(latent, split, grid)))
        return rows

    def compared(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What predictions of the patches `index` `[B, n]` are compared with, `[B, n, p * q * C]`, and what turns it
        back into pixels: means and deviations."""
        rows = take(patchify(images, self.backbone.patch), index)
        return (
            normalised(rows)
            if self.norm_pix
            else (rows, torch.zeros_like(rows[..., :1]), torch.ones_like(rows[..., :1]))
        )

    def patch_losses(self, images: Tensor, split: TokenSplit) -> Tensor:
        """The mean squared errors of the hidden patches, `[B, N - K]`, in the order of `split.removed`."""
        grid = self.backbone.grid(*images.shape[-2:])
        x = self.decoder_input(self.backbone(images, split.shown), split, grid)
        *first, last = self.decoder_blocks
        for block in first:
            x = block(x)
        rows = self.decoder_pred(self.decoder_norm(last_rows(last, x, self.backbone.prefix + split.kept)))
        target = self.compared(images, split.removed)[0]
        with torch.autocast(images.device.type, enabled=False):
            return (rows.float() - target).square().mean(-1)

    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels`: the mean over hidden patches of all images (section 3, "Reconstruction target")."""
        return {"loss_pixels": self.patch_losses(images, split).mean()}

    def judge(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """See `Pretrainer`: what was shown is kept in the pictures."""
        grid = self.backbone.grid(*images.shape[-2:])
        rows = self.pixel_rows(self.backbone(images, split.shown), split, grid)[:, split.kept :].float()
        target, mean, deviation = self.compared(images, split.removed)
        made = patchify(images, self.backbone.patch)
        index = split.removed[..., None].expand(-1, -1, made.shape[-1])
        made = made.scatter(1, index, rows * deviation + mean)
        errors = (rows - target).square().mean((1, 2))
        return {"loss_pixels": errors}, unpatchify(made, self.backbone.patch, grid)


def last_rows(block: Any, x: Tensor, start: int) -> Tensor:
    """What a block of timm's ViT, without dropout, makes of the tokens from `start` on, which look at all: `[B, n, C]`
    -> `[B, n - start, C]`. The last block's other tokens are read by nothing."""
    attention, normed = block.attn, block.norm1(x)
    dim = attention.qkv.in_features
    weights = zip(*(t.split([dim, 2 * dim]) for t in (attention.qkv.weight, attention.qkv.bias)), strict=True)
    (q_weight, q_bias), (kv_weight, kv_bias) = weights
    q = F.linear(normed[:, start:], q_weight, q_bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    k, v = F.linear(normed, kv_weight, kv_bias).unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x[:, start:] + attention.proj(attended)
    changed: Tensor = x + block.mlp(block.norm2(x))
    return changed
