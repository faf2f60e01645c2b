"""The network that a classification run trains: any timm model, a loss, and what the recipe does to its batches.

The linear probe's norm is MAE's (arXiv 2111.06377), written from the paper: the authors' code is CC BY-NC 4.0, and
nothing of it is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones.timm_model import TimmModel
from vistrain.checkpoints import KeyMap, under
from vistrain.classification.augment import BatchAugment
from vistrain.classification.distillation import Distillation
from vistrain.errors import ConfigError
from vistrain.layers.padding import Normalize
from vistrain.layers.precision import at_least_float32
from vistrain.losses.classification import BinaryCrossEntropy, SoftCrossEntropy
from vistrain.network import Network
from vistrain.predictions import ClassScores
from vistrain.structures import Exported, LabelSpace


class Classifier(Network):
    """Any timm model (or one of ours) as a classifier.

    Args:
        backbone: the model; its `trainable_blocks` makes this a linear probe (0) or a partial fine-tune.
        labels: the classes.
        loss: of logits and dense targets `[B, K]`; by default cross-entropy, or its binary form with `multi_label`.
        augment: what is done to training batches, or nothing.
        distillation: a teacher, or none.
        multi_label: an image may have any number of classes; the data must be of that kind, too.
        probe_norm: normalise features by their batch statistics before the classifier (MAE's linear probe, arXiv
            2111.06377, appendix A.1).

    Raises:
        ConfigError: parts that do not go together.
    """

    entrances = ("losses", "predict", "features")
    labels: LabelSpace

    def __init__(
        self,
        backbone: TimmModel,
        labels: LabelSpace,
        loss: nn.Module | None = None,
        augment: BatchAugment | None = None,
        distillation: Distillation | None = None,
        multi_label: bool = False,
        probe_norm: bool = False,
    ) -> None:
        super().__init__()
        if multi_label and isinstance(loss, SoftCrossEntropy):
            problem = "cross-entropy wants one class per image"
            raise ConfigError("loss", problem, "use losses.BinaryCrossEntropy or losses.AsymmetricLoss")
        if multi_label and distillation is not None:
            raise ConfigError("distillation", "teachers are for one class per image", "remove it or multi_label")
        if probe_norm and not isinstance(backbone.body.get_classifier(), nn.Linear):
            raise ConfigError(
                "probe_norm", f"the classifier of {backbone.name} is not a linear layer", "set it to false"
            )
        self.backbone, self.labels, self.multi_label = backbone, labels, multi_label
        self.preprocessing = backbone.preprocessing
        self.channels = len(self.preprocessing.mean)
        self.measured_size = self.preprocessing.input_size or (224, 224)
        self.normalize = Normalize(self.preprocessing)
        self.loss = loss or (BinaryCrossEntropy() if multi_label else SoftCrossEntropy())
        self.augment, self.distillation = augment, distillation
        self.probe_norm = nn.BatchNorm1d(backbone.num_features, eps=1e-6, affine=False) if probe_norm else None
        self.key_maps = (TimmNames(backbone),)
        self.class_layers = tuple(rf"^backbone\.body\.{re.escape(name)}\." for name in backbone.classifiers)
        self.input_layers = under("backbone.", backbone.input_layers)
        if distillation is not None:
            backbone.learn_from_teachers()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        return self._logits(images)[0]

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """What the classifier sees, `[B, F]`, of a batch with `image` and `size`."""
        images, _ = self.normalize(batch["image"], batch["size"])
        return self.backbone.features(images)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses.

        Args:
            batch: `image`, `size`, and `labels`: `[B]` int64, or `[B, K]` of 0 and 1 with `multi_label`.

        Returns:
            scalars `loss_class` and, with a teacher, `loss_distill`.

        Raises:
            ConfigError: the labels are of the other kind, or the batch cannot be mixed.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        targets = self._dense(batch["labels"])
        if self.augment is not None:
            images, targets = self.augment(images, targets)
        logits, student = self._logits(images)
        if self.distillation is None:
            return {"loss_class": self.loss(logits, targets)}
        share = self.distillation.weight
        learned = self.distillation(images, self.preprocessing, student)
        return {"loss_class": (1 - share) * self.loss(logits, targets), "loss_distill": share * learned}

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[ClassScores]:
        """Probabilities of all classes for each image of a batch with `image` and `size`."""
        images, _ = self.normalize(batch["image"], batch["size"])
        logits = at_least_float32(self(images))
        scores = logits.sigmoid() if self.multi_label else logits.softmax(-1)
        return [ClassScores(row, self.multi_label) for row in scores]

    def exported_facts(self) -> Exported:
        """See `Network`."""
        scores = "1 / (1 + np.exp(-logits))" if self.multi_label else "np.exp(logits) / np.exp(logits).sum()"
        reading = (
            'logits = found["logits"] - found["logits"].max()' if not self.multi_label else 'logits = found["logits"]',
            f"scores = {scores}",
            "for k in np.argsort(-scores)[:5]:",
            '    print(facts["classes"][k], f"{scores[k]:.4f}")',
        )
        meaning = "sigmoid makes scores of them" if self.multi_label else "softmax makes probabilities of them"
        return Exported({"logits": f"[B, K] logits of the classes; {meaning}"}, reading)

    def check_size(self, *size: int) -> None:
        """See `TimmModel.check_size`."""
        self.backbone.check_size(*size)

    def no_weight_decay(self) -> set[str]:
        """See `Network`: what the model's authors exempt."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layers_above(self) -> dict[str, int] | None:
        """See `Network`: timm's layers; the classifier is the topmost."""
        layers = self.backbone.layers_above()
        return None if layers is None else {f"backbone.{name}": above for name, above in layers.items()}

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for the labels and for the teacher; the same where the model has no token of its own for it."""
        if self.probe_norm is not None:
            logits: Tensor = self.backbone.body.get_classifier()(self.probe_norm(self.backbone.features(images)))
            return logits, logits
        found = self.backbone(images)
        return found if isinstance(found, tuple) else (found, found)

    def _dense(self, labels: Tensor) -> Tensor:
        if (labels.ndim == 2) != self.multi_label:
            kind = "several classes per image" if labels.ndim == 2 else "one class per image"
            raise ConfigError(
                "model.multi_label", f"is {str(self.multi_label).lower()}, and the data has {kind}", "make both agree"
            )
        if self.multi_label:
            return labels.float()
        return F.one_hot(labels, self.labels.num_classes).float()


class TimmNames(KeyMap):
    """timm's names of a backbone's weights, and the authors' where timm can convert them, as ours.

    Args:
        backbone: whose body is to be loaded.
    """

    backbone: TimmModel

    def __init__(self, backbone: TimmModel) -> None:
        super().__init__("timm", marker="")
        object.__setattr__(self, "backbone", backbone)  # the base is frozen

    def __deepcopy__(self, memo: dict[int, Any]) -> TimmNames:
        copied: Any = memo.get(id(self.backbone), self.backbone)
        return TimmNames(copied)

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under our names.

        Raises:
            WeightsError: timm cannot read them as this model.
        """
        return {f"backbone.body.{name}": value for name, value in self.backbone.convert(state_dict).items()}

    def export(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the names of the backbone's authors; of models that timm has, under timm's.

        Raises:
            WeightsError: a name cannot be told.
        """
        prefix = "backbone.body."
        return self.backbone.official(
            {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        )
