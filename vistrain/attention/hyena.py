"""Hyena N-D: a convolution as large as the map, by a kernel that a small perceptron draws, between two gates.

Multi-Dimensional Hyena for Spatial Inductive Bias, arXiv 2309.13600, section 3. Authors' code: Itamarzimm/HyenaND, a
fork of timm (timm/models/layers/hyena2d.py), no licence of its own: nothing of it is here, it is written from the
formulae and a description.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from vistrain.attention.base import AttentionOperator, Size
from vistrain.errors import ConfigError

Directions = Literal["standard", "seq", "parallel", "4dir", "4dirp"]
FLIPS: tuple[tuple[int, ...], ...] = (
    (),
    (2, 3),
    (3,),
    (2,),
)  # of a map `[B, C, H, W]`: the four corners it starts from
TARGET, FAST, SLOW = 0.01, 0.3, 1.5  # the window has decayed to TARGET after these shares of the axis


class Sine(nn.Module):
    """`sin(freq * x)`, a frequency for each channel.

    Args:
        dim: channels.
        frequency: at the start.
        learnt: whether it is trained.
    """

    def __init__(self, dim: int, frequency: float = 10.0, learnt: bool = True) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, dim), frequency), requires_grad=learnt)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        return torch.sin(self.freq * x)


class Positions(nn.Module):
    """Features of the places along an axis: the place, and cosines and sines of it.

    Args:
        length: places L, in 0..1.
        features: odd; the place itself, and pairs of waves.
    """

    z: Tensor
    t: Tensor

    def __init__(self, length: int, features: int) -> None:
        super().__init__()
        t = torch.linspace(0, 1, length)[None, :, None]
        waves = (features - 1) // 2
        frequency = torch.linspace(1e-4, waves - 1, waves)
        angle = 2 * math.pi * torch.arange(length)[:, None] / length * frequency
        self.z = nn.Parameter(torch.cat((t, angle.cos()[None], -angle.sin()[None]), -1))
        self.register_buffer("t", t)


class Window(nn.Module):
    """`exp(-t |delta|)` for each channel, and a constant.

    Args:
        dim: channels.
        names: of the rates of decay: one for a filter of one axis, two for one of both.
        shift: the constant.
        mode: `standard` rates are fixed; `learn` trains them and a constant for each channel; `no` is no window.
        root: the square root of the decay.
    """

    def __init__(
        self, dim: int, names: tuple[str, ...], shift: float, mode: Literal["standard", "learn", "no"], root: bool
    ) -> None:
        super().__init__()
        self.mode, self.names, self.power = mode, names, 0.5 if root else 1.0
        self.shift: float | nn.Parameter = shift
        rates = torch.linspace(math.log(TARGET) / SLOW, math.log(TARGET) / FAST, dim)[None, None]
        if mode == "standard":
            for name in names:
                self.register_buffer(name, rates.clone())
        elif mode == "learn":
            for name in names:
                self.register_parameter(name, nn.Parameter(rates.clone()))
            self.shift = nn.Parameter(torch.rand(rates.shape))

    def forward(self, h: Tensor, *places: Tensor) -> Tensor:
        """`h`, of the shape that places `[..., 1]` spread to with the channels, times the window."""
        if self.mode == "no":
            return h
        own = self.get_parameter if self.mode == "learn" else self.get_buffer
        rates = [own(name)[0, 0].abs() for name in self.names]
        fallen = torch.stack([(t * rate).expand_as(h) for t, rate in zip(places, rates, strict=True)]).sum(0)
        decay = torch.exp(-self.power * fallen)
        shift = self.shift if isinstance(self.shift, float) else self.shift[0, 0]
        return h * (decay + shift)


class HyenaFilter(nn.Module):
    """Kernels of the size of the map, drawn by perceptrons of places, and what skips the convolution.

    Args:
        dim: kernels.
        length: L; of places along an axis.
        hidden: width of the perceptrons.
        joint: one perceptron of both places draws a kernel; otherwise it is the product of one for rows and one for
            columns.
        features: of a place, see `Positions`.
        inner: hidden layers after the first.
        frequency: of the sines.
        shift, mode, root: see `Window`.
    """

    def __init__(
        self,
        dim: int,
        length: int,
        hidden: int,
        joint: bool,
        features: int,
        inner: int,
        frequency: float,
        shift: float,
        mode: Literal["standard", "learn", "no"],
        root: bool,
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(dim))
        self.pos_emb = Positions(length, features)
        self.joint = joint

        def perceptron(inputs: int) -> nn.Sequential:
            widths = [inputs, *[hidden] * (inner + 1)]
            layers: list[nn.Module] = []
            for a, b in pairwise(widths):
                layers += [nn.Linear(a, b), Sine(hidden, frequency)]
            return nn.Sequential(*layers, nn.Linear(hidden, dim, bias=False))

        if joint:
            self.implicit_filter = perceptron(2 * features)
            self.modulation = Window(dim, ("Xdeltas", "Ydeltas"), shift, mode, root)
        else:
            self.Yimplicit_filter, self.Ximplicit_filter = perceptron(features), perceptron(features)
            self.Ymodulation, self.Xmodulation = (Window(dim, ("deltas",), shift, mode, root) for _ in "YX")

    def forward(self, size: Size) -> Tensor:
        """`[dim, H, W]`, (H, W) = `size`, no more than L each."""
        z, t = self.pos_emb.z[0], self.pos_emb.t[0]
        (rows, columns), (y, x) = (z[:side] for side in size), (t[:side] for side in size)
        if self.joint:
            both = torch.cat((rows[:, None].expand(-1, size[1], -1), columns.expand(size[0], -1, -1)), -1)
            return self.modulation(self.implicit_filter(both), y[:, None], x[None]).permute(2, 0, 1)
        along_rows = self.Xmodulation(self.Ximplicit_filter(rows), y)
        along_columns = self.Ymodulation(self.Yimplicit_filter(columns), x)
        return along_rows.T[:, :, None] * along_columns.T[:, None, :]


class HyenaAttention(AttentionOperator):
    """The operator of Hyena N-D in two axes.

    Kernels reach down and to the right alone, as far as the map that the model is built for; `directional_mode` says
    how the other directions come in: `standard` has none, `seq` starts from the opposite corner (for every second
    block), `parallel` has four times as many channels between the gates, `4dir` and `4dirp` start from all four corners
    and mix the four results by a weight each, or by a matrix.

    Args:
        dim: channels C.
        grid: (H, W) of the map that the model is built for.
        order: gates; 2 is one convolution between two of them.
        filter_order: width of the perceptrons that draw kernels.
        joint: see `HyenaFilter` (`hyena2d_filter` of the authors).
        directional_mode: see above.
        window_mode: see `Window`.
        sqrt_decay: see `Window`; with `joint`.
        emb_dim: features of a place, odd.
        num_inner_mlps: hidden layers of the perceptrons after the first.
        frequency: of their sines at the start.
        shift: added to the window.
        drop: dropout before each convolution.

    Raises:
        ConfigError: fewer than two gates, or `sqrt_decay` for a product of kernels.
    """

    formula = "y = W((k * (v x_1) / (2L) + b v x_1) x_0), k = f(row) f(column) exp(-|delta| t)"
    cost = "4NC^2 + 27NC + 5NC log2(4N)"
    growth = "N log N"
    sizes = "any; beyond the grid, kernels end"
    float32 = True
    oddities = "the convolution is 1 / (2L) of a true one, as the authors' code divides its spectrum by 2L"

    def __init__(
        self,
        dim: int,
        grid: Size = (14, 14),
        order: int = 2,
        filter_order: int = 64,
        joint: bool = False,
        directional_mode: Directions = "standard",
        window_mode: Literal["standard", "learn", "no"] = "standard",
        sqrt_decay: bool = False,
        emb_dim: int = 3,
        num_inner_mlps: int = 2,
        frequency: float = 10.0,
        shift: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if order < 2:
            raise ConfigError("order", f"{order} gates leave no convolution: at least 2")
        if sqrt_decay and not joint:
            raise ConfigError("sqrt_decay", "is defined for kernels of both axes: set joint to true")
        self.dim, self.order, self.mode = dim, order, directional_mode
        self.length = max(grid)
        self.copies = 4 if directional_mode == "parallel" else 1
        width = (order + 1) * dim
        self.in_proj = nn.Linear(dim, width)
        self.short_filter = nn.Conv2d(width, self.copies * width, 3, padding=1, groups=width)
        shape = (self.length, filter_order, joint, emb_dim, num_inner_mlps, frequency, shift, window_mode, sqrt_decay)
        self.filter_fn = HyenaFilter(dim * (order - 1), *shape)
        if directional_mode in ("4dir", "4dirp"):
            self.linear_mix = nn.Linear(4, 1) if directional_mode == "4dir" else nn.Linear(4 * dim, dim)
        self.out_proj = nn.Linear(self.copies * dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        maps = self.short_filter(self.in_proj(x).mT.unflatten(2, size))
        maps = maps.unflatten(1, (self.copies, self.order + 1, self.dim)).transpose(1, 2).flatten(2, 3)
        gates, v = maps[:, :-1].unbind(1), maps[:, -1]
        reach = (min(size[0], self.length), min(size[1], self.length))
        kernels = self.filter_fn(reach).unflatten(0, (self.order - 1, self.dim)).repeat(1, self.copies, 1, 1)
        skips = self.filter_fn.bias.unflatten(0, (self.order - 1, self.dim)).repeat(1, self.copies)[..., None, None]
        if self.mode in ("4dir", "4dirp"):
            ways = [self._gated(v, gates, kernels, skips, flips, self.order - 1) for flips in FLIPS]
            if self.mode == "4dir":
                y = self.linear_mix(torch.stack(ways, -1))[..., 0].flatten(2).mT
            else:
                y = self.linear_mix(torch.cat(ways, 1).flatten(2).mT)
        else:
            flips = FLIPS[1] if self.mode == "seq" else ()
            y = self._gated(v, gates, kernels, skips, flips, 1).flatten(2).mT
        return self.out_proj(y)

    def _gated(
        self, v: Tensor, gates: tuple[Tensor, ...], kernels: Tensor, skips: Tensor, flips: tuple[int, ...], turned: int
    ) -> Tensor:
        """Gate, convolution, gate ...; the first `turned` convolutions start from the corner that `flips` names."""
        for index, gate in enumerate(reversed(gates[1:])):
            v = self.drop(v * gate)
            way = flips if index < turned else ()
            long = self._convolve(v.flip(way), kernels[index]).flip(way) if way else self._convolve(v, kernels[index])
            v = long + v * skips[index]
        return v * gates[0]

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """`[B, D, H, W]` by `[D, h, w]`, through the Fourier transform, divided by 2L."""
        height, width = x.shape[2:]
        whole = (height + kernel.shape[1], width + kernel.shape[2])
        spectrum = torch.fft.rfft2(x, s=whole) * torch.fft.rfft2(kernel, s=whole)
        return torch.fft.irfft2(spectrum, s=whole)[..., :height, :width] / (2 * self.length)
