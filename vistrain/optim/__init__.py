"""Parameter groups and learning-rate schedules."""

from vistrain.optim.groups import ParameterGroups
from vistrain.optim.lora import LoRA
from vistrain.optim.schedules import Constant, Cosine, CosineWave, MultiStep, Poly, Schedule

__all__ = ["Constant", "Cosine", "CosineWave", "LoRA", "MultiStep", "ParameterGroups", "Poly", "Schedule"]
