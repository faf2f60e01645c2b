"""Backbones: timm's models and ours behind one dense contract. Importing this registers ours with timm."""

import importlib
import pkgutil

from vistrain.backbones.backbone import Backbone
from vistrain.backbones.dense import DenseBackbone
from vistrain.backbones.depth_pyramid import DepthPyramid
from vistrain.backbones.timm_model import TimmModel

__all__ = ["Backbone", "DenseBackbone", "DepthPyramid", "TimmModel"]

# A paper is one file here and no edit elsewhere: each registers its variants when it is imported.
for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
