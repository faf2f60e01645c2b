"""Data modules, data sets, transforms and collation; generated demo data."""

from vistrain.data.classification_folders import ImageFolder, ImageList
from vistrain.data.classification_generated import GeneratedPatterns
from vistrain.data.classification_imagenet import ImageNet
from vistrain.data.classification_sets import CIFAR10, CIFAR100, MNIST, Digits, EuroSAT, FashionMNIST
from vistrain.data.classification_transforms import EvalCrop, ImageAugment
from vistrain.data.coco2017 import Coco2017
from vistrain.data.collate import Sample, collate
from vistrain.data.degradations import Bicubic, Chain, GaussianNoise, Jpeg
from vistrain.data.detection import CocoDetection, CocoSplit
from vistrain.data.image_pairs import ImageSet
from vistrain.data.images import read_image
from vistrain.data.module import DataModule
from vistrain.data.restoration import RestorationData
from vistrain.data.shapes import GeneratedShapes
from vistrain.data.textures import GeneratedTextures
from vistrain.data.transforms import DetrAugment, EvalResize

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Bicubic",
    "Chain",
    "Coco2017",
    "CocoDetection",
    "CocoSplit",
    "DataModule",
    "DetrAugment",
    "Digits",
    "EuroSAT",
    "EvalCrop",
    "EvalResize",
    "FashionMNIST",
    "GaussianNoise",
    "GeneratedPatterns",
    "GeneratedShapes",
    "GeneratedTextures",
    "ImageAugment",
    "ImageFolder",
    "ImageList",
    "ImageNet",
    "ImageSet",
    "Jpeg",
    "RestorationData",
    "Sample",
    "collate",
    "read_image",
]
