"""What every restoration network gets around it: losses of a batch, whole or tiled inference, images of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.layers.padding import EdgeMode, extend, to_unit
from vistrain.layers.precision import at_least_float32
from vistrain.losses import L1
from vistrain.restoration.tiles import tiled
from vistrain.structures import Channels, Preprocessing, Restored

PREFIX = "network."
COLOUR = Channels(3)


class RestorationModel(nn.Module):
    """Trains and runs a restoration network.

    The network is a plain module, `forward(x: [B, C, h, w], brightest 1) -> [B, C, h * scale, w * scale]`, with
    attributes

    - `scale`: 1 for denoisers; `channels`: C;
    - `multiple`: sides that `forward` takes are multiples of it; and where they are needed
    - `padding`: how missing pixels are made up at the bottom and right: `reflect` (default), `symmetric`, `edge`,
      `zeros`; `smallest`: least side that `forward` takes; `least_padding`: pixels that are always added (1 for
      SwinIR, whose test script pads a full window where nothing is missing);
    - `pairs(x, truth) -> [(output, target), ...]`: what is compared while training, for networks with several outputs;
    - `key_maps`: namings of its official files, if they are not its own.

    Args:
        network: see above.
        loss: a loss, or several by name (`{pixel: ..., frequency: ...}`), whose weighted sum is trained; each is a
            module `(output, target) -> scalar`. L1 if None.
        tile: side of the tiles that large images are cut into, in pixels of the degraded image; None takes images
            whole. With `overlap` beyond what the network sees, the result is the same.
        overlap: of neighbouring tiles, in pixels of the degraded image.
        channels: of the data.

    Weights of another scale are a good start (`run.weights`): all that fits is taken, of the upsampler, too, and what
    is left out is named. `test` and `predict` leave nothing out.

    Attributes:
        labels: None, there are no classes.
        preprocessing: none is needed; networks hold their own mean.

    Raises:
        ConfigError: the network is for another number of channels, or tiles are too small.
    """

    compiled_parts = ("network",)
    class_layers = ()
    #: What enlarges, in networks after EDSR's: weights for another scale are a good start but for these
    scale_layers = (r"^network\.(upsample|conv_up\d)\.",)
    labels = None

    def __init__(
        self,
        network: nn.Module,
        loss: dict[str, nn.Module] | nn.Module | None = None,
        tile: int | None = None,
        overlap: int = 32,
        channels: Channels = COLOUR,
    ) -> None:
        super().__init__()
        self.scale, self.multiple = cast(int, network.scale), cast(int, network.multiple)
        self.channels = cast(int, network.channels)
        if self.channels != channels:
            raise ConfigError(
                "model.network",
                f"{type(network).__name__} takes images of {self.channels} channel(s), the data has {channels}",
                "change the network, or data.color",
            )
        self.network = network
        losses = loss if isinstance(loss, dict) else {"loss": L1() if loss is None else loss}
        self.criteria = nn.ModuleDict(losses)
        self.overlap = overlap
        self.tile: int | None = None
        self.set_tile(tile)
        self.preprocessing = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)

    def set_tile(self, tile: int | None) -> None:
        """Choose the side of tiles, in pixels of the degraded image, or None to take images whole.

        Raises:
            ConfigError: it is too small for the overlap.
        """
        if tile is not None and tile <= 2 * self.overlap:
            raise ConfigError("tile", f"{tile} is too small for an overlap of {self.overlap}", "use more than twice it")
        self.tile = None if tile is None else -(-tile // self.multiple) * self.multiple

    @property
    def key_maps(self) -> Sequence[KeyMap]:
        """Official files hold the network alone, under its own names or one of its namings."""
        namings: Sequence[KeyMap] = getattr(self.network, "key_maps", ())
        into = (r"^", PREFIX)
        inner = [replace(m, rules=(*m.rules, into), aliases=_inside(m), exports=()) for m in namings]
        return [*inner, KeyMap("official", r"", (into,))]

    @property
    def measured_size(self) -> tuple[int, int]:
        """Height and width of what multiply-adds are counted for: the field's 1280x720 once enlarged, or 256x256."""
        return (720 // self.scale, 1280 // self.scale) if self.scale > 1 else (256, 256)

    def forward(self, images: Tensor) -> Tensor:
        """Restores images whole, whatever their size.

        Args:
            images: `[B, C, h, w]` floating point, brightest pixel 1.

        Returns:
            `[B, C, h * scale, w * scale]`.
        """
        height, width = images.shape[-2:]
        least = getattr(self.network, "least_padding", 0)
        smallest = getattr(self.network, "smallest", 1)
        full = [-(-max(side + least, smallest) // self.multiple) * self.multiple for side in (height, width)]
        mode: EdgeMode = getattr(self.network, "padding", "reflect")
        restored: Tensor = self.network(extend(images, full[0] - height, full[1] - width, mode))
        return restored[..., : height * self.scale, : width * self.scale]

    def restore(self, images: Tensor) -> Tensor:
        """As `forward`, in tiles where `tile` is set and an image is larger."""
        if self.tile is None or max(images.shape[-2:]) <= self.tile:
            return self(images)
        return tiled(self, images, self.tile, self.overlap, self.scale, self.multiple)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses.

        Args:
            batch: `image` `[B, C, h, w]`, of one size, and `target`, dicts with `image` `[C, h * scale, w * scale]`.

        Returns:
            scalars by the names of the losses.
        """
        low, truth = to_unit(batch["image"]), to_unit(torch.stack([t["image"] for t in batch["target"]]))
        several = getattr(self.network, "pairs", None)
        pairs = several(low, truth) if several is not None else [(self.network(low), truth)]
        with torch.autocast(low.device.type, enabled=False):
            return {
                name: torch.stack([criterion(at_least_float32(output), target) for output, target in pairs]).sum()
                for name, criterion in self.criteria.items()
            }

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Restored]:
        """Restored images. Each is restored without the batch's padding, so batching changes nothing.

        Args:
            batch: `image` and `size`.
        """
        images, sizes = to_unit(batch["image"]), batch["size"].tolist()
        if all(size == list(images.shape[-2:]) for size in sizes):
            return [Restored(image.float()) for image in self.restore(images)]
        return [Restored(self.restore(x[None, :, :h, :w])[0].float()) for x, (h, w) in zip(images, sizes, strict=True)]


def _inside(key_map: KeyMap) -> tuple[tuple[str, str], ...]:
    """A key map's aliases for names that begin with `network.`."""
    return tuple((pattern.replace("^", f"^{PREFIX}"), replacement) for pattern, replacement in key_map.aliases)
