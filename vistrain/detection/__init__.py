"""Detectors, one file per paper. Pure torch."""

from vistrain.detection.deformable_detr import DeformableDETR
from vistrain.detection.dino import DINO
from vistrain.detection.focus_detr import FocusDETR

__all__ = ["DINO", "DeformableDETR", "FocusDETR"]
