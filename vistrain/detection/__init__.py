"""Detectors, one file per paper, and what works with each of them. Pure torch."""

from vistrain.detection.deformable_detr import DeformableDETR
from vistrain.detection.dino import DINO
from vistrain.detection.focus_detr import FocusDETR
from vistrain.detection.set_detector import SetDetector
from vistrain.detection.tta import TestTimeAugmentation

__all__ = ["DINO", "DeformableDETR", "FocusDETR", "SetDetector", "TestTimeAugmentation"]
