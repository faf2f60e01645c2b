"""Detectors, one file per paper. Pure torch."""

from vistrain.detection.deformable_detr import DeformableDETR

__all__ = ["DeformableDETR"]
