"""Parameter groups and learning-rate schedules."""

from vistrain.optim.groups import ParameterGroups
from vistrain.optim.schedules import Constant, Cosine, MultiStep, Poly, Schedule

__all__ = ["Constant", "Cosine", "MultiStep", "ParameterGroups", "Poly", "Schedule"]
