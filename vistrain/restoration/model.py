"""What every restoration network gets around it: losses of a batch, whole or tiled inference, images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.layers.padding import extend, to_unit
from vistrain.layers.precision import at_least_float32
from vistrain.losses import L1
from vistrain.losses.restoration import ImageLoss
from vistrain.network import Network
from vistrain.predictions import Restored
from vistrain.restoration.restorer import Restorer
from vistrain.restoration.tiles import tiled
from vistrain.structures import Channels, Exported, Preprocessing

PREFIX = "network."
COLOUR = Channels(3)


class RestorationModel(Network):
    """Trains and runs a restoration network.

    Args:
        network: from degraded image to restored image.
        loss: a loss, or several by name (`{pixel: ..., frequency: ...}`), whose weighted sum is trained; each is a
            module `(output, target) -> scalar`. L1 if None.
        tile: side of the tiles that large images are cut into, in pixels of the degraded image; None takes images
            whole. With `overlap` beyond what the network sees, the result is the same.
        overlap: of neighbouring tiles, in pixels of the degraded image.
        channels: of the data.

    Weights of another scale are a good start (`run.weights`): all that fits is taken, of the upsampler, too, and what
    is left out is named. `test` and `predict` leave nothing out.

    Raises:
        ConfigError: the network is for another number of channels, or tiles are too small.
    """

    compiled_parts = ("network",)
    #: What enlarges, in networks after EDSR's: weights for another scale are a good start but for these
    scale_layers = (r"^network\.(upsample|conv_up\d)\.",)

    def __init__(
        self,
        network: Restorer,
        loss: dict[str, nn.Module] | nn.Module | None = None,
        tile: int | None = None,
        overlap: int = 32,
        channels: Channels = COLOUR,
    ) -> None:
        super().__init__()
        self.scale, self.multiple, self.channels = network.scale, network.multiple, network.channels
        if self.channels != channels:
            raise ConfigError(
                "model.network",
                f"{type(network).__name__} takes images of {self.channels} channel(s), the data has {channels}",
                "change the network, or data.color",
            )
        self.network = network
        losses = loss if isinstance(loss, dict) else {"loss": L1() if loss is None else loss}
        if all(isinstance(each, ImageLoss) and not each.weight for each in losses.values()):
            raise ConfigError("model.loss", "its weights are 0: nothing would be learned", "give one above 0")
        self.criteria = nn.ModuleDict(losses)
        self.overlap = overlap
        self.tile: int | None = None
        self.set_tile(tile)
        self.preprocessing = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
        into = (r"^", PREFIX)  # official files hold the network alone, under its own names or one of its namings
        inner = [replace(m, rules=(*m.rules, into), aliases=_inside(m), exports=()) for m in network.key_maps]
        self.key_maps = [*inner, KeyMap("official", r"", (into,))]
        # The field counts for 1280x720 once enlarged, or for 256x256.
        self.measured_size = (720 // self.scale, 1280 // self.scale) if self.scale > 1 else (256, 256)

    def set_tile(self, tile: int | None) -> None:
        """Choose the side of tiles, in pixels of the degraded image, or None to take images whole.

        Raises:
            ConfigError: it is too small for the overlap.
        """
        if tile is not None and tile <= 2 * self.overlap:
            raise ConfigError("tile", f"{tile} is too small for an overlap of {self.overlap}", "use more than twice it")
        self.tile = None if tile is None else -(-tile // self.multiple) * self.multiple

    def forward(self, images: Tensor) -> Tensor:
        """Restores images whole, whatever their size.

        Args:
            images: `[B, C, h, w]` floating point, brightest pixel 1.

        Returns:
            `[B, C, h * scale, w * scale]`.
        """
        height, width = images.shape[-2:]
        least, smallest = self.network.least_padding, self.network.smallest
        # Rounded up without negative numbers, which ONNX divides otherwise.
        beyond = self.multiple - 1
        full = [(max(side + least, smallest) + beyond) // self.multiple * self.multiple for side in (height, width)]
        padded = extend(images, full[0] - height, full[1] - width, mode=self.network.padding)
        restored: Tensor = self.network(padded)
        return restored[..., : height * self.scale, : width * self.scale]

    def exported_facts(self) -> Exported:
        """See `Network`."""
        reading = (
            'restored = (found["restored"].clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)',
            "Image.fromarray(restored.squeeze()).save(sys.argv[2])",
        )
        meaning = f"[B, C, {self.scale} h, {self.scale} w] the restored image, brightest pixel 1, not clipped"
        return Exported({"restored": meaning}, reading)

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
        pairs = self.network.pairs(low, truth)
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
