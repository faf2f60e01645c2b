"""LightningModules, one per task; they never name a paper."""

from vistrain.tasks.base import Task
from vistrain.tasks.detection import DetectionTask
from vistrain.tasks.restoration import RestorationTask

__all__ = ["DetectionTask", "RestorationTask", "Task"]
