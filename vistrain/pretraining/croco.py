"""CroCo v2: Improved Cross-view Completion Pre-training for Stereo Matching and Optical Flow (arXiv 2211.10408).

The hidden patches of one view of a scene are completed from what is shown of it and from the whole of another view.
Positions are tables of sines (CroCo, arXiv 2210.10716) or rotations of queries and keys (v2). Written from the papers;
names of weights are those of naver/croco (CC BY-NC-SA 4.0), of which nothing else is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError, refuse_below
from vistrain.layers.padding import Normalize
from vistrain.layers.position import grid_table
from vistrain.network import Network
from vistrain.predictions import Reconstruction
from vistrain.pretraining.patches import normalised, patchify, unpatchify
from vistrain.pretraining.pretrainer import seed_of, start_linear
from vistrain.pretraining.token_blocks import NORM, refuse_uneven_heads
from vistrain.pretraining.token_masks import Masking, RandomMasking, TokenSplit, take
from vistrain.structures import Channels, Preprocessing

BASE = 100.0  # of the frequencies of rotations


def turned(x: Tensor, places: Tensor | None) -> Tensor:
    """Queries or keys `[B, heads, n, d]` rotated by the rows (first half of d) and columns of their patches.

    Args:
        x: the tokens.
        places: `[B, n, 2]` int64, (row, column); None leaves them as they are.
    """
    if places is None:
        return x
    halves = []
    for axis, part in enumerate(x.chunk(2, -1)):
        quarter = part.shape[-1] // 2
        waves = BASE ** -(torch.arange(quarter, device=x.device, dtype=torch.float32) / quarter)
        angles = (places[:, :, axis, None] * waves)[:, None]
        sine, cosine = angles.sin().to(x.dtype), angles.cos().to(x.dtype)
        a, b = part[..., :quarter], part[..., quarter:]
        halves += [a * cosine - b * sine, b * cosine + a * sine]
    return torch.cat(halves, -1)


class PlacedAttention(nn.Module):
    """Self-attention `[B, n, D]` -> `[B, n, D]` with rotated queries and keys.

    Args:
        dim: D.
        heads: they share D.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        refuse_uneven_heads(dim, heads)
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, places: Tensor | None) -> Tensor:
        """See the class; places `[B, n, 2]` or None."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(turned(q, places), turned(k, places), v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class PlacedCrossAttention(nn.Module):
    """Attention of `[B, n, D]` to `[B, m, D]`.

    Args:
        dim, heads: see `PlacedAttention`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        refuse_uneven_heads(dim, heads)
        self.heads = heads
        self.projq, self.projk, self.projv, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, places: Tensor | None, memory_places: Tensor | None) -> Tensor:
        """See the class."""
        rows = (self.projq(x), self.projk(memory), self.projv(memory))
        q, k, v = (row.unflatten(-1, (self.heads, -1)).transpose(1, 2) for row in rows)
        attended = F.scaled_dot_product_attention(turned(q, places), turned(k, memory_places), v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """A block of the encoder.

    Args:
        dim, heads: see `PlacedAttention`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = NORM(dim), PlacedAttention(dim, heads)
        self.norm2, self.mlp = NORM(dim), Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, places: Tensor | None) -> Tensor:
        """`[B, n, D]` -> `[B, n, D]`."""
        x = x + self.attn(self.norm1(x), places)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """A block of the decoder, which looks at the other view, too.

    Args:
        dim, heads: see `PlacedAttention`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = NORM(dim), PlacedAttention(dim, heads)
        self.norm2, self.norm_y, self.cross_attn = NORM(dim), NORM(dim), PlacedCrossAttention(dim, heads)
        self.norm3, self.mlp = NORM(dim), Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, memory: Tensor, places: Tensor | None, memory_places: Tensor | None) -> Tensor:
        """`[B, n, D]` and the other view `[B, m, D]` -> `[B, n, D]`."""
        x = x + self.attn(self.norm1(x), places)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), places, memory_places)
        return x + self.mlp(self.norm3(x))


class CroCo(Network):
    """Completion across views; the second view is the first of a batch's `views` (`data.views: 2`, or a set of pairs).

    Args:
        image_size: height and width that tables of positions are for, pixels.
        patch: side of a patch, pixels.
        positions: `rotations` (v2) or `sines`.
        masking: of the first view; 90 % if None.
        dim, depth, heads: of the encoder.
        decoder_dim, decoder_depth, decoder_heads: of the decoder.
        image_channels: of the data set's images.

    Raises:
        ConfigError: a side is no multiple of the patch's, or heads cannot be rotated.
    """

    compiled_parts = ()
    entrances: tuple[str, ...] = ("losses", "predict", "features")
    enc_pos_embed: Tensor
    dec_pos_embed: Tensor

    def __init__(
        self,
        image_size: tuple[int, int] = (224, 224),
        patch: int = 16,
        positions: Literal["rotations", "sines"] = "rotations",
        masking: Masking | None = None,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        image_channels: Channels = Channels(3),  # noqa: B008 - an int
    ) -> None:
        super().__init__()
        refuse_below(1, patch=patch, heads=heads, decoder_heads=decoder_heads)
        for key, width, count in (("dim", dim, heads), ("decoder_dim", decoder_dim, decoder_heads)):
            parts = count if positions == "rotations" else 1
            if width < 1 or width % (4 * parts):
                what = f"4 times {parts} heads, as rotations" if parts > 1 else "4, as positions"
                raise ConfigError(f"model.{key}", f"{width} is no multiple of {what} want", "use one")
        self.size, self.patch, self.masking = image_size, (patch, patch), masking or RandomMasking(0.9)
        self.preprocessing = Preprocessing(
            mean=(0.485, 0.456, 0.406) if image_channels == 3 else (0.5,) * image_channels,
            std=(0.229, 0.224, 0.225) if image_channels == 3 else (0.25,) * image_channels,
            input_size=image_size,
        )
        self.normalize = Normalize(self.preprocessing)
        self.channels, self.measured_size, self.rotates = int(image_channels), image_size, positions == "rotations"
        grid = self.grid(*image_size)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(self.channels, dim, patch, patch)})
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        if positions == "sines":
            self.register_buffer("enc_pos_embed", grid_table(grid, dim))
            self.register_buffer("dec_pos_embed", grid_table(grid, decoder_dim))
        self.enc_blocks = nn.ModuleList(EncoderBlock(dim, heads) for _ in range(depth))
        self.enc_norm = NORM(dim)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.dec_blocks = nn.ModuleList(DecoderBlock(decoder_dim, decoder_heads) for _ in range(decoder_depth))
        self.dec_norm = NORM(decoder_dim)
        self.prediction_head = nn.Linear(decoder_dim, patch * patch * self.channels)
        self.apply(start_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(self, images: Tensor, shown: Tensor | None = None) -> Tensor:
        """Tokens `[B, K, D]` of normalised images `[B, C, H, W]`, of the patches `shown` `[B, K]` alone."""
        grid = self.grid(*images.shape[-2:])
        x = self.patch_embed["proj"](images).flatten(2).mT
        if not self.rotates:
            x = x + self._table(grid, x.shape[-1])
        places = self._places(grid, len(images), images.device)
        if shown is not None:
            x, places = take(x, shown), take(places, shown)
        for block in self.enc_blocks:
            x = block(x, places if self.rotates else None)
        normed: Tensor = self.enc_norm(x)
        return normed

    def complete(self, images: Tensor, others: Tensor, split: TokenSplit) -> Tensor:
        """Predicted patches of the first view, `[B, N, p * p * C]`, row by row.

        Args:
            images: the first view, normalised, `[B, C, H, W]`.
            others: the second one, of any size.
            split: what is shown of the first.
        """
        grid, other = self.grid(*images.shape[-2:]), self.grid(*others.shape[-2:])
        x, memory = self.decoder_embed(self.encode(images, split.shown)), self.decoder_embed(self.encode(others))
        missing = self.mask_token.to(x.dtype).expand(len(x), split.order.shape[1] - split.kept, -1)
        x = take(torch.cat((x, missing), 1), split.restore)
        places = memory_places = None
        if self.rotates:
            places, memory_places = (self._places(g, len(x), x.device) for g in (grid, other))
        else:
            x, memory = x + self._table(grid, x.shape[-1]), memory + self._table(other, x.shape[-1])
        for block in self.dec_blocks:
            x = block(x, memory, places, memory_places)
        rows: Tensor = self.prediction_head(self.dec_norm(x))
        return rows

    def forward(self, images: Tensor) -> Tensor:
        """Tokens `[B, N, D]` of normalised images `[B, C, H, W]` that are shown whole."""
        return self.encode(images)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """What probes look at, `[B, D]`: the mean over the patches."""
        return self.encode(self.normalize(batch["image"], batch["size"])[0]).mean(1)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels`: of hidden patches of mean 0 and variance 1, the mean squared error.

        Raises:
            ConfigError: the batch has one view.
        """
        if "views" not in batch:
            raise ConfigError("data.views", "is 1, and CroCo compares two views", "set data.views=2")
        images, others = (self.normalize(x, batch["size"])[0] for x in (batch["image"], batch["views"][0]))
        split = self.masking.split(len(images), self.grid(*images.shape[-2:]), device=images.device)
        return {
            "loss_pixels": completion_losses(self.complete(images, others, split), images, split, self.patch).mean()
        }

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Reconstruction]:
        """Losses and pictures under fixed masks; without a second view, the second view is the mirror image."""
        images = self.normalize(batch["image"], batch["size"])[0]
        others = self.normalize(batch["views"][0], batch["size"])[0] if "views" in batch else images.flip(-1)
        grid = self.grid(*images.shape[-2:])
        parts = [self.masking.split(1, grid, torch.Generator().manual_seed(seed_of(name))) for name in batch["id"]]
        split = TokenSplit(torch.cat([part.order for part in parts]).to(images.device), parts[0].kept)
        rows = self.complete(images, others, split)
        losses = completion_losses(rows, images, split, self.patch)
        true = patchify(images, self.patch)
        _, mean, deviation = normalised(true)
        made = torch.where(split.hidden[..., None], rows.float() * deviation + mean, true)
        pixels = unpatchify(made, self.patch, grid) * self.normalize.std + self.normalize.mean
        hidden = split.hidden.view(-1, *grid).cpu()
        return [
            Reconstruction({"loss_pixels": losses[i].item()}, hidden[i], pixels[i].float().cpu())
            for i in range(len(images))
        ]

    def check_size(self, *size: int) -> None:
        """Refuse sides that are no multiples of a patch's, or images of which the mask would show none or all."""
        rows, columns = self.grid(*size)
        self.masking.kept(rows * columns)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ConfigError: a side is no multiple of the patch's.
        """
        side = self.patch[0]
        if min(height, width) < side or height % side or width % side:
            problem = f"{height}x{width} is no multiple of the patch of {side}x{side}"
            raise ConfigError("data.image_size", problem, f"use multiples of {side}")
        return height // side, width // side

    def _table(self, grid: tuple[int, int], dim: int) -> Tensor:
        own: Tensor = self.enc_pos_embed if dim == self.enc_pos_embed.shape[-1] else self.dec_pos_embed
        return own if grid == self.grid(*self.size) else grid_table(grid, dim).to(own.device, own.dtype)

    def _places(self, grid: tuple[int, int], batch: int, device: torch.device) -> Tensor:
        rows, columns = (torch.arange(side, device=device) for side in grid)
        return torch.cartesian_prod(rows, columns).expand(batch, -1, -1)


def completion_losses(rows: Tensor, images: Tensor, split: TokenSplit, patch: tuple[int, int]) -> Tensor:
    """The mean squared error of each image's hidden patches, `[B]`: rows `[B, N, p * p * C]` and images normalised."""
    target = normalised(patchify(images, patch))[0]
    errors = (rows.float() - target).square().mean(-1)
    return errors.gather(1, split.removed).mean(1)
