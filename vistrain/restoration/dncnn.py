"""DnCNN: a plain convolutional network that predicts the noise (arXiv 1608.03981), as the authors' KAIR has it.

Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising". Names of parameters are
those of cszn/KAIR, `models/network_dncnn.py` (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.layers.padding import EdgeMode
from vistrain.layers.weighted_conv import weight_convolutions
from vistrain.restoration.restorer import Restorer


class DnCNN(Restorer):
    """3x3 convolutions with norm and activation between them; the output is the image minus what they find.

    `nb=17` is the grey network for one noise level (557,057 parameters), `nb=20` the blind one and the colour one. The
    published weights have their batch norms merged into the convolutions: they fit `act_mode="R"`.

    Args:
        in_nc, out_nc: channels of the image, 1 for grey.
        nc: channels inside.
        nb: number of convolutions, at least 2.
        act_mode: what follows each convolution but the last, in order: `B` batch norm (of the inner ones alone), `I`
            instance norm, `R` ReLU, `L` leaky ReLU of slope 0.2. The first convolution has the last letter alone.
        den: densities of weighted convolutions from the border to the centre, `[0.7]` for 3x3 kernels
            (arXiv 2505.24558); None for plain convolutions.

    Raises:
        ConfigError: `act_mode` has another letter or no activation, `nb` is too small, or `den` does not fit.
    """

    padding: EdgeMode = "zeros"
    # Loading takes a `model.` before all names for a wrapper's, and it is not there where another module is outermost.
    key_maps = (KeyMap("kair", marker=r"^\d+\.", rules=((r"^", "model."),)),)

    def __init__(
        self,
        in_nc: int = 1,
        out_nc: int = 1,
        nc: int = 64,
        nb: int = 17,
        act_mode: str = "BR",
        den: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not act_mode or set(act_mode) - set("BIRL") or act_mode[-1] not in "RL":
            raise ConfigError("act_mode", f"unknown {act_mode!r}", "use 'BR', 'R', 'IR', 'BL', 'L' or 'IL'")
        if nb < 2:
            raise ConfigError("nb", f"{nb} convolutions are too few", "use 2 or more")
        self.channels = in_nc
        layers: list[nn.Module] = [_conv(in_nc, nc), *_follow(act_mode[-1], nc)]
        for _ in range(nb - 2):
            layers += [_conv(nc, nc), *_follow(act_mode, nc)]
        last = _conv(nc, out_nc)
        self.model = nn.Sequential(*layers, last)
        for conv in self.model:
            if isinstance(conv, nn.Conv2d):  # He et al.'s start, as in the paper
                nn.init.kaiming_normal_(conv.weight)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        # Ours: at first nothing is taken for noise. After 60 steps of 8 patches 23.8 dB, 20.2 from torch's own start.
        nn.init.zeros_(last.weight)
        if den is not None:
            weight_convolutions(self, den)

    def forward(self, x: Tensor) -> Tensor:
        """Remove the noise.

        Args:
            x: `[B, in_nc, H, W]`, brightest pixel = 1; any size.

        Returns:
            `[B, out_nc, H, W]`, not clipped.
        """
        return x - self.model(x)


def _conv(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)


def _follow(act_mode: str, channels: int) -> list[nn.Module]:
    """The layers that letters stand for."""
    made: dict[str, nn.Module] = {
        # KAIR's values; torch's are 1e-5 and 0.1. Torch's momentum is the new batch's share, so this follows fast.
        "B": nn.BatchNorm2d(channels, eps=1e-4, momentum=0.9),
        "I": nn.InstanceNorm2d(channels, affine=True),
        "R": nn.ReLU(inplace=True),
        "L": nn.LeakyReLU(0.2, inplace=True),
    }
    return [made[letter] for letter in act_mode]
