"""What super-resolution networks share: colours around zero, a trunk at low resolution, and how it is enlarged.

The shell is SwinIR's (arXiv 2108.10257, section 3.1), which took it from EDSR; HAT, DRCT, RGT and DLGSANet keep it with
its parameter names. Authors' codes: github.com/JingyunLiang/SwinIR, Apache-2.0, and see each network's file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError, DataError
from vistrain.restoration.restorer import Restorer

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
FEATURES = 64  # channels between trunk and enlarged image


class SuperResolver(Restorer):
    """A trunk at low resolution and an upsampler. Subclasses write `trunk`.

    Args:
        in_chans: channels of the image; DIV2K's mean colour is taken off if there are 3.
        embed_dim: channels C of the trunk.
        upscale: factor of enlargement; 1 with the upsampler `none`.
        img_range: factor between the image, whose brightest pixel is 1, and what the trunk sees.
        upsampler: `pixelshuffle` (convolutions and pixel shuffles in steps of 2 or 3), `pixelshuffledirect` (one
            convolution and one shuffle, for light networks), `nearest+conv` (for real-world images, x2 and x4), or
            `none` (SwinIR: what the trunk finds is added to the image).
        multiple: sides of the image that the trunk takes are multiples of it.

    Raises:
        ConfigError: unknown upsampler, or one that does not enlarge by this factor.
    """

    #: Whether a network that does not enlarge finds what has to be added to the image, or the image itself
    finds_residual: ClassVar[bool] = True
    #: Regular expression of buffers in official files that follow from the constructor and are computed here
    computed: ClassVar[str] = ""

    mean: Tensor

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 180,
        upscale: int = 2,
        img_range: float = 1.0,
        upsampler: str = "pixelshuffle",
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.scale, self.multiple, self.embed_dim = in_chans, upscale, multiple, embed_dim
        self.img_range, self.upsampler = img_range, upsampler
        mean = DIV2K_MEAN if in_chans == 3 else (0.0,) * in_chans
        # Not persistent: a plain attribute in the authors' codes, absent from their files
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self._add_upsampler(embed_dim)
        if self.computed:  # official files have our names, and some buffers more
            self.key_maps = (KeyMap(f"official {type(self).__name__}", marker=self.computed, drop=(self.computed,)),)
            self.register_load_state_dict_pre_hook(_drop_computed)

    def trunk(self, x: Tensor) -> Tensor:
        """Normalised image `[B, C_in, h, w]` -> features `[B, C, h, w]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges images.

        Args:
            x: `[B, C_in, h, w]`, brightest pixel 1, sides multiples of `multiple`.

        Returns:
            `[B, C_in, h * scale, w * scale]`, not clipped.

        Raises:
            DataError: other channels or sides.
        """
        self.check(x)
        mean = self.mean.to(x.dtype)
        # Channels last: convolutions and tokens share their memory, and CPUs convolve faster
        x = ((x - mean) * self.img_range).contiguous(memory_format=torch.channels_last)
        return self._enlarge(x, self.trunk(x)) / self.img_range + mean

    def check(self, x: Tensor) -> None:
        """Raises a DataError unless `x` is `[B, channels, h, w]` with sides that are multiples of `multiple`."""
        name = type(self).__name__
        if x.dim() != 4 or x.shape[1] != self.channels:
            remedy = "repeat a grey image's channel" if self.channels == 3 else "convert the image"
            raise DataError("image", f"{list(x.shape)} is not [B, {self.channels}, h, w], as {name} takes it", remedy)
        if any(side < 1 or side % self.multiple for side in x.shape[2:]):
            problem = f"{x.shape[2]}x{x.shape[3]}, but {name} takes sides that are multiples of {self.multiple}"
            raise DataError("image", problem, "pad it, or use RestorationModel, which does")

    def _add_upsampler(self, dim: int) -> None:
        kind, scale, colours = self.upsampler, self.scale, self.channels
        if kind == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(_conv(dim, FEATURES), nn.LeakyReLU(inplace=True))
            self.upsample = nn.Sequential(*_shuffles(scale, FEATURES))
            self.conv_last = _conv(FEATURES, colours)
        elif kind == "pixelshuffledirect":
            self.upsample = nn.Sequential(_conv(dim, scale**2 * colours), nn.PixelShuffle(scale))
        elif kind == "nearest+conv":
            if scale not in (2, 4):
                raise ConfigError("upscale", f"{kind} does not enlarge by {scale}", "use 2 or 4")
            self.conv_before_upsample = nn.Sequential(_conv(dim, FEATURES), nn.LeakyReLU(inplace=True))
            self.conv_up1 = _conv(FEATURES, FEATURES)
            if scale == 4:
                self.conv_up2 = _conv(FEATURES, FEATURES)
            self.conv_hr = _conv(FEATURES, FEATURES)
            self.conv_last = _conv(FEATURES, colours)
        elif kind == "none":
            if scale != 1:
                raise ConfigError("upscale", f"{scale} without an upsampler", "use 1, or name an upsampler")
            self.conv_last = _conv(dim, colours)
        else:
            remedy = "use pixelshuffle, pixelshuffledirect, nearest+conv or none"
            raise ConfigError("upsampler", f"no upsampler {kind!r}", remedy)

    def _enlarge(self, x: Tensor, features: Tensor) -> Tensor:
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(self.conv_before_upsample(features)))
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(features)
        if self.upsampler == "none":
            found: Tensor = self.conv_last(features)
            return x + found if self.finds_residual else found
        y = self.conv_before_upsample(features)
        for conv in (self.conv_up1, self.conv_up2) if self.scale == 4 else (self.conv_up1,):
            y = F.leaky_relu(conv(F.interpolate(y, scale_factor=2.0, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(y), 0.2))


class TransformerSuperResolver(SuperResolver):
    """The shell of transformers: a convolution in front, residual groups on tokens, a convolution behind, a long skip.

    Subclasses write `tokens`.

    Args:
        resi_connection: the convolution behind, see `residual_conv`.
        use_checkpoint: training computes each group again instead of keeping its activations.
        base: see `SuperResolver`.
    """

    def __init__(self, resi_connection: str = "1conv", use_checkpoint: bool = False, **base: Any) -> None:
        super().__init__(**base)
        self.resi_connection, self.use_checkpoint = resi_connection, use_checkpoint
        self.conv_first = _conv(self.channels, self.embed_dim)
        self.conv_after_body = residual_conv(self.embed_dim, resi_connection)

    def tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """All residual groups: `[B, h * w, C]` -> the same shape; `size` is (h, w)."""
        raise NotImplementedError

    def run(self, group: Callable[..., Tensor], x: Tensor, *rest: object) -> Tensor:
        """One residual group of `x`, with its activations recomputed in training if `use_checkpoint`."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(group, x, *rest, use_reentrant=False)
        return group(x, *rest)

    def trunk(self, x: Tensor) -> Tensor:
        """See `SuperResolver`."""
        shallow = self.conv_first(x)
        size = (x.shape[2], x.shape[3])
        return self.conv_after_body(to_map(self.tokens(to_tokens(shallow), size), size)) + shallow


def to_tokens(x: Tensor) -> Tensor:
    """`[B, C, h, w]` -> `[B, h * w, C]`, contiguous."""
    return x.flatten(2).transpose(1, 2).contiguous()


def to_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`[B, h * w, C]` -> `[B, C, h, w]`, a channels-last view of the same memory."""
    return x.transpose(1, 2).unflatten(2, size)


def residual_conv(dim: int, kind: str) -> nn.Module:
    """What stands before a residual connection.

    Args:
        dim: channels.
        kind: `1conv` (3x3), `3conv` (a bottleneck of 3x3, 1x1, 3x3 with a quarter of the channels) or `identity`.

    Raises:
        ConfigError: another kind.
    """
    if kind == "1conv":
        return _conv(dim, dim)
    if kind == "3conv":
        slope, narrow = 0.2, dim // 4
        return nn.Sequential(
            _conv(dim, narrow),
            nn.LeakyReLU(slope),
            nn.Conv2d(narrow, narrow, 1),
            nn.LeakyReLU(slope),
            _conv(narrow, dim),
        )
    if kind == "identity":
        return nn.Identity()
    raise ConfigError("resi_connection", f"no {kind!r}", "use 1conv, 3conv or identity")


def drop_path_schedule(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of each block of each group: from 0 in the first block linearly to `rate` in the last."""
    total, ends = sum(depths), list(accumulate(depths))
    rates = [rate * i / max(total - 1, 1) for i in range(total)]
    return [rates[end - depth : end] for end, depth in zip(ends, depths, strict=True)]


def init_transformer(module: nn.Module) -> None:
    """Starts every linear layer below `module` with a normal distribution of 0.02, cut at +-2, and no bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_depths(depths: Sequence[int], num_heads: Sequence[int], name: str = "depths") -> None:
    """Raises a ConfigError unless each group has a depth of at least 1 and a number of heads."""
    if len(depths) != len(num_heads) or not depths or min(depths) < 1:
        problem = f"{len(depths)} groups with depths {list(depths)} and heads {list(num_heads)}"
        raise ConfigError(name, problem, "give one depth and one number of heads for each group")


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _shuffles(scale: int, features: int) -> list[nn.Module]:
    """Convolutions and pixel shuffles that together enlarge by `scale`."""
    steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    if scale < 1 or (scale != 3 and scale & (scale - 1)):
        raise ConfigError("upscale", f"pixelshuffle does not enlarge by {scale}", "use 3 or a power of 2")
    return [layer for step in steps for layer in (_conv(features, step**2 * features), nn.PixelShuffle(step))]


def _drop_computed(module: SuperResolver, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Official files load strictly: takes out buffers that are computed here (`state_dict` is torch's own copy)."""
    pattern = KeyMap("", "", drop=(module.computed,))
    for key in [k for k in state_dict if k.startswith(prefix) and pattern.rename(k) is None]:
        del state_dict[key]
