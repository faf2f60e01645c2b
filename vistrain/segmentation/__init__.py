"""Segmentation networks, one file per paper. Pure torch."""

from vistrain.segmentation.daformer import DAFormerHead
from vistrain.segmentation.espnet import ESPNet, ESPNetC
from vistrain.segmentation.fcn import FCNHead
from vistrain.segmentation.segformer import SegFormerHead
from vistrain.segmentation.semantic import SemanticSegmenter
from vistrain.segmentation.semantic_fpn import FPNHead
from vistrain.segmentation.upernet import UPerHead
from vistrain.segmentation.vwformer import VWCityHead, VWHead

__all__ = [
    "DAFormerHead",
    "ESPNet",
    "ESPNetC",
    "FCNHead",
    "FPNHead",
    "SegFormerHead",
    "SemanticSegmenter",
    "UPerHead",
    "VWCityHead",
    "VWHead",
]
