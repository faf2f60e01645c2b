"""Detectors, one file per paper, and what works with each of them. Pure torch."""

from vistrain.detection.atss import ATSS, ATSSHead
from vistrain.detection.cascade_mask_rcnn import CascadeMaskRCNN
from vistrain.detection.deformable_detr import DeformableDETR
from vistrain.detection.dino import DINO
from vistrain.detection.focus_detr import FocusDETR
from vistrain.detection.gfl import GFL, GFLHead
from vistrain.detection.mask_rcnn import FasterRCNN, MaskRCNN
from vistrain.detection.retinanet import RetinaHead, RetinaNet
from vistrain.detection.roi_heads import BoxHead, MaskHead
from vistrain.detection.rpn import RPNHead
from vistrain.detection.set_detector import SetDetector
from vistrain.detection.tta import TestTimeAugmentation

__all__ = [
    "ATSS",
    "DINO",
    "GFL",
    "ATSSHead",
    "BoxHead",
    "CascadeMaskRCNN",
    "DeformableDETR",
    "FasterRCNN",
    "FocusDETR",
    "GFLHead",
    "MaskHead",
    "MaskRCNN",
    "RPNHead",
    "RetinaHead",
    "RetinaNet",
    "SetDetector",
    "TestTimeAugmentation",
]
