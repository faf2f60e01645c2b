"""LightningModules, one per task; they never name a paper."""

from vistrain.tasks.base import Task
from vistrain.tasks.classification import ClassificationTask, NeighbourTask
from vistrain.tasks.detection import DetectionTask
from vistrain.tasks.restoration import RestorationTask

__all__ = ["ClassificationTask", "DetectionTask", "NeighbourTask", "RestorationTask", "Task"]
