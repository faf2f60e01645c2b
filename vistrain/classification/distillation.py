"""Learning from a teacher: its probabilities (Hinton et al. 2015, arXiv 1503.02531) or its choice (DeiT, arXiv
2012.12877, section 4).

Authors' code of DeiT: github.com/facebookresearch/deit (losses.py), CC BY-NC 4.0 in early versions and Apache-2.0 in
later ones; this is written from the papers' formulas.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.backbones.timm_model import TimmModel
from vistrain.devices import upload
from vistrain.errors import ConfigError
from vistrain.layers.precision import at_least_float32
from vistrain.structures import Factory, Preprocessing


class Distillation:
    """A teacher and what is learned from it. Models with a distillation token (`deit_*_distilled_*`) learn it there.

    The teacher is built at the first step (a checkpoint needs it no more), sees the augmented images that the student
    sees, normalised its own way, and is neither trained nor stored.

    Args:
        teacher: any classifier for the same classes, with `pretrained`; a file may be a checkpoint of ours.
        kind: `hard`: cross-entropy with the teacher's first class; `soft`: Kullback-Leibler divergence of the
            probabilities at a temperature, times its square, mean over the batch.
        weight: share of this loss in the sum; the rest is the loss on the labels.
        temperature: of `soft`.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        teacher: Factory[TimmModel],
        kind: Literal["hard", "soft"] = "hard",
        weight: float = 0.5,
        temperature: float = 3.0,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ConfigError("weight", f"{weight} is not in 0..1")
        if temperature <= 0:
            raise ConfigError("temperature", f"{temperature} is not positive")
        self.teacher, self.kind, self.weight, self.temperature = teacher, kind, weight, temperature
        self._built: TimmModel | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Distillation:
        return self  # nothing in it learns: averages of the student share the teacher

    def __call__(self, images: Tensor, seen_by: Preprocessing, logits: Tensor) -> Tensor:
        """The unweighted loss, a scalar.

        Args:
            images: `[B, C, H, W]` as the student gets them.
            seen_by: how they were normalised.
            logits: `[B, K]` of the student.

        Raises:
            ConfigError, WeightsError: the teacher cannot be built, or has no weights for these classes.
        """
        teacher = self._teacher(images.device)
        with torch.no_grad():
            answer = teacher(_renormalised(images, seen_by, teacher.preprocessing))
            wanted = at_least_float32(answer[0] if isinstance(answer, tuple) else answer)
        if self.kind == "hard":
            return F.cross_entropy(at_least_float32(logits), wanted.argmax(-1))
        t = self.temperature
        ours, theirs = F.log_softmax(at_least_float32(logits) / t, -1), F.log_softmax(wanted / t, -1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * t * t

    def _teacher(self, device: torch.device) -> TimmModel:
        if self._built is None:
            teacher = self.teacher().eval().requires_grad_(False)
            if not teacher.knows_classes:
                problem = f"{teacher.name} has no weights for the data's classes, so there is nothing to learn from it"
                remedy = "set its `pretrained` to weights for these classes, such as a best.ckpt that you fine-tuned"
                raise ConfigError("model.distillation.teacher", problem, remedy)
            self._built = teacher.to(device)
        return self._built


def _renormalised(images: Tensor, old: Preprocessing, new: Preprocessing) -> Tensor:
    """Normalised images as another network wants them; the pixels stay where they are."""
    if old.channel_order != new.channel_order:
        images = images.flip(1)
    given = (_in_order(old.mean, old, new), _in_order(old.std, old, new), new.mean, new.std)
    if given[:2] == given[2:]:
        return images
    mean, std, new_mean, new_std = (upload(values, images.device)[:, None, None] for values in given)
    return images * (std / new_std) + (mean - new_mean) / new_std


def _in_order(values: tuple[float, ...], old: Preprocessing, new: Preprocessing) -> tuple[float, ...]:
    return values if old.channel_order == new.channel_order else values[::-1]
