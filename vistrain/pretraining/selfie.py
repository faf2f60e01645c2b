"""Selfie: Self-supervised Pretraining for Image Embedding (arXiv 1906.02940).

The first three stages of a ResNet look at one patch at a time; a transformer pools those that are shown, and says
which of the hidden ones belongs into each hidden place. Written from the paper; there is no code (no licence). The
transformer's depth and heads, the share that is hidden and the recipe are not known to us, and no number is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import timm_body
from vistrain.backbones.create import create
from vistrain.errors import ConfigError, refuse_below
from vistrain.layers.padding import Normalize
from vistrain.network import Network
from vistrain.predictions import Reconstruction
from vistrain.pretraining.pretrainer import seed_of
from vistrain.pretraining.token_masks import Masking, RandomMasking, TokenSplit, take
from vistrain.structures import Channels

STAGES = 3  # of the patch network


class PatchResNet(nn.Module):
    """The first three stages of a ResNet of timm's on one patch at a time.

    Its weights stand under `body`, by timm's names: a checkpoint starts any backbone of that name. The fourth stage
    keeps its first values, and is frozen.

    Args:
        name: timm's name of a ResNet.
        pretrained: go on from timm's weights of that name, or from a file.
        args: timm's own arguments.
        image_channels: of the data set's images.

    Attributes:
        dim: C of a patch's vector.

    Raises:
        ConfigError: unknown name or argument, or no ResNet.
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(
        self,
        name: str = "resnet50",
        pretrained: bool | str = False,
        args: dict[str, Any] | None = None,
        image_channels: Channels = Channels(3),  # noqa: B008 - an int
    ) -> None:
        super().__init__()
        body, _ = create(name, pretrained, args or {}, image_channels)
        if not isinstance(body, ResNet):
            raise ConfigError("backbone.name", f"{name} is no ResNet", "take one of timm's, such as resnet50")
        self.name, self.body = name, body
        self.preprocessing = timm_body.preprocessing(body, image_channels)
        self.channels, self.dim = int(image_channels), int(body.feature_info[STAGES]["num_chs"])
        body.layer4.requires_grad_(False)

    def forward(self, patches: Tensor) -> Tensor:
        """The mean over each patch's map: normalised `[M, C, p, p]` -> `[M, dim]`."""
        maps = self.body.forward_intermediates(
            patches, indices=[STAGES], stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        pooled: Tensor = maps[0].mean((2, 3))
        return pooled


class Selfie(Network):
    """Which hidden patch belongs where; the others of the same image are what it is told apart from.

    Args:
        backbone: the patch network; ResNet-50 in the paper.
        masking: interpretation: 25 % of the patches, at random, if None; two at least are hidden.
        image_size: height and width that there are positions for, pixels.
        patch: side of a patch, pixels: 32 for images of 224 pixels, 8 for 32 (paper).
        dim: interpretation: C of the transformer's tokens.
        depth, heads: interpretation: of the transformer.
        image_channels: of the data set's images.

    Raises:
        ConfigError: a side is no multiple of the patch's, or the masking hides fewer than two patches.
    """

    entrances = ("losses", "predict", "features")

    def __init__(
        self,
        backbone: PatchResNet,
        masking: Masking | None = None,
        image_size: tuple[int, int] = (224, 224),
        patch: int = 32,
        dim: int = 512,
        depth: int = 3,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.backbone, self.masking = backbone, masking or RandomMasking(0.25)
        self.preprocessing, self.channels = backbone.preprocessing, backbone.channels
        self.normalize = Normalize(self.preprocessing)
        self.size, self.patch, self.measured_size = image_size, patch, image_size
        refuse_below(1, patch=patch, depth=depth)
        if dim < 1 or heads < 1 or dim % heads:
            raise ConfigError("model.heads", f"{heads} heads of {dim} channels", "use a number that divides them")
        self.check_size(*image_size)
        rows, columns = self.grid(*image_size)
        self.embed = nn.Linear(backbone.dim, dim)
        self.asked = nn.Parameter(torch.zeros(1, 1, dim))  # u_0: what the pooled vector is read from
        self.row_embed = nn.Parameter(torch.zeros(rows, dim))
        self.column_embed = nn.Parameter(torch.zeros(columns, dim))
        for table in (self.asked, self.row_embed, self.column_embed):
            nn.init.trunc_normal_(table, std=0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.pooling = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        """Patch vectors `[B, N, C]` of normalised images `[B, C, H, W]`, row by row."""
        (rows, columns), p = self.grid(*images.shape[-2:]), self.patch
        cut = images.view(len(images), self.channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        found: Tensor = self.backbone(cut.reshape(-1, self.channels, p, p))
        return found.view(len(images), rows * columns, -1)

    def logits(self, images: Tensor, split: TokenSplit) -> Tensor:
        """How well each hidden patch (last axis) fits each hidden place, `[B, N - K, N - K]`, both in the order of
        `split.removed`; images normalised."""
        grid = self.grid(*images.shape[-2:])
        tokens = self.embed(self(images))
        places = (self.row_embed[:, None] + self.column_embed[None]).flatten(0, 1)[None]
        if len(places[0]) != grid[0] * grid[1]:
            self.check_size(*images.shape[-2:])
        shown = take(tokens, split.shown) + take(places, split.shown)
        pooled = self.pooling(torch.cat((self.asked.expand(len(images), -1, -1), shown), 1))[:, :1]
        wanted = pooled + take(places, split.removed)
        return wanted @ take(tokens, split.removed).mT

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`loss_patches`: cross-entropy over the hidden patches of each image."""
        images = self.normalize(batch["image"], batch["size"])[0]
        split = self.masking.split(len(images), self.grid(*images.shape[-2:]), device=images.device)
        return {"loss_patches": matching_losses(self.logits(images, split)).mean()}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Reconstruction]:
        """The losses of each image under the mask of its id; no pixels."""
        images = self.normalize(batch["image"], batch["size"])[0]
        grid = self.grid(*images.shape[-2:])
        parts = [self.masking.split(1, grid, torch.Generator().manual_seed(seed_of(name))) for name in batch["id"]]
        split = TokenSplit(torch.cat([part.order for part in parts]).to(images.device), parts[0].kept)
        losses, hidden = matching_losses(self.logits(images, split)), split.hidden.view(-1, *grid).cpu()
        return [Reconstruction({"loss_patches": losses[i].item()}, hidden[i]) for i in range(len(images))]

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """What probes look at, `[B, C]`: the mean over the patches' vectors."""
        return self(self.normalize(batch["image"], batch["size"])[0]).mean(1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ConfigError: a side is no multiple of the patch's.
        """
        side = self.patch
        if min(height, width) < side or height % side or width % side:
            problem = f"{height}x{width} is no multiple of the patch of {side}x{side}"
            raise ConfigError("data.image_size", problem, f"use multiples of {side}")
        return height // side, width // side

    def check_size(self, *size: int) -> None:
        """Refuse all sizes but the one that there are positions for, and masks that hide fewer than two patches."""
        rows, columns = self.grid(*size)
        if tuple(size) != tuple(self.size):
            (h, w), (height, width) = self.size, size
            problem = f"{height}x{width}, and there are positions for {h}x{w}"
            raise ConfigError("data.image_size", problem, f"set model.image_size=[{height},{width}]")
        if rows * columns - self.masking.kept(rows * columns) < 2:
            problem = f"{self.masking.ratio} hides one of {rows * columns} patches: there is nothing to tell it from"
            raise ConfigError("model.masking.ratio", problem, "hide two at least")


def matching_losses(logits: Tensor) -> Tensor:
    """The mean cross-entropy of each image's hidden places, `[B, n, n]` -> `[B]`: each patch belongs into its own."""
    truth = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.float().mT, truth, reduction="none").mean(1)
