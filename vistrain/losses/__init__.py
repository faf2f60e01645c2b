"""Losses and criteria. Pure torch."""

from vistrain.losses.class_maps import OhemCrossEntropy, PixelCrossEntropy, PixelFocal, PixelTopK
from vistrain.losses.classification import AsymmetricLoss, BinaryCrossEntropy, SoftCrossEntropy
from vistrain.losses.dice import PixelDice, PixelLosses
from vistrain.losses.focal import focal_loss_sums
from vistrain.losses.foreground import foreground_loss, foreground_targets
from vistrain.losses.lovasz import LovaszSoftmax
from vistrain.losses.mask_criterion import MaskCriterion, MaskPrediction
from vistrain.losses.restoration import L1, MSE, Charbonnier, FrequencyLoss, PSNRLoss
from vistrain.losses.set_criterion import SetCriterion, SetPrediction, average_over_processes

__all__ = [
    "L1",
    "MSE",
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "Charbonnier",
    "FrequencyLoss",
    "LovaszSoftmax",
    "MaskCriterion",
    "MaskPrediction",
    "OhemCrossEntropy",
    "PSNRLoss",
    "PixelCrossEntropy",
    "PixelDice",
    "PixelFocal",
    "PixelLosses",
    "PixelTopK",
    "SetCriterion",
    "SetPrediction",
    "SoftCrossEntropy",
    "average_over_processes",
    "focal_loss_sums",
    "foreground_loss",
    "foreground_targets",
]
