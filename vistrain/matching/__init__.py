"""Assignment of predictions to objects. Pure torch."""

from vistrain.matching.hungarian import HungarianMatcher
from vistrain.matching.masks import MaskMatcher

__all__ = ["HungarianMatcher", "MaskMatcher"]
