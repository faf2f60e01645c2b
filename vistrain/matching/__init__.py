"""Assignment of predictions to objects. Pure torch."""

from vistrain.matching.hungarian import HungarianMatcher

__all__ = ["HungarianMatcher"]
