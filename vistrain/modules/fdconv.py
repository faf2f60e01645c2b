"""Frequency dynamic convolution: kernels of disjoint frequencies, mixed for each image, over bands of frequencies.

Frequency Dynamic Convolution for Dense Image Prediction, arXiv 2503.18783, section 3. Authors' code:
Linwei-Chen/FDConv, MIT (FDConv_detection/mmdet_custom/FDConv.py); parameters have its names.

Frequencies are told apart by a sort with many ties, which the authors leave to an unstable sort, so that their weights
compute otherwise from one build of torch to the next. It is stable here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.modules.base import ConvModule

BANDS = (2, 4, 8)  # the low bands end at 1 / 2, 1 / 4 and 1 / 8 of the highest frequency
MASK = 64  # side of the maps that the bands' masks are made for and resized from
LEAST = 16  # with no more channels than this it is an ordinary convolution


class StarReLU(nn.Module):
    """`scale * relu(x)^2 + bias`, both learnt (arXiv 2210.13452)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.scale * x.relu().square() + self.bias


class GlobalModulation(nn.Module):
    """Gates of input channels, of output channels, of the kernel's cells and of groups of frequencies (KSM, global).

    Args:
        in_channels, out_channels: of the convolution.
        kernel_size: of the convolution; of one cell there is no gate.
        kernel_num: groups of frequencies; of one there is no gate.
        temperature: logits are divided by it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, kernel_num: int, temperature: float
    ) -> None:
        super().__init__()
        hidden = max(in_channels // 16, 16)
        self.temperature, self.kernel_num = temperature, kernel_num
        self.fc = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.relu = StarReLU()
        self.channel_fc = nn.Conv2d(hidden, in_channels, 1)
        self.filter_fc = nn.Conv2d(hidden, out_channels, 1)
        self.spatial_fc = nn.Conv2d(hidden, kernel_size**2, 1) if kernel_size > 1 else None
        self.kernel_fc = nn.Conv2d(hidden, kernel_num, 1) if kernel_num > 1 else None
        for layer in (self.fc, self.channel_fc, self.filter_fc, self.spatial_fc, self.kernel_fc):
            if layer is None:
                continue
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for layer in (self.channel_fc, self.spatial_fc, self.kernel_fc):  # nearly open at first
            if layer is not None:
                nn.init.normal_(layer.weight, std=1e-6)

    def forward(self, means: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Means `[B, C, 1, 1]` -> gates `[B, C]`, `[B, C']`, `[B, k * k]` (or None), `[B, kernel_num]`."""
        hidden = self.relu(self.bn(self.fc(means)))
        spatial = None if self.spatial_fc is None else self._gate(self.spatial_fc, hidden)
        kernels = hidden.new_ones(hidden.shape[0], 1)
        if self.kernel_fc is not None:
            kernels = self._gate(self.kernel_fc, hidden) / self.kernel_num
        return self._gate(self.channel_fc, hidden), self._gate(self.filter_fc, hidden), spatial, kernels

    def _gate(self, layer: nn.Conv2d, hidden: Tensor) -> Tensor:
        return 2 * (layer(hidden).flatten(1) / self.temperature).sigmoid()


class LocalModulation(nn.Module):
    """A gate of each of the kernel's numbers, from a convolution along the channels' means (KSM, local).

    Args:
        channels: of the input.
        out: gates of each input channel: `C' * k * k`.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        size = round(math.log2(channels) / 2 + 0.5) // 2 * 2 + 1
        self.conv = nn.Conv1d(1, out, size, padding=size // 2, bias=False)
        nn.init.constant_(self.conv.weight, 1e-6)
        self.norm = nn.LayerNorm(channels)

    def forward(self, means: Tensor) -> Tensor:
        """`[B, C, 1, 1]` -> `[B, out, C]`."""
        return 2 * self.conv(self.norm(means.flatten(1))[:, None]).sigmoid()


class BandModulation(nn.Module):
    """An octave less of the highest frequencies each time, each band with a gate of every cell (FBM).

    Args:
        channels: C.
    """

    masks: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.freq_weight_conv_list = nn.ModuleList(nn.Conv2d(channels, 1, 3, padding=1) for _ in BANDS)
        for name, parameter in self.freq_weight_conv_list.named_parameters():
            nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else 1e-6)
        rows, columns = torch.fft.fftfreq(MASK).abs(), torch.fft.rfftfreq(MASK)
        highest = torch.maximum(rows[:, None], columns)
        masks = torch.stack([highest < 0.5 / band + 1e-8 for band in BANDS])
        self.register_buffer("masks", masks[:, None].float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`, float32: half types have no Fourier transforms of all sizes."""
        full, size = x.float(), (x.shape[2], x.shape[3])
        spectrum = torch.fft.rfft2(full, norm="ortho")
        masks = F.interpolate(self.masks, spectrum.shape[2:], mode="nearest")
        total, before = torch.zeros_like(full), full
        for mask, conv in zip(masks, self.freq_weight_conv_list, strict=True):
            low = torch.fft.irfft2(spectrum * mask, s=size, norm="ortho")
            total = total + 2 * conv(x).float().sigmoid() * (before - low)
            before = low
        return total + before


class FDConv(ConvModule, nn.Conv2d):
    """A convolution whose kernel is made for each image of groups of its own frequencies.

    With at most 16 input or output channels, or a kernel of another size than 1 or 3, it is an ordinary convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, groups, bias: see `nn.Conv2d`; there is one group.
        kernel_num: groups of frequencies; None for half of the output channels, with softer gates (the authors'
            detectors).

    Raises:
        ConfigError: there are groups of channels, or groups of frequencies that do not divide these.
    """

    formula = "y = conv(FBM(x), irfft2(sum_g a_g(x) W_g) * gates(x)), W_g disjoint frequencies, FBM: bands times gates"
    cost = "k^2 CC' (1 + 1 / k) + (k^2 + 27) C parameters at least; k^2 NCC' + 27NC, transforms not counted"
    place = "convolution"
    oddities = "bands are cut on 64x64 cells and resized; frequencies of equal distance are in the order of rows"

    group_of: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        bias: bool = False,
        kernel_num: int | None = 4,
    ) -> None:
        if groups != 1:
            problem = f"has kernels of all channels, not of {groups} groups"
            raise ConfigError("", problem, "choose a host without depthwise convolutions, such as a ResNet")
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.k = kernel_size
        self.is_dynamic = min(in_channels, out_channels) > LEAST and kernel_size in (1, 3)
        if not self.is_dynamic:
            return
        self.kernel_num = out_channels // 2 if kernel_num is None else kernel_num
        temperature = math.sqrt(self.kernel_num) if kernel_num is None else 1.0
        self.KSM_Global = GlobalModulation(in_channels, out_channels, self.k, self.kernel_num, temperature)
        if self.k > 1:
            self.FBM = BandModulation(in_channels)
        self.KSM_Local = LocalModulation(in_channels, out_channels * self.k**2)
        shape = (out_channels * self.k, in_channels * self.k)
        ordered = frequencies(*shape)
        if len(ordered) % self.kernel_num:
            problem = f"{len(ordered)} frequencies are not divisible by {self.kernel_num}"
            raise ConfigError("kernel_num", problem, "choose a divisor, such as a power of two")
        group_of = torch.empty_like(ordered)
        group_of[ordered] = torch.arange(len(ordered)) // (len(ordered) // self.kernel_num)
        self.register_buffer("group_of", group_of, persistent=False)
        spectrum = torch.fft.rfft2(self.weight.detach().transpose(1, 2).reshape(shape))
        self.alpha = min(in_channels, out_channels) // 2
        self.dft_weight = nn.Parameter(torch.view_as_real(spectrum)[None] / self.alpha)
        del self.weight

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        if not self.is_dynamic:
            return super().forward(x)
        means = x.mean((2, 3), keepdim=True)
        channels, filters, cells, groups = self.KSM_Global(means)
        kernels = self._kernels(groups.float()) * self._local(means)
        if cells is not None:
            kernels = kernels * cells.view(-1, 1, 1, self.k, self.k)
        # Gates of channels stand on the maps where these are smaller than the kernels: one of the two, for each image
        on_maps = self.weight_numel >= (self.in_channels + self.out_channels) * x.shape[2] * x.shape[3]
        if self.k > 1:
            x = self.FBM(x)
        if on_maps:
            x = x * channels[..., None, None]
        else:
            kernels = kernels * filters[:, :, None, None, None] * channels[:, None, :, None, None]
        kernels = kernels.to(x.dtype)
        merged = F.conv2d(
            x.flatten(0, 1)[None], kernels.flatten(0, 1), None, self.stride, self.padding, groups=kernels.shape[0]
        )
        out = merged.view(kernels.shape[0], self.out_channels, *merged.shape[2:])
        out = out * filters[..., None, None] if on_maps else out
        return out if self.bias is None else out + self.bias[:, None, None]

    @property
    def weight_numel(self) -> int:
        """Numbers of a kernel."""
        return self.out_channels * self.in_channels * self.k**2

    def _kernels(self, groups: Tensor) -> Tensor:
        """Gates `[B, kernel_num]` of frequencies -> kernels `[B, C', C, k, k]`."""
        rows, columns = self.out_channels * self.k, self.in_channels * self.k
        gates = groups[:, self.group_of] * (self.alpha * self.kernel_num)
        spectrum = self.dft_weight * gates.view(groups.shape[0], rows, -1, 1)
        kernels = torch.fft.irfft2(torch.view_as_complex(spectrum), s=(rows, columns))
        return kernels.view(-1, self.out_channels, self.k, self.in_channels, self.k).transpose(2, 3)

    def _local(self, means: Tensor) -> Tensor:
        """Gates `[B, C', C, k, k]` of all of a kernel's numbers."""
        gates: Tensor = self.KSM_Local(means)
        return gates.view(-1, self.out_channels, self.k, self.k, self.in_channels).permute(0, 1, 4, 2, 3)


def frequencies(rows: int, columns: int) -> Tensor:
    """Places in `rfft2` of a matrix `[rows, columns]`, counted row by row, by their frequency's distance from 0."""
    grid = torch.meshgrid(torch.fft.fftfreq(rows), torch.fft.rfftfreq(columns), indexing="ij")
    distance = torch.stack(grid, -1).norm(dim=-1)  # this form and no other: rounding decides between ties
    return torch.sort(distance.flatten(), stable=True).indices
