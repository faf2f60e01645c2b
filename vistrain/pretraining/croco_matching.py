"""CroCo-Stereo and CroCo-Flow (CroCo v2, arXiv 2211.10408, section 4): a pre-trained pair of encoder and decoder finds
where each pixel of one image is in the other.

A DPT head (arXiv 2103.13413, section 3) reads tokens of four depths; each pixel is predicted with a scale, and the loss
is the likelihood under a Laplace distribution. Written from the papers; naver/croco is CC BY-NC-SA 4.0. No number of
the paper is claimed: the head's widths, how the scale is parametrised and how tiles are merged are interpretations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import load_file, state_dict_in
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.losses.set_criterion import average_over_processes
from vistrain.predictions import Displacement
from vistrain.pretraining.croco import CroCo

STEPS = {8: 3, 12: 4, 24: 8}  # blocks from one depth that the head reads to the next, by the decoder's depth


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions behind ReLUs, added to what they read: `[B, C, H, W]` twice.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class DPTHead(nn.Module):
    """Tokens of four depths -> one map of 16 cells for each patch side.

    Args:
        dims: channels of the tokens at the four depths, first to last.
        outputs: channels of the result.
        widths: of the maps made of them, fine to coarse (4, 2, 1 and 1/2 cells for each patch side).
        width: of the fused maps.
    """

    def __init__(self, dims: Sequence[int], outputs: int, widths: Sequence[int], width: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.project = nn.ModuleList(nn.Conv2d(dim, w, 1) for dim, w in zip(dims, widths, strict=True))
        self.resample = nn.ModuleList([
            nn.ConvTranspose2d(a, a, 4, 4), nn.ConvTranspose2d(b, b, 2, 2), nn.Identity(), nn.Conv2d(d, d, 3, 2, 1),
        ])  # fmt: skip
        self.narrow = nn.ModuleList(nn.Conv2d(w, width, 3, padding=1, bias=False) for w in (a, b, c, d))
        # Nothing is added to the coarsest map, so it has one unit.
        self.units = nn.ModuleList(nn.ModuleList(ResidualUnit(width) for _ in range(n)) for n in (2, 2, 2, 1))
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in widths)
        half = max(width // 2, 1)
        self.last = nn.Sequential(nn.Conv2d(half, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, outputs, 1))
        self.first = nn.Conv2d(width, half, 3, padding=1)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Four times `[B, N, D_i]` -> `[B, outputs, 16 h, 16 w]`, for a grid of h x w patches."""
        maps = [
            narrow(resample(project(x.mT.unflatten(2, grid))))
            for x, project, resample, narrow in zip(tokens, self.project, self.resample, self.narrow, strict=True)
        ]
        fused: Tensor | None = None
        for level in (3, 2, 1, 0):
            units = list(cast(nn.ModuleList, self.units[level]))
            x = maps[level] if fused is None else fused + units[0](maps[level])
            size = maps[level - 1].shape[2:] if level else tuple(2 * side for side in x.shape[2:])
            fused = self.mix[level](F.interpolate(units[-1](x), size=size, mode="bilinear", align_corners=True))
        assert fused is not None
        large = F.interpolate(self.first(fused), scale_factor=2.0, mode="bilinear", align_corners=True)
        found: Tensor = self.last(large)
        return found


class CroCoMatcher(CroCo):
    """Disparity or optical flow from the first image of a pair to the second, `views[0]` of a batch.

    `target` of a batch holds `disparity`, float `[1, h, w]`, pixels to the left, or `flow`, `[2, h, w]`, pixels to the
    right and down, not finite where it is not known.

    Args:
        finds: `disparity` or `flow`.
        pretrained: checkpoint of a `CroCo` of the same sizes; None or false starts from scratch.
        hooks: of all blocks, the encoder's and then the decoder's, counted from 0, the four that the head reads; empty:
            the paper's, for decoders of 8, 12 or 24 blocks.
        widths, head_width: interpretation: see `DPTHead`.
        tile_overlap: share of a tile that the next one covers again, for images that are larger than `image_size`.
        base: see `CroCo`; masks do nothing here.

    Raises:
        ConfigError: a number is out of its range.
        WeightsError: the checkpoint has no encoder, or other sizes.
    """

    entrances = ("losses", "predict")

    def __init__(
        self,
        finds: Literal["disparity", "flow"] = "disparity",
        pretrained: str | bool | None = None,
        hooks: tuple[int, ...] = (),
        widths: tuple[int, ...] = (96, 192, 384, 768),
        head_width: int = 256,
        tile_overlap: float = 0.9,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        del self.mask_token, self.prediction_head
        depth, decoder = len(self.enc_blocks), len(self.dec_blocks)
        if not hooks and decoder in STEPS:
            hooks = tuple(depth + decoder - 1 - i * STEPS[decoder] for i in (3, 2, 1, 0))
        if len(hooks) != 4 or list(hooks) != sorted(set(hooks)) or not 0 <= hooks[0] <= hooks[-1] < depth + decoder:
            problem = f"{list(hooks)} of {depth + decoder} blocks"
            raise ConfigError("model.hooks", problem, f"four numbers, ascending, of 0 to {depth + decoder - 1}")
        if len(widths) != 4 or min(widths) < 1 or head_width < 2 or not 0 <= tile_overlap < 1:
            problem = f"widths={list(widths)}, head_width={head_width}, tile_overlap={tile_overlap}"
            raise ConfigError("model", problem, "four widths above 0, 2 or more, and a share in 0..1")
        self.finds, self.learns_from = finds, (finds,)
        self.hooks, self.tile_overlap, self.axes = hooks, tile_overlap, 2 if finds == "flow" else 1
        wide, narrow = self.enc_norm.weight.numel(), self.dec_norm.weight.numel()
        dims = [wide if hook < depth else narrow for hook in hooks]
        self.head = DPTHead(dims, self.axes + 1, widths, head_width)
        if pretrained is True:
            raise ConfigError("model.pretrained", "there are no weights to download", "name a checkpoint file")
        if pretrained:
            self._start_from(Path(pretrained))

    def match(self, images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Displacements `[B, 1 or 2, H, W]` in pixels, and the logarithms of their scales `[B, H, W]`, of normalised
        images `[B, C, H, W]` twice."""
        grid = self.grid(*images.shape[-2:])
        memory_tokens, found = self.encode(others), []
        x = self.patch_embed["proj"](images).flatten(2).mT
        if not self.rotates:
            x = x + self._table(grid, x.shape[-1])
        places = self._places(grid, len(images), images.device) if self.rotates else None
        for block in self.enc_blocks:
            x = block(x, places)
            found.append(x)
        x, memory = self.decoder_embed(self.enc_norm(x)), self.decoder_embed(memory_tokens)
        if not self.rotates:
            table = self._table(grid, x.shape[-1])
            x, memory = x + table, memory + table
        for block in self.dec_blocks:
            x = block(x, memory, places, places)
            found.append(x)
        found[-1] = self.dec_norm(x)
        out = self.head([found[hook] for hook in self.hooks], grid).float()
        if out.shape[-2:] != images.shape[-2:]:
            out = F.interpolate(out, size=images.shape[-2:], mode="bilinear")
        return out[:, : self.axes], out[:, self.axes]

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_displacement`, see `laplace_losses`; the mean over all pixels whose displacement is known, those of the
        whole accumulated batch where it says how many they are (`num_targets`).

        Raises:
            ConfigError: the batch has no second image.
            DataError: the images of a pair differ in size.
        """
        images, others = self.pair(batch)
        self.check_size(*images.shape[-2:])
        truth = images.new_full((len(images), self.axes, *images.shape[-2:]), torch.nan)
        for own, target in zip(truth, batch["target"], strict=True):
            height, width = target[self.finds].shape[-2:]
            own[:, :height, :width] = target[self.finds]
        found, scale = self.match(images, others)
        known = truth.isfinite().all(1)
        errors = laplace_losses(found, scale, torch.where(known[:, None], truth, 0))
        count = known.sum()
        if "num_targets" in batch:
            count = average_over_processes(batch["num_targets"], images.device, batch.get("micro_batches", 1))
        return {"loss_displacement": (errors * known).sum() / count.clamp(min=1)}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Displacement]:  # type: ignore[override]
        """Of each pair of a batch; larger images are cut into tiles, which are merged by their confidence, the inverse
        of the scale. A batch's padding is cut off first: pairs of several sizes are looked at one by one."""
        images, others = self.pair(batch)
        sizes = [tuple(size) for size in batch["size"].tolist()]
        if len(set(sizes)) == 1:
            height, width = sizes[0]
            return [
                Displacement(field) for field in self.tiled(images[..., :height, :width], others[..., :height, :width])
            ]
        return [
            Displacement(self.tiled(one[None, :, :height, :width], other[None, :, :height, :width])[0])
            for one, other, (height, width) in zip(images, others, sizes, strict=True)
        ]

    def tiled(self, images: Tensor, others: Tensor) -> Tensor:
        """Displacements `[B, 1 or 2, H, W]` of normalised images `[B, C, H, W]` twice, tile by tile; small ones are
        extended by their borders to a tile."""
        height, width = images.shape[-2:]
        extra = [max(tile - side, 0) for tile, side in zip(self.size, (height, width), strict=True)]
        images, others = (F.pad(x, (0, extra[1], 0, extra[0]), mode="replicate") for x in (images, others))
        total = images.new_zeros(len(images), self.axes, *images.shape[-2:])
        weights = images.new_zeros(len(images), 1, *images.shape[-2:])
        for rows, columns in self.tiles(images.shape[-2], images.shape[-1]):
            found, scale = self.match(images[..., rows, columns], others[..., rows, columns])
            trust = (-scale).exp()[:, None]
            total[..., rows, columns] += trust * found
            weights[..., rows, columns] += trust
        return (total / weights)[..., :height, :width]

    def check_size(self, *size: int) -> None:
        """Refuse windows to train on whose sides are no multiples of a patch's; others are predicted in tiles."""
        side, wanted = self.patch[0], list(self.size)
        if any(pixels < side or pixels % side for pixels in size):
            problem = f"{list(size)} is no multiple of the patch of {side}x{side}"
            raise ConfigError("data.crop", problem, f"use the model's tiles, {wanted}")

    def pair(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Both images of a batch, normalised."""
        if "views" not in batch:
            raise ConfigError("data.type", "gives no second image of each pair", "take a set of pairs")
        first, second = batch["image"], batch["views"][0]
        if first.shape != second.shape:
            (h, w), (height, width) = first.shape[-2:], second.shape[-2:]
            name = str(batch["id"][0]) if "id" in batch else "a pair"
            problem = f"the first image is {h}x{w}, the second {height}x{width}"
            raise DataError(name, problem, "rectify or resize both to one size")
        return self.normalize(first, batch["size"])[0], self.normalize(second, batch["size"])[0]

    def tiles(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of tiles that cover an image, of `image_size` each."""
        starts = []
        for side, tile in zip((height, width), self.size, strict=True):
            step = max(round(tile * (1 - self.tile_overlap)), 1)
            count = math.ceil((side - tile) / step)
            starts.append([min(i * step, side - tile) for i in range(count + 1)])
        for top in starts[0]:
            for left in starts[1]:
                yield slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def _start_from(self, path: Path) -> None:
        saved, own = state_dict_in(load_file(path), str(path)), self.state_dict()
        saved = {name.removeprefix("model."): value for name, value in saved.items()}
        wanted = [name for name in own if not name.startswith("head.")]
        if missing := [name for name in wanted if name not in saved]:
            problem = f"has no {missing[0]} and {len(missing) - 1} other weights of encoder and decoder"
            raise WeightsError(str(path), problem, "is it a CroCo's checkpoint?")
        if other := [name for name in wanted if saved[name].shape != own[name].shape]:
            problem = f"{other[0]} is {list(saved[other[0]].shape)}, here {list(own[other[0]].shape)}"
            raise WeightsError(str(path), problem, "give model the sizes of the pre-trained CroCo")
        self.load_state_dict({**own, **{name: saved[name] for name in wanted}})


def laplace_losses(found: Tensor, scale: Tensor, truth: Tensor) -> Tensor:
    """Negative logarithms of the likelihoods under Laplace distributions of one scale for all axes, `[B, H, W]`.

    Args:
        found, truth: `[B, A, H, W]`.
        scale: `[B, H, W]`, its logarithm; interpretation: nothing bounds it.
    """
    distance = (found - truth).abs().sum(1)
    return distance * (-scale).exp() + found.shape[1] * (scale + math.log(2))
