"""A plain ViT that reads a part of an image's patches: what masked pre-training trains, and hands over."""

from __future__ import annotations

from typing import Any, Literal

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import timm_body
from vistrain.backbones.create import create
from vistrain.errors import ConfigError
from vistrain.layers.position import grid_table
from vistrain.pretraining.token_masks import take
from vistrain.structures import Channels


class PatchEncoder(nn.Module):
    """Any plain ViT (or BEiT) of timm's; what is not shown costs nothing.

    Its weights stand under `body`, by the names that they have in every backbone of the house: a checkpoint of
    pre-training starts any of these (`model.backbone.pretrained=runs/mae/best.ckpt`).

    Args:
        name: timm's name; with the tag of weights (`vit_base_patch16_224.mae`), images are normalised as for these.
        pretrained: go on from timm's weights of that name, or from a file.
        positions: `fixed`: sines and cosines, as MAE (`fixed_rows`: the rows' before the columns', as CAE); what came
            with weights, where there are some; `learned`.
        args: timm's own arguments (`{img_size: [96, 160], patch_size: 8, depth: 6}`).
        image_channels: of the data set's images.

    Attributes:
        patch: height and width of a patch, pixels.
        size: height and width of the images that its table of positions is for.
        prefix: P, tokens before those of the patches.
        channels: C of the images.
        dim: D of the tokens.
        starts_fresh: whether it came without weights.

    Raises:
        ConfigError: unknown name or argument, or no plain ViT.
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        positions: Literal["fixed", "fixed_rows", "learned"] = "fixed",
        args: dict[str, Any] | None = None,
        image_channels: Channels = Channels(3),  # noqa: B008 - an int
    ) -> None:
        super().__init__()
        body, _ = create(name, pretrained, args or {}, image_channels)
        if type(body) not in (VisionTransformer, Beit) or not isinstance(body.patch_embed.proj, nn.Conv2d):
            problem = f"{name} is no plain ViT that can be shown some patches alone"
            raise ConfigError("name", problem, "take one of timm's vit_* or beit_*, such as vit_small_patch16_224")
        if isinstance(body, Beit) and (body.rel_pos_bias is not None or body.blocks[0].attn.window_size is not None):
            problem = f"{name} has a bias for all pairs of patches, which are not all shown"
            flags = "{use_abs_pos_emb: true, use_rel_pos_bias: false, use_shared_rel_pos_bias: false}"
            raise ConfigError("args", problem, f"set {flags}")
        if body.pos_embed is None:
            raise ConfigError("name", f"{name} has no table of positions", "take a ViT that has one")
        self.name, self.body = name, body
        self.preprocessing = timm_body.preprocessing(body, image_channels)
        self.channels, self.dim = int(image_channels), int(body.embed_dim)
        self.patch: tuple[int, int] = tuple(body.patch_embed.patch_size)
        self.size = timm_body.fixed_size(body)
        self.prefix = int(body.num_prefix_tokens)
        # BEiT always has a row of its table for the class token; a ViT says whether its has rows for tokens.
        whole = isinstance(body, Beit) or not body.no_embed_class
        self._table_prefix = self.prefix if whole else 0
        self.starts_fresh = pretrained is False
        self._sines, self._rows_first = positions != "learned" and self.starts_fresh, positions == "fixed_rows"
        if self._sines:
            table = grid_table(self.grid(*self.size), self.dim, self._rows_first)
            with torch.no_grad():
                body.pos_embed.zero_()
                body.pos_embed[0, self._table_prefix :].copy_(table)
        body.pos_embed.requires_grad_(positions == "learned")

    def forward(self, images: Tensor, shown: Tensor | None = None) -> Tensor:
        """Tokens after the final norm.

        Args:
            images: `[B, C, H, W]` normalised, sides multiples of the patch's.
            shown: `[B, K]` int64, the patches to read; all N, row by row, if None.

        Returns:
            `[B, P + K, D]`.
        """
        x = self.embed(images, shown)
        for block in self.body.blocks:
            x = block(x)
        return self.norm(x)

    def layers(self, images: Tensor, shown: Tensor | None = None) -> list[Tensor]:
        """Tokens after each block, without the final norm, each `[B, P + K, D]`; arguments as of `forward`."""
        x, found = self.embed(images, shown), []
        for block in self.body.blocks:
            x = block(x)
            found.append(x)
        return found

    def norm(self, x: Tensor) -> Tensor:
        """The final norm, of tokens `[B, n, D]`; timm has it under one of two names."""
        normed: Tensor = self.body.fc_norm(self.body.norm(x))
        return normed

    def embed(self, images: Tensor, shown: Tensor | None = None) -> Tensor:
        """What the first block reads, `[B, P + K, D]`; arguments as of `forward`."""
        grid = self.grid(images.shape[-2], images.shape[-1])
        batch, (p, q) = len(images), self.patch
        cut = images.view(batch, self.channels, grid[0], p, grid[1], q).permute(0, 2, 4, 1, 3, 5)
        rows = cut.reshape(batch, grid[0] * grid[1], -1)  # in the order of the convolution's weights
        table = self.positions(grid)
        here = table[:, table.shape[1] - rows.shape[1] :]
        if shown is not None:
            rows, here = take(rows, shown), take(here, shown)
        stem = self.body.patch_embed
        x = F.linear(rows, stem.proj.weight.flatten(1), stem.proj.bias)
        x = (x if isinstance(self.body, Beit) else stem.norm(x)) + here
        front = [self.body.cls_token] if self.body.cls_token is not None else []
        if isinstance(self.body, VisionTransformer) and self.body.reg_token is not None:
            front.append(self.body.reg_token)
        if front:
            tokens = torch.cat(front, 1)
            if self._table_prefix:
                tokens = tokens + table[:, : self._table_prefix]
            x = torch.cat((tokens.expand(batch, -1, -1).to(x.dtype), x), 1)
        x = self.body.pos_drop(x)
        return x if isinstance(self.body, Beit) else self.body.norm_pre(x)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The table `[1, P' + N, D]` of a grid of patches: its own, or one made for it; P' is 0 or P."""
        own: Tensor = self.body.pos_embed
        built = self.grid(*self.size)
        if grid == built:
            return own
        if self._sines:
            table = grid_table(grid, self.dim, self._rows_first).to(own.device, own.dtype)
            return torch.cat((own[:, : self._table_prefix], table[None]), 1)
        resized: Tensor = resample_abs_pos_embed(
            own, new_size=list(grid), old_size=list(built), num_prefix_tokens=self._table_prefix
        )
        return resized

    def says_of(self, height: int, width: int) -> str:
        """What becomes of its table of positions for images of these sides, pixels; empty: it is for them."""
        if self.grid(height, width) == self.grid(*self.size):
            return ""
        became = "sines are computed for these" if self._sines else "they are resized at each step"
        (rows, columns), built = self.size, "model.backbone.args.img_size"
        return f"images of {height}x{width} pixels, positions for {rows}x{columns} ({built}): {became}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of these sides, pixels.

        Raises:
            ConfigError: a side is smaller than a patch, or no multiple of its side.
        """
        (p, q), wanted = self.patch, "set data.image_size"
        if height < p or width < q:
            problem = f"images of {height}x{width} are smaller than a patch of {p}x{q}"
            raise ConfigError(
                "data.image_size", problem, f"{wanted} to multiples of {p}, or model.backbone.args.patch_size"
            )
        if height % p or width % q:
            problem = f"{height}x{width} is no multiple of the patch of {p}x{q}"
            raise ConfigError("data.image_size", problem, f"{wanted} to [{height // p * p}, {width // q * q}]")
        return height // p, width // q

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the model's authors exempt from weight decay (position tables, tokens)."""
        return {f"body.{name}" for name in timm_body.no_weight_decay(self.body)}

    def layers_above(self) -> dict[str, int] | None:
        """How many layers lie above each parameter's, by timm's `group_matcher`; see `Network.layers_above`."""
        known = timm_body.layers_above(self.body)
        return None if known is None else {f"body.{name}": above for name, above in known.items()}
