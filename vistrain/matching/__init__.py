"""Assignment of predictions to objects. Pure torch."""

from vistrain.matching.hungarian import HungarianMatcher
from vistrain.matching.masks import MaskMatcher
from vistrain.matching.overlap import ATSSAssigner, OverlapAssigner, RandomSampler

__all__ = ["ATSSAssigner", "HungarianMatcher", "MaskMatcher", "OverlapAssigner", "RandomSampler"]
