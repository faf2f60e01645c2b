"""From a picture to a result, one predictor for each task, and the files around it."""

from vistrain.predictors.base import Predictor, choose_device, take
from vistrain.predictors.classification import ClassificationPredictor
from vistrain.predictors.detection import DetectionPredictor
from vistrain.predictors.inputs import ImageFile, find_images, picture_paths, save_picture
from vistrain.predictors.restoration import RestorationPredictor

__all__ = [
    "ClassificationPredictor",
    "DetectionPredictor",
    "ImageFile",
    "Predictor",
    "RestorationPredictor",
    "choose_device",
    "find_images",
    "picture_paths",
    "save_picture",
    "take",
]
