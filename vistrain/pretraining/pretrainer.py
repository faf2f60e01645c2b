"""What the networks of self-supervised pre-training share: an encoder that will be handed over, and a mask."""

from __future__ import annotations

import abc
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.layers.padding import Normalize
from vistrain.network import Network
from vistrain.predictions import Reconstruction
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.token_masks import Masking, RandomMasking, TokenSplit


class Pretrainer(Network):
    """Base of the methods; a method says what it learns from images and masks, and what it makes of them.

    Training masks follow torch's generator, which the task seeds for each batch. In evaluations each image has a mask
    of its own, which its id decides: it is the same in every evaluation, whatever the batch.

    Args:
        backbone: the encoder.
        masking: what it is not shown; 75 % of the patches, at random, if None.
    """

    entrances = ("losses", "predict", "features")

    def __init__(self, backbone: PatchEncoder, masking: Masking | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.masking = masking or RandomMasking()
        self.preprocessing, self.channels = backbone.preprocessing, backbone.channels
        self.measured_size = backbone.size
        self.normalize = Normalize(self.preprocessing)

    @abc.abstractmethod
    def learn(self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses, scalars by name.

        Args:
            images: `[B, C, H, W]`, normalised.
            split: what is shown of them.
            batch: as `Network` has it.
        """

    @abc.abstractmethod
    def judge(
        self, images: Tensor, split: TokenSplit, batch: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The losses of each image, `[B]` by name, and its normalised pixels as predicted, `[B, C, H, W]`; None where
        no pixels are. Arguments as of `learn`."""

    def forward(self, images: Tensor) -> Tensor:
        """Tokens `[B, P + N, D]` of normalised images `[B, C, H, W]` that are shown whole."""
        tokens: Tensor = self.backbone(images)
        return tokens

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """What probes look at, `[B, D]`, of a batch with `image` and `size`: the mean over the patches."""
        return self(self.prepared(batch))[:, self.backbone.prefix :].mean(1)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `learn`; of a batch with `image` and `size`."""
        images = self.prepared(batch)
        return self.learn(images, self.draw(images), batch)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Reconstruction]:
        """Losses and pictures of each image of a batch with `image`, `size` and `id`, under the masks of their ids."""
        images = self.prepared(batch)
        split = self.fixed(images, batch["id"])
        losses, made = self.judge(images, split, batch)
        grid = self.backbone.grid(*images.shape[-2:])
        hidden = split.hidden.view(-1, *grid).cpu()
        return [
            Reconstruction(
                {name: float(values[i]) for name, values in losses.items()},
                hidden[i],
                None if made is None else self.pixels(made[i]),
            )
            for i in range(len(images))
        ]

    def prepared(self, batch: Mapping[str, Any]) -> Tensor:
        """Normalised images `[B, C, H, W]`."""
        images: Tensor = self.normalize(batch["image"], batch["size"])[0]
        return images

    def draw(self, images: Tensor) -> TokenSplit:
        """What is shown of training images `[B, C, H, W]`."""
        return self.masking.split(len(images), self.backbone.grid(*images.shape[-2:]), device=images.device)

    def fixed(self, images: Tensor, ids: Sequence[Any]) -> TokenSplit:
        """What is shown of images `[B, C, H, W]` in evaluations, by their ids."""
        grid, parts = self.backbone.grid(*images.shape[-2:]), []
        for name in ids:
            generator = torch.Generator().manual_seed(seed_of(name))
            parts.append(self.masking.split(1, grid, generator))
        return TokenSplit(torch.cat([part.order for part in parts]).to(images.device), parts[0].kept)

    def pixels(self, image: Tensor) -> Tensor:
        """A normalised image `[C, H, W]` as float32 on the CPU, brightest pixel 1."""
        shown = image.float() * self.normalize.std + self.normalize.mean
        return (shown.flip(0) if self.normalize.bgr else shown).cpu()

    def check_size(self, *size: int) -> None:
        """Refuse sides that are no multiples of a patch's, or images of which the mask would show none or all."""
        rows, columns = self.backbone.grid(*size)
        self.masking.kept(rows * columns)

    def no_weight_decay(self) -> set[str]:
        """See `Network`: what the encoder's authors exempt."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layers_above(self) -> dict[str, int] | None:
        """See `Network`: the encoder's layers; what is upon it is the topmost."""
        layers = self.backbone.layers_above()
        return None if layers is None else {f"backbone.{name}": above for name, above in layers.items()}


def seed_of(name: Any) -> int:
    """A number below 2^32 for the id of an image."""
    return zlib.crc32(str(name).encode(errors="surrogateescape"))


def start_linear(module: nn.Module) -> None:
    """MAE's first values: matrices uniform (Glorot), biases 0, norms 1 and 0; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
