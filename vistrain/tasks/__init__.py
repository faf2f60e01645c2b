"""LightningModules, one per task; they never name a paper."""

from vistrain.tasks.base import Task
from vistrain.tasks.detection import DetectionTask

__all__ = ["DetectionTask", "Task"]
