"""LightningModules, one per task; they never name a paper."""

from vistrain.tasks.base.task import Task
from vistrain.tasks.classification.task import ClassificationTask, NeighbourTask
from vistrain.tasks.correspondence.task import CorrespondenceTask
from vistrain.tasks.detection.analysis import ErrorAnalysis
from vistrain.tasks.detection.task import DetectionTask
from vistrain.tasks.pretraining.task import PretrainingTask
from vistrain.tasks.restoration.task import RestorationTask
from vistrain.tasks.segmentation.lanes import LaneTask
from vistrain.tasks.segmentation.panoptic_task import PanopticTask
from vistrain.tasks.segmentation.task import SegmentationTask
from vistrain.tasks.volumes.task import VolumeTask

__all__ = [
    "ClassificationTask",
    "CorrespondenceTask",
    "DetectionTask",
    "ErrorAnalysis",
    "LaneTask",
    "NeighbourTask",
    "PanopticTask",
    "PretrainingTask",
    "RestorationTask",
    "SegmentationTask",
    "Task",
    "VolumeTask",
]
