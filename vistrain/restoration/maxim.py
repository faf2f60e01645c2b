"""MAXIM: a multi-stage U-Net that mixes pixels by gated perceptrons over blocks and grids (arXiv 2201.02973).

Tu et al., "MAXIM: Multi-Axis MLP for Image Processing". Modules have the names of the authors' flax code
(google-research/maxim, `maxim/models/maxim.py`, Apache-2.0), whose checkpoints load as they are (see `key_maps`).
The published variants: features 32 with 1, 2, 3 stages are S-1, S-2, S-3, features 64 M-1, M-2, M-3; all of them with 2
groups, 2 bottleneck blocks and 3 supervision scales. Inside, maps are channels-last, `[B, H, W, C]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistrain.checkpoints.flax import FLAX
from vistrain.layers.padding import extend
from vistrain.restoration.maxim_blocks import (
    AttendedConvolutions,
    Cut,
    MaximBottleneck,
    MaximConv,
    MaximCrossGating,
    MaximDoubling,
    MaximResample,
    MaximSettings,
    MultiAxisMlp,
    SupervisedAttention,
)
from vistrain.restoration.restorer import Restorer


class MaximLevel(nn.Module):
    """One resolution of encoder or decoder: projection, multi-axis blocks and convolutions, a long skip around them.

    Args:
        channels: of the input.
        features: of the output.
        settings: of the level.
        gated: cross-gate the result with what the last stage found at this level.
        down: halve the resolution at the end.
    """

    def __init__(
        self, channels: int, features: int, settings: MaximSettings, gated: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        self.settings, self.down = settings, down
        self.Conv_0 = MaximConv(channels, features, 1, settings.use_bias)
        for i in range(settings.num_groups):
            if settings.use_global_mlp:
                self.add_module(f"SplitHeadMultiAxisGmlpLayer_{i}", MultiAxisMlp(features, settings))
            self.add_module(f"channel_attention_block_1{i}", AttendedConvolutions(features, settings))
        if gated:
            self.cross_gating_block = MaximCrossGating(features, features, features, False, settings)
        if down:
            self.Conv_1 = MaximConv(features, features, 4, settings.use_bias, stride=2)

    def forward(self, x: Tensor, last_stage: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`[B, H, W, C]`, and what the last stage found -> the map for the next level and the one of this level."""
        x = skip = self.Conv_0(x)
        for i in range(self.settings.num_groups):
            if self.settings.use_global_mlp:
                x = self.get_submodule(f"SplitHeadMultiAxisGmlpLayer_{i}")(x)
            x = self.get_submodule(f"channel_attention_block_1{i}")(x)
        x = x + skip
        if last_stage is not None:
            x, _ = self.cross_gating_block(x, last_stage)
        return (self.Conv_1(x), x) if self.down else (x, x)


class MaximDecoderLevel(nn.Module):
    """Doubles the resolution and goes through a `MaximLevel` together with the skip connection.

    Args:
        channels: of the input.
        skip_channels: of the skip connection.
        features: of the output.
        settings: of the level.
    """

    def __init__(self, channels: int, skip_channels: int, features: int, settings: MaximSettings) -> None:
        super().__init__()
        self.ConvTranspose_0 = MaximDoubling(channels, features, settings.use_bias)
        self.UNetEncoderBlock_0 = MaximLevel(features + skip_channels, features, settings)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`[B, H, W, C]`, `[B, 2H, 2W, S]` -> `[B, 2H, 2W, features]`."""
        return self.UNetEncoderBlock_0(torch.cat([self.ConvTranspose_0(x), skip], -1))[1]


class MAXIM(Restorer):
    """The network. Images of any size are taken: padding is inside, as the authors' evaluation does it.

    Args:
        features: channels at full resolution; doubled with each level.
        depth: number of times the resolution is halved.
        num_stages: U-Nets one after the other.
        num_groups: blocks per level.
        use_bias: of all linear layers and convolutions.
        num_supervision_scales: resolutions that the image comes in and goes out at, at most `depth`.
        use_global_mlp: use multi-axis blocks in encoder and decoder (the bottleneck has them always).
        use_cross_gating: in skip connections and where stages meet; else convolutions.
        high_res_stages: levels that use the `hr` sizes, from full resolution down.
        block_size_hr, block_size_lr: blocks in pixels at high and low resolution.
        grid_size_hr: grid in cells at high resolution.
        grid_size_lr: not used: the authors' code takes `block_size_lr` in its place. Faithful.
        num_bottleneck_blocks: blocks at the lowest resolution.
        block_gmlp_factor, grid_gmlp_factor, input_proj_factor: widths inside the multi-axis blocks over their input's;
            the decoder and cross gating keep 2 for the last of them: faithful.
        channels_reduction: of the channel attention's squeeze.
        num_outputs: channels of the restored image.
        dropout_rate: of the gated perceptrons and cross gating.

    Attributes:
        padded_multiple: sides are padded to multiples of it, so that blocks and grids tile every level; 64 for the
            published networks.
    """

    key_maps = (FLAX,)

    def __init__(
        self,
        features: int = 64,
        depth: int = 3,
        num_stages: int = 2,
        num_groups: int = 1,
        use_bias: bool = True,
        num_supervision_scales: int = 1,
        use_global_mlp: bool = True,
        use_cross_gating: bool = True,
        high_res_stages: int = 2,
        block_size_hr: Sequence[int] = (16, 16),
        block_size_lr: Sequence[int] = (8, 8),
        grid_size_hr: Sequence[int] = (16, 16),
        grid_size_lr: Sequence[int] = (8, 8),
        num_bottleneck_blocks: int = 1,
        block_gmlp_factor: int = 2,
        grid_gmlp_factor: int = 2,
        input_proj_factor: int = 2,
        channels_reduction: int = 4,
        num_outputs: int = 3,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.depth, self.num_stages, self.num_scales = depth, num_stages, num_supervision_scales
        self.bottlenecks, self.use_bias, self.use_cross_gating = num_bottleneck_blocks, use_bias, use_cross_gating
        self.num_outputs, self.widths = num_outputs, [features * 2**i for i in range(depth)]

        def settings(is_high: bool, factor: int) -> MaximSettings:
            block, grid = (block_size_hr, grid_size_hr) if is_high else (block_size_lr, block_size_lr)
            return MaximSettings(
                Cut((block[0], block[1]), False), Cut((grid[0], grid[1]), True), use_bias, dropout_rate,
                block_gmlp_factor, grid_gmlp_factor, factor, channels_reduction, num_groups, use_global_mlp,
            )  # fmt: skip

        down = [settings(i < high_res_stages, input_proj_factor) for i in range(depth)]
        up = [settings(i < high_res_stages, 2) for i in range(depth)]
        bottleneck = settings(False, input_proj_factor)
        sides = [s * 2**i for i, each in enumerate([*down, bottleneck]) for s in (*each.block.size, *each.grid.size)]
        self.padded_multiple = math.lcm(*sides)
        for stage in range(num_stages):
            self._add_inputs(stage, down)
            for i, width in enumerate(self.widths):
                channels = self.widths[max(i - 1, 0)] + (width if i < self.num_scales else 0)
                self.add_module(
                    f"stage_{stage}_encoder_block_{i}", MaximLevel(channels, width, down[i], stage > 0, down=True)
                )
            for i in range(self.bottlenecks):
                self.add_module(f"stage_{stage}_global_block_{i}", MaximBottleneck(self.widths[-1], bottleneck))
            self._add_skips(stage, up)
            self._add_decoder(stage, up)

    def _add_inputs(self, stage: int, settings: Sequence[MaximSettings]) -> None:
        """Convolutions of the image at each scale, and what joins them to the features of the last stage."""
        for i, width in enumerate(self.widths[: self.num_scales]):
            self.add_module(f"stage_{stage}_input_conv_{i}", MaximConv(self.channels, width, 3, self.use_bias))
            if stage > 0 and self.use_cross_gating:
                fuse = MaximCrossGating(width, width, width, False, settings[i])
                self.add_module(f"stage_{stage}_input_fuse_sam_{i}", fuse)
            elif stage > 0:
                self.add_module(f"stage_{stage}_input_catconv_{i}", MaximConv(2 * width, width, 1, self.use_bias))

    def _add_skips(self, stage: int, settings: Sequence[MaximSettings]) -> None:
        """For each level, lowest resolution first, all encoder maps at its resolution and what fuses them."""
        for step, i in enumerate(reversed(range(self.depth))):
            width, joined = self.widths[i], self.depth * self.widths[i]
            for j, channels in enumerate(self.widths):
                self.add_module(self._resampler(stage, step, j), MaximResample(channels, width, j - i, self.use_bias))
            if self.use_cross_gating:
                below = self.widths[min(i + 1, self.depth - 1)]
                gate = MaximCrossGating(joined, below, width, True, settings[i])
                self.add_module(f"stage_{stage}_cross_gating_block_{i}", gate)
            else:
                first, second = self._skip_convolutions(stage, step)
                self.add_module(first, MaximConv(joined, width, 1, self.use_bias))
                self.add_module(second, MaximConv(width, width, 3, self.use_bias))

    def _add_decoder(self, stage: int, settings: Sequence[MaximSettings]) -> None:
        """For each level, lowest resolution first, all skip maps at its resolution, the decoder and its image."""
        for step, i in enumerate(reversed(range(self.depth))):
            width, below = self.widths[i], self.widths[min(i + 1, self.depth - 1)]
            for j, channels in enumerate(reversed(self.widths)):
                exponent = self.depth - 1 - j - i
                name = self._resampler(stage, self.depth + step, j)
                self.add_module(name, MaximResample(channels, width, exponent, self.use_bias))
            level = MaximDecoderLevel(below, self.depth * width, width, settings[i])
            self.add_module(f"stage_{stage}_decoder_block_{i}", level)
            if i >= self.num_scales:
                continue
            if stage < self.num_stages - 1:
                attention = SupervisedAttention(width, self.num_outputs, self.use_bias)
                self.add_module(f"stage_{stage}_supervised_attention_module_{i}", attention)
            else:
                self.add_module(f"stage_{stage}_output_conv_{i}", MaximConv(width, self.num_outputs, 3, self.use_bias))

    def _resampler(self, stage: int, step: int, j: int) -> str:
        """flax counts modules without a name in the order of their calls."""
        return f"UpSampleRatio_{(2 * stage * self.depth + step) * self.depth + j}"

    def _skip_convolutions(self, stage: int, step: int) -> tuple[str, str]:
        number = 2 * (stage * self.depth + step)
        return f"Conv_{number}", f"Conv_{number + 1}"

    def forward(self, x: Tensor) -> Tensor:
        """Restore, with the authors' padding for evaluation.

        Odd sides get one mirrored pixel; then images are mirrored at all ends alike to the next multiple of what blocks
        and grids need, 64 for the published networks.

        Args:
            x: `[B, 3, H, W]`, brightest pixel = 1; any size.

        Returns:
            the last stage's image at full resolution, `[B, num_outputs, H, W]`, neither clipped nor rounded.
        """
        height, width = x.shape[-2:]
        even = extend(x, height % 2, width % 2)
        top, left = ((-side % self.padded_multiple) // 2 for side in even.shape[-2:])
        # What lies beyond two opposite sides is mirrored by turning the image around.
        padded = extend(extend(even, top, left).flip(-2, -1), top, left).flip(-2, -1)
        return self.stages(padded)[-1][-1][..., top : top + height, left : left + width]

    def pairs(self, x: Tensor, truth: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Every image of every stage with the truth at its resolution (section 3.5), for the losses.

        Args:
            x, truth: `[B, 3, H, W]`, H and W multiples of `padded_multiple`.
        """
        targets = _pyramid(truth, self.num_scales)[::-1]
        return [pair for outputs in self.stages(x) for pair in zip(outputs, targets, strict=True)]

    def stages(self, x: Tensor) -> list[list[Tensor]]:
        """All images.

        Args:
            x: `[B, 3, H, W]`, H and W multiples of `padded_multiple`.

        Returns:
            for each stage the images `[B, num_outputs, h, w]`, the smallest first.
        """
        images = [image.permute(0, 2, 3, 1).contiguous() for image in _pyramid(x, self.num_scales)]
        found: list[list[Tensor]] = []
        attended: list[Tensor] = []
        before: list[Tensor] = []
        for stage in range(self.num_stages):
            inputs = self._inputs(stage, images, attended)
            encoded, x = self._encode(stage, inputs, before)
            skips = self._skips(stage, encoded, x)
            decoded, outputs, attended = self._decode(stage, skips, x, images)
            before = [e + d for e, d in zip(encoded, decoded, strict=True)]
            found.append([image.permute(0, 3, 1, 2) for image in reversed(outputs)])
        return found

    def _inputs(self, stage: int, images: Sequence[Tensor], attended: Sequence[Tensor]) -> list[Tensor]:
        maps = [self._part(stage, "input_conv", i)(image) for i, image in enumerate(images)]
        if stage == 0:
            return maps
        if self.use_cross_gating:
            return [self._part(stage, "input_fuse_sam", i)(x, attended[i])[0] for i, x in enumerate(maps)]
        joined = [torch.cat([x, attended[i]], -1) for i, x in enumerate(maps)]
        return [self._part(stage, "input_catconv", i)(x) for i, x in enumerate(joined)]

    def _encode(self, stage: int, inputs: Sequence[Tensor], before: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The maps of all levels, highest resolution first, and the bottleneck's."""
        x, encoded = inputs[0], []
        for i in range(self.depth):
            x = (
                torch.cat([x, inputs[i]], -1) if i < self.num_scales else x
            )  # the first level sees its input twice: faithful
            x, bridge = self._part(stage, "encoder_block", i)(x, before[i] if stage > 0 else None)
            encoded.append(bridge)
        for i in range(self.bottlenecks):
            x = self._part(stage, "global_block", i)(x)
        return encoded, x

    def _skips(self, stage: int, encoded: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """The maps of the skip connections, lowest resolution first."""
        skips = []
        for step, i in enumerate(reversed(range(self.depth))):
            resamplers = [self.get_submodule(self._resampler(stage, step, j)) for j in range(self.depth)]
            signal = torch.cat([resample(e) for resample, e in zip(resamplers, encoded, strict=True)], -1)
            if self.use_cross_gating:
                skip, x = self._part(stage, "cross_gating_block", i)(signal, x)
            else:
                first, second = self._skip_convolutions(stage, step)
                skip = self.get_submodule(second)(self.get_submodule(first)(signal))
            skips.append(skip)
        return skips

    def _decode(
        self, stage: int, skips: Sequence[Tensor], x: Tensor, images: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Decoder maps, images, and features for the next stage: each by level, highest resolution first."""
        decoded, outputs, attended = [], [], []
        for step, i in enumerate(reversed(range(self.depth))):
            names = [self._resampler(stage, self.depth + step, j) for j in range(self.depth)]
            signal = torch.cat([self.get_submodule(name)(skip) for name, skip in zip(names, skips, strict=True)], -1)
            x = self._part(stage, "decoder_block", i)(x, signal)
            decoded.append(x)
            if i >= self.num_scales:
                continue
            if stage < self.num_stages - 1:
                features, output = self._part(stage, "supervised_attention_module", i)(x, images[i])
                attended.append(features)
            else:
                output = self._part(stage, "output_conv", i)(x) + images[i]
            outputs.append(output)
        return decoded[::-1], outputs[::-1], attended[::-1]

    def _part(self, stage: int, name: str, number: int) -> nn.Module:
        return self.get_submodule(f"stage_{stage}_{name}_{number}")


def _pyramid(x: Tensor, scales: int) -> list[Tensor]:
    """`[B, C, H, W]` at H, H / 2, ...: the pixel right and below the centre of each block, as `jax.image.resize`."""
    sizes = [(x.shape[-2] >> i, x.shape[-1] >> i) for i in range(scales)]
    return [x, *(F.interpolate(x, size, mode="nearest-exact") for size in sizes[1:])]
