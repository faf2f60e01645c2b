"""Classifiers: any timm model under a recipe, distillation and probes. Pure torch."""

from vistrain.classification.augment import BatchAugment
from vistrain.classification.classifier import Classifier
from vistrain.classification.distillation import Distillation

__all__ = ["BatchAugment", "Classifier", "Distillation"]
