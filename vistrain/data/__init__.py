"""Data modules, data sets, transforms and collation; generated demo data."""

from vistrain.data.coco2017 import Coco2017
from vistrain.data.collate import Sample, collate
from vistrain.data.detection import CocoDetection, CocoSplit
from vistrain.data.images import read_image
from vistrain.data.module import DataModule
from vistrain.data.shapes import GeneratedShapes
from vistrain.data.transforms import DetrAugment, EvalResize

__all__ = [
    "Coco2017",
    "CocoDetection",
    "CocoSplit",
    "DataModule",
    "DetrAugment",
    "EvalResize",
    "GeneratedShapes",
    "Sample",
    "collate",
    "read_image",
]
