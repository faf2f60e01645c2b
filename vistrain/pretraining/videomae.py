"""VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training (arXiv 2203.12602).

Cubes of two frames are hidden in tubes: the same patches at all times. Written from the paper; names of weights are
those of MCG-NJU/VideoMAE (CC BY-NC 4.0), of which nothing else is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.padding import Normalize
from vistrain.network import Network
from vistrain.predictions import Reconstruction
from vistrain.pretraining.pretrainer import seed_of, start_linear
from vistrain.pretraining.token_blocks import NORM, BiasedBlock
from vistrain.pretraining.token_masks import RandomMasking, TokenSplit, take
from vistrain.structures import Channels, Preprocessing


class TubeMasking(RandomMasking):
    """The same patches at all times.

    Args:
        ratio: see `Masking`.
    """

    def __init__(self, ratio: float = 0.9) -> None:
        super().__init__(ratio)

    def tubes(
        self, images: int, times: int, grid: tuple[int, int], generator: torch.Generator | None = None
    ) -> TokenSplit:
        """Of B clips of so many times and patches: the order of all `times * rows * columns` tokens."""
        hidden = self.split(images, grid, generator).hidden
        return TokenSplit.of_hidden(hidden.repeat(1, times))


class VideoEncoder(nn.Module):
    """A ViT of cubes.

    Args:
        dim, depth, heads: of its blocks.
        cube: frames, rows and columns of a cube.
        channels: of the frames.
    """

    def __init__(self, dim: int, depth: int, heads: int, cube: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(channels, dim, cube, cube)})
        self.blocks = nn.ModuleList(BiasedBlock(dim, heads) for _ in range(depth))
        self.norm = NORM(dim)

    def forward(self, clips: Tensor, shown: Tensor | None = None) -> Tensor:
        """`[B, C, T, H, W]` normalised, and `[B, K]` -> `[B, K, D]`; all N cubes, time by time, if `shown` is None."""
        x = self.patch_embed["proj"](clips).flatten(2).mT
        x = x + line_table(x.shape[1], x.shape[2]).to(x)
        if shown is not None:
            x = take(x, shown)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class VideoMAE(Network):
    """The video autoencoder. Batches hold clips: `image` `[B, C, T, H, W]`, `size` their three sides.

    Args:
        patch: side of a cube, pixels.
        tubelet: its frames.
        masking: 90 % of the tubes if None.
        dim, depth, heads: of the encoder.
        decoder_dim, decoder_depth, decoder_heads: of the decoder.
        image_channels: of the frames.
    """

    compiled_parts = ("encoder",)
    measured_size = (16, 224, 224)

    def __init__(
        self,
        patch: int = 16,
        tubelet: int = 2,
        masking: TubeMasking | None = None,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_dim: int = 384,
        decoder_depth: int = 4,
        decoder_heads: int = 6,
        image_channels: Channels = Channels(3),  # noqa: B008 - an int
    ) -> None:
        super().__init__()
        self.cube, self.masking, self.channels = (tubelet, patch, patch), masking or TubeMasking(), int(image_channels)
        grey = (0.5,) * self.channels
        self.preprocessing = Preprocessing(
            mean=(0.485, 0.456, 0.406) if self.channels == 3 else grey,
            std=(0.229, 0.224, 0.225) if self.channels == 3 else grey,
        )
        self.normalize = Normalize(self.preprocessing)
        self.encoder = VideoEncoder(dim, depth, heads, self.cube, self.channels)
        self.encoder_to_decoder = nn.Linear(dim, decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder = nn.ModuleDict({
            "blocks": nn.ModuleList(BiasedBlock(decoder_dim, decoder_heads) for _ in range(decoder_depth)),
            "norm": NORM(decoder_dim),
            "head": nn.Linear(decoder_dim, tubelet * patch * patch * self.channels),
        })  # fmt: skip
        self.apply(start_linear)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def complete(self, clips: Tensor, split: TokenSplit) -> Tensor:
        """The hidden cubes as predicted, `[B, n, t * p * p * C]`, in the order of `split.removed`."""
        x = self.encoder_to_decoder(self.encoder(clips, split.shown))
        table = line_table(split.order.shape[1], x.shape[-1])[None].to(x)
        missing = self.mask_token.to(x.dtype) + take(table, split.removed)
        x = torch.cat((x + take(table, split.shown), missing), 1)
        for block in cast(nn.ModuleList, self.decoder["blocks"]):
            x = block(x)
        rows: Tensor = self.decoder["head"](self.decoder["norm"](x[:, split.kept :]))
        return rows

    def target(self, clips: Tensor) -> Tensor:
        """Cubes `[B, N, t * p * p * C]` of normalised clips: each colour in a cube of mean 0 and variance 1."""
        return normalised_colours(self.colours(clips), self.channels)[0].flatten(2)

    def colours(self, clips: Tensor) -> Tensor:
        """Cubes `[B, N, t * p * p * C]` of normalised clips, brightest pixel 1."""
        return cubes(clips * self.normalize.std[..., None] + self.normalize.mean[..., None], self.cube)

    def forward(self, clips: Tensor) -> Tensor:
        """Tokens `[B, N, D]` of clips `[B, C, T, H, W]` that are shown whole."""
        tokens: Tensor = self.encoder(clips)
        return tokens

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_pixels`: the mean squared error of the hidden cubes."""
        clips = self.normalize(batch["image"], batch["size"])[0]
        split = self._on(self.masking.tubes(len(clips), *self._grid(clips)), clips)
        return {"loss_pixels": self._errors(clips, split).mean()}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Reconstruction]:
        """Losses of each clip under the mask of its id, and its middle frame with the hidden cubes made up.

        A cube's mean and deviation of each colour are those of the clip, which was not shown.
        """
        clips = self.normalize(batch["image"], batch["size"])[0]
        times, grid = self._grid(clips)
        seeds = [torch.Generator().manual_seed(seed_of(name)) for name in batch["id"]]
        parts = [self.masking.tubes(1, times, grid, seed) for seed in seeds]
        split = self._on(TokenSplit(torch.cat([part.order for part in parts]), parts[0].kept), clips)
        rows, true = self.complete(clips, split).float(), self.colours(clips)
        wanted, mean, deviation = normalised_colours(take(true, split.removed), self.channels)
        errors = (rows - wanted.flatten(2)).square().mean((1, 2))
        made = (rows.unflatten(-1, (-1, self.channels)) * deviation + mean).flatten(2)
        whole = true.scatter(1, split.removed[..., None].expand_as(made), made)
        pictures = middle_frames(whole, self.cube, clips.shape[2:]).cpu()
        hidden = split.hidden.view(-1, times, *grid)[:, 0].cpu()
        return [Reconstruction({"loss_pixels": errors[i].item()}, hidden[i], pictures[i]) for i in range(len(clips))]

    def check_size(self, *size: int) -> None:
        """Refuse clips that are shorter or smaller than a cube, or no multiples of it."""
        for side, part, what in zip(size, self.cube, ("frames", "rows", "columns"), strict=True):
            if side < part or side % part:
                key = "data.frames" if what == "frames" else "data.image_size"
                raise ConfigError(key, f"clips of {side} {what}", f"use multiples of {part}")
        self.masking.kept(size[1] // self.cube[1] * (size[2] // self.cube[2]))

    def no_weight_decay(self) -> set[str]:
        """See `Network`: the token of hidden cubes."""
        return {"mask_token"}

    def _errors(self, clips: Tensor, split: TokenSplit) -> Tensor:
        wanted = take(self.target(clips), split.removed)
        return (self.complete(clips, split).float() - wanted).square().mean((1, 2))

    def _grid(self, clips: Tensor) -> tuple[int, tuple[int, int]]:
        self.check_size(*clips.shape[-3:])
        times, rows, columns = (side // part for side, part in zip(clips.shape[-3:], self.cube, strict=True))
        return times, (rows, columns)

    def _on(self, split: TokenSplit, clips: Tensor) -> TokenSplit:
        return TokenSplit(split.order.to(clips.device), split.kept)


def cubes(clips: Tensor, cube: tuple[int, int, int]) -> Tensor:
    """`[B, C, T, H, W]` -> `[B, N, t * p * q * C]`: time by time, row by row, a pixel's channels together."""
    batch, channels, *sides = clips.shape
    (t, p, q), (times, rows, columns) = cube, (side // part for side, part in zip(sides, cube, strict=True))
    cut = clips.view(batch, channels, times, t, rows, p, columns, q)
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, times * rows * columns, -1)


def normalised_colours(rows: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each colour of a cube with mean 0 and variance 1: `[B, n, t * p * q * C]` -> `[B, n, t * p * q, C]`, and the
    means and deviations, `[B, n, 1, C]`."""
    values = rows.unflatten(-1, (-1, channels))
    # Here the small number is added to the deviation, not to the variance as in MAE.
    mean, deviation = values.mean(-2, keepdim=True), values.std(-2, keepdim=True) + 1e-6
    return (values - mean) / deviation, mean, deviation


def middle_frames(rows: Tensor, cube: tuple[int, int, int], sides: Sequence[int]) -> Tensor:
    """Frame T // 2 of clips in cubes: `[B, N, t * p * q * C]` -> `[B, C, H, W]`.

    Args:
        rows: cubes, as `cubes` gives them.
        cube: frames, rows and columns of a cube.
        sides: T, H and W of the clips.
    """
    (t, p, q), grid = cube, [side // part for side, part in zip(sides, cube, strict=True)]
    when, within = divmod(sides[0] // 2, t)
    cut = rows.unflatten(-1, (t, p, q, -1)).unflatten(1, grid)[:, when, :, :, within]
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def line_table(length: int, features: int) -> Tensor:
    """The sines (even channels) and cosines (odd ones) of places in a row, `[length, features]` float32."""
    exponents = torch.arange(features, dtype=torch.float64) // 2 * 2 / features
    angles = torch.arange(length, dtype=torch.float64)[:, None] / 10000.0**exponents
    table = torch.empty_like(angles)
    table[:, 0::2], table[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return table.float()
