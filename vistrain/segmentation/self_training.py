"""Self-training with mixed images, for labels of one domain and images of another: what adaptation methods stand on.

DACS (arXiv 2007.08702) as DAFormer takes it (arXiv 2111.14887, section 3.1): a moving average of the network labels
the other domain's images; half of a labelled image's classes are pasted into each of them. Written from the papers;
authors' code: lhoyer/DAFormer, Apache-2.0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.averaged import AveragedTeacher
from vistrain.layers.conv import resize
from vistrain.segmentation.semantic import SemanticSegmenter


class SelfTrainedSegmenter(SemanticSegmenter):
    """A segmenter that learns from labelled images, and from `unlabelled` `[B, C, H, W]` ones beside them in a batch,
    of the same size and as many (`data.AdaptationFolders`).

    Args:
        decay: of the average, once 1 - 1 / (step + 1) has passed it.
        threshold: probability above which a label counts; the share of an image's pixels that are above it is the
            weight of all its labels.
        mixed_weight: of the loss on mixed images.
        base: see `SemanticSegmenter`.

    Raises:
        ConfigError: a number is out of its range.
    """

    class_layers = (r"^(teacher\.network\.)?(decode|auxiliary)_head\.(\d+\.)?(conv_seg|linear_pred)\.",)

    def __init__(
        self, *, decay: float = 0.999, threshold: float = 0.968, mixed_weight: float = 1.0, **base: Any
    ) -> None:
        super().__init__(**base)
        if not 0 <= decay < 1 or not 0 <= threshold < 1 or mixed_weight < 0:
            problem = f"decay={decay}, threshold={threshold}, mixed_weight={mixed_weight}"
            raise ConfigError("model", problem, "the first two in 0..1, and a weight of 0 or more")
        self.decay, self.threshold, self.mixed_weight = decay, threshold, mixed_weight
        self.key_maps = ()  # files hold no average; the backbone's are model.backbone.pretrained's to read
        teacher = copy.deepcopy(self)
        teacher.auxiliary_head = None
        self.teacher = AveragedTeacher(teacher)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """See `SemanticNetwork`; and `loss_mixed`, and what a subclass learns from mixed images.

        Raises:
            ConfigError: the batch has no unlabelled images.
        """
        losses = super().losses(batch)
        if "unlabelled" not in batch:
            raise ConfigError("data.type", "gives no unlabelled images", "take data.AdaptationFolders")
        images = self.normalize(batch["image"], batch["size"])[0]
        others, padding = self.normalize(batch["unlabelled"], batch["unlabelled_size"])
        labels = self.label_maps(batch)
        found, quality = self.labelled(others)
        pasted = pasted_classes(labels, self.ignore_index)
        mixed = torch.where(pasted[:, None], images, others)
        trust = torch.where(padding, torch.zeros_like(quality)[:, None, None], quality[:, None, None])
        weights = torch.where(pasted, torch.ones_like(trust), trust)
        labels_mixed = torch.where(pasted, labels, found)
        return losses | self.mixed_losses(mixed, labels_mixed, weights)

    def mixed_losses(self, images: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """`loss_mixed`.

        Args:
            images: `[B, C, H, W]`, normalised.
            labels: `[B, H, W]` int64.
            weights: `[B, H, W]`, of each pixel.
        """
        return {"loss_mixed": self.mixed_weight * self.weighted_loss(self(images), labels, weights)}

    def weighted_loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The mean over all pixels of their weighted cross-entropies; logits `[B, K, h, w]`, others as above."""
        with torch.autocast(logits.device.type, enabled=False):
            large = resize(logits.float(), labels.shape[1:], self.align_corners)
            return (F.cross_entropy(large, labels, ignore_index=self.ignore_index, reduction="none") * weights).mean()

    @torch.no_grad()
    def labelled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The average's labels of normalised images, `[B, H, W]` int64, and how far each image is trusted, `[B]`."""
        logits = self.teacher.network(images).float()
        chance, labels = resize(logits, images.shape[-2:], self.align_corners).softmax(1).max(1)
        return labels, (chance > self.threshold).float().mean((1, 2))

    def on_step_end(self, step: int) -> None:
        """Let the average follow."""
        self.teacher.follow(self, min(1 - 1 / (step + 1), self.decay), step)


def pasted_classes(labels: Tensor, ignored: int) -> Tensor:
    """True on the pixels of half of each image's classes (rounded up), drawn by torch's generator: `[B, H, W]` int64 ->
    bool. Ignored pixels are never pasted."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for mask, image in zip(found, labels, strict=True):
        classes = image.unique()
        classes = classes[classes != ignored]
        chosen = classes[torch.randperm(len(classes))[: (len(classes) + 1) // 2].to(classes.device)]
        mask |= torch.isin(image, chosen)
    return found
