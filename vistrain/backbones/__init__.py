"""Backbones: timm's models behind one dense contract, and name tables for ResNet weights of other libraries."""

from vistrain.backbones.backbone import Backbone

__all__ = ["Backbone"]
