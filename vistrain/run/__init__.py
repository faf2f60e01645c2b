"""From a composed config to something done: training, evaluation, prediction, reproduction, profiles."""

from vistrain.run.engine import fit, test
from vistrain.run.networks import build_model, load, load_checkpoint, load_official, task_class
from vistrain.run.parts import Parts, best_precision, build_parts, build_trainer

__all__ = [
    "Parts",
    "best_precision",
    "build_model",
    "build_parts",
    "build_trainer",
    "fit",
    "load",
    "load_checkpoint",
    "load_official",
    "task_class",
    "test",
]
