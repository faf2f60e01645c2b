"""BEVANet: Bilateral Efficient Visual Attention Network for Real-Time Semantic Segmentation (Huang et al. 2025, arXiv
2508.07300).

Authors' code: github.com/maomao0819/BEVANet, commit 603205b, MIT; names of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.layers.conv import resize
from vistrain.losses.class_maps import OhemCrossEntropy, PixelCrossEntropy
from vistrain.segmentation.bevanet_parts import (
    BoundaryFusion,
    EVANBlock,
    LargeKernelPyramid,
    PixelAttentionFusion,
    PixelHead,
    basic_layer,
    bottleneck_layer,
    layer_norm,
)
from vistrain.segmentation.semantic import SemanticNetwork
from vistrain.structures import Channels, Factory, LabelSpace, Preprocessing

BOUNDARY_WIDTH = 4  # pixels, of the boundaries that are learnt


class BEVANet(SemanticNetwork):
    """A semantic branch down to stride 64 and a detail branch at stride 8, fused along boundaries.

    The large kernels' sizes say what each stage is made of: 0 stands for basic blocks (bottlenecks in the last stage).

    Args:
        labels: the classes.
        semantic_kernels: of the stages of strides 16, 32 and 64.
        detail_kernels: of the two stages of stride 8.
        expand: width of the perceptrons in the stages of strides 16, 32 and 64 (the first two also for details).
        blocks: basic blocks in the first two stages, and in the semantic stages without a large kernel.
        width, pyramid_width, head_width: channels (the paper's planes).
        class_weights: K factors of the losses; empty: all 1.
        channels: of the images.
        base: see `SemanticNetwork`; its `loss` is that of the output (OHEM).
    """

    default_loss = Factory(OhemCrossEntropy)
    measured_size = (1024, 2048)
    # Finetuned checkpoints begin with `model.`, which loading strips.
    key_maps = (KeyMap("official", r"^(sem_loss|bd_loss)\.", drop=(r"^(sem_loss|bd_loss)\.",)),)
    class_layers = (r"^(head|seghead_ds)\.conv2\.",)

    sets_itself = ("preprocessing",)

    def __init__(
        self,
        labels: LabelSpace,
        semantic_kernels: tuple[int, int, int] = (0, 35, 35),
        detail_kernels: tuple[int, int] = (0, 23),
        expand: tuple[float, ...] = (4, 4, 4),
        blocks: tuple[int, ...] = (2, 2, 4, 4, 2),
        width: int = 64,
        pyramid_width: int = 96,
        head_width: int = 128,
        class_weights: Sequence[float] = (),
        channels: Channels = Channels(3),  # noqa: B008 - an int
        **base: Any,
    ) -> None:
        for name, given, count in (("expand", expand, 3), ("blocks", blocks, 5)):
            if len(given) < count or min(given) <= 0:
                raise ConfigError(f"model.{name}", f"{list(given)}", f"{count} numbers above 0, one for each stage")
        known = Preprocessing()
        if channels != 3:
            known = Preprocessing(mean=(0.5,) * channels, std=(0.25,) * channels)
        super().__init__(labels, known, **base)
        self.semantic_kernels, self.detail_kernels, c = semantic_kernels, detail_kernels, width
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU(),
            nn.Conv2d(c, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU(),
        )  # fmt: skip
        self.layer1, self.layer2 = basic_layer(c, c, blocks[0]), basic_layer(c, 2 * c, blocks[1], 2)
        if semantic_kernels[0]:
            self.layer3_down_semantic = basic_layer(2 * c, 4 * c, 1, 2)
            self.layer3_semantic: nn.Module = EVANBlock(4 * c, semantic_kernels[0], expand[0])
            self.norm3_semantic = layer_norm(4 * c)
        else:
            self.layer3_semantic = basic_layer(2 * c, 4 * c, blocks[2], 2)
        if semantic_kernels[1]:
            self.layer4_down_semantic = basic_layer(4 * c, 8 * c, 1, 2)
            for i in (1, 2):
                self.add_module(f"layer4_semantic_{i}", EVANBlock(8 * c, semantic_kernels[1], expand[1]))
                self.add_module(f"norm4_semantic_{i}", layer_norm(8 * c))
        else:
            self.layer4_semantic = basic_layer(4 * c, 8 * c, blocks[3], 2)
        if semantic_kernels[2]:
            self.layer5_down_semantic_seg = basic_layer(8 * c, 16 * c, 1, 2)
            for i in (1, 2):
                self.add_module(f"layer5_semantic_{i}_seg", EVANBlock(16 * c, semantic_kernels[2], expand[2]))
                self.add_module(f"norm5_semantic_{i}_seg", layer_norm(16 * c))
        else:
            self.layer5_semantic_seg = bottleneck_layer(8 * c, 8 * c, blocks[4], 2)
        for stage, kernel in zip((3, 4), detail_kernels, strict=True):
            if kernel:
                self.add_module(f"layer{stage}_detail_conv", basic_layer(2 * c, 2 * c, 1))
                self.add_module(f"layer{stage}_detail", EVANBlock(2 * c, kernel, expand[stage - 3]))
                self.add_module(f"norm{stage}_detail", layer_norm(2 * c))
            else:
                self.add_module(f"layer{stage}_detail", basic_layer(2 * c, 2 * c, blocks[stage - 3]))
            compression = nn.Sequential(nn.Conv2d(2**stage * c // 2, 2 * c, 1, bias=False), nn.BatchNorm2d(2 * c))
            self.add_module(f"compression{stage}", compression)
            self.add_module(f"fuse_sd_{stage}", PixelAttentionFusion(2 * c, c))
        self.layer5_detail_semantic = bottleneck_layer(2 * c, 2 * c, 1)
        self.layer5_detail_boundary = bottleneck_layer(2 * c, 2 * c, 1)
        self.spp = LargeKernelPyramid(16 * c, pyramid_width, 4 * c)
        self.dfm = BoundaryFusion(4 * c)
        self.seghead_ds = PixelHead(2 * c, head_width, labels.num_classes)
        self.seghead_db = PixelHead(2 * c, c, 1)
        self.head = PixelHead(4 * c, head_width, labels.num_classes)
        self.auxiliary = PixelCrossEntropy(class_weights, over_all=False, weight=0.4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images `[B, C, H, W]` -> what the heads see at stride 8.

        Returns:
            `[B, 2 width, h, w]` details after the first fusion and after the second, and `[B, 4 width, h, w]` all
            fused.
        """
        x = self.layer2(self.layer1(self.conv1(images)).relu()).relu()
        if self.semantic_kernels[0]:
            semantic = self.norm3_semantic(self.layer3_semantic(self.layer3_down_semantic(x)))
        else:
            semantic = self.layer3_semantic(x).relu()
        first = self._fuse(3, self._detail(3, x), semantic)
        if self.semantic_kernels[1]:
            semantic = self._pair("layer4_semantic_{}", "norm4_semantic_{}", self.layer4_down_semantic(semantic))
        else:
            semantic = self.layer4_semantic(semantic).relu()
        if not self.detail_kernels[0]:
            first = first.relu()  # in place in the authors' code, so the auxiliary head sees it, too
        second = self._fuse(4, self._detail(4, first), semantic)
        if not self.detail_kernels[1]:
            second = second.relu()
        if self.semantic_kernels[2]:
            semantic = self._pair(
                "layer5_semantic_{}_seg", "norm5_semantic_{}_seg", self.layer5_down_semantic_seg(semantic)
            )
        else:
            semantic = self.layer5_semantic_seg(semantic)
        detail = self.layer5_detail_semantic(second)
        semantic = resize(self.spp(semantic), detail.shape[2:])
        return first, second, self.dfm(detail, semantic, self.layer5_detail_boundary(second))

    def _pair(self, block: str, norm: str, x: Tensor) -> Tensor:
        for i in (1, 2):
            x = self.get_submodule(norm.format(i))(self.get_submodule(block.format(i))(x))
        return x

    def _detail(self, stage: int, x: Tensor) -> Tensor:
        if not self.detail_kernels[stage - 3]:
            return self.get_submodule(f"layer{stage}_detail")(x)
        for name in (f"layer{stage}_detail_conv", f"layer{stage}_detail", f"norm{stage}_detail"):
            x = self.get_submodule(name)(x)
        return x

    def _fuse(self, stage: int, detail: Tensor, semantic: Tensor) -> Tensor:
        return self.get_submodule(f"fuse_sd_{stage}")(detail, self.get_submodule(f"compression{stage}")(semantic))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, C, H, W]` -> logits `[B, K, H / 8, W / 8]`."""
        return self.head(self.branches(images)[2])

    def all_logits(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at stride 8 of the auxiliary head `[B, K, h, w]`, the output, and the boundaries `[B, 1, h, w]`."""
        first, second, fused = self.branches(images)
        return self.seghead_ds(first), self.head(fused), self.seghead_db(second)

    def training_losses(self, images: Tensor, labels: Tensor, count: Tensor | None) -> dict[str, Tensor]:
        """See `SemanticNetwork`: of the output, the auxiliary head, the boundaries, and the output along them."""
        auxiliary, output, boundary = (resize(x, labels.shape[1:]) for x in self.all_logits(images))
        sure = boundary.detach()[:, 0].sigmoid() > 0.8
        along = torch.where(sure, labels, self.ignore_index)
        return {
            "loss_seg": self.criterion(output, labels, self.ignore_index, count),
            "loss_aux": self.auxiliary(auxiliary, labels, self.ignore_index, count),
            "loss_boundary": 20.0 * balanced_bce(boundary[:, 0], boundaries(labels).to(boundary.dtype)),
            "loss_along": self.criterion(output, along, self.ignore_index),
        }


def boundaries(labels: Tensor, width: int = BOUNDARY_WIDTH) -> Tensor:
    """Where classes meet: `[B, H, W]` labels -> bool, true within about half of `width` pixels of another label.

    The authors take Canny edges of the label picture (which also lie where labels change, and are thinned) and widen
    them by a square of 4; this is the same without the thinning.
    """
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    left = width // 2
    padded = F.pad(edge[:, None].float(), (left, width - 1 - left, left, width - 1 - left))
    return F.max_pool2d(padded, width, 1)[:, 0] > 0


def balanced_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy in which positives weigh the share of negatives, and the reverse; over the batch."""
    with torch.autocast(logits.device.type, enabled=False):
        logits, targets = logits.float(), targets.float()
        share = targets.mean()
        return F.binary_cross_entropy_with_logits(logits, targets, torch.where(targets > 0, 1 - share, share))
