"""Data modules, data sets, transforms and collation; generated demo data."""

from vistrain.data.base.bands import Bands, MatchedBands
from vistrain.data.base.concatenated import Concatenated
from vistrain.data.base.images import read_image
from vistrain.data.base.module import DataModule
from vistrain.data.base.scenes import Scenes
from vistrain.data.base.transform import EvalTransform
from vistrain.data.classification.class_folders import ImageFolder, ImageList
from vistrain.data.classification.clips import ClipFolder
from vistrain.data.classification.generated import GeneratedPatterns
from vistrain.data.classification.imagenet import ImageNet
from vistrain.data.classification.module import ClassificationData
from vistrain.data.classification.sets import CIFAR10, CIFAR100, MNIST, Digits, EuroSAT, FashionMNIST
from vistrain.data.classification.transforms import EvalCrop, ImageAugment
from vistrain.data.classification.unlabelled import UnlabelledFolder
from vistrain.data.correspondence.generated import GeneratedMatches
from vistrain.data.correspondence.module import MatchingFolders
from vistrain.data.correspondence.pair_files import PairSplit
from vistrain.data.detection.coco2017 import Coco2017
from vistrain.data.detection.coco_sets import CocoDetection, CocoSplit
from vistrain.data.detection.collate import Sample, collate
from vistrain.data.detection.module import DetectionData
from vistrain.data.detection.pidray import PIDray
from vistrain.data.detection.shapes import GeneratedShapes
from vistrain.data.detection.transforms import DetrAugment, EvalResize, ScaleJitter
from vistrain.data.restoration.degradations import Bicubic, Chain, GaussianNoise, Jpeg
from vistrain.data.restoration.image_pairs import ImageSet
from vistrain.data.restoration.module import RestorationData
from vistrain.data.restoration.textures import GeneratedTextures
from vistrain.data.segmentation.adaptation import AdaptationFolders
from vistrain.data.segmentation.annotators import Annotator
from vistrain.data.segmentation.field_of_view import (
    DRIVE,
    AffineAugment,
    FieldOfViewFolders,
    ViewSplit,
)
from vistrain.data.segmentation.generated import GeneratedMasks
from vistrain.data.segmentation.generated_lanes import GeneratedLanes
from vistrain.data.segmentation.instances import CocoInstances, InstanceFolders, InstanceSplit, PIDrayInstances
from vistrain.data.segmentation.known_sets import (
    ADE20K,
    CamVid,
    Cityscapes,
    COCOStuff,
    PascalContext,
    PascalVOC,
)
from vistrain.data.segmentation.lanes import CULane, LaneData, TuSimple
from vistrain.data.segmentation.mask_folders import MaskFolders
from vistrain.data.segmentation.mask_pairs import MaskSplit
from vistrain.data.segmentation.module import SegmentationData
from vistrain.data.segmentation.panoptic import PanopticFolders, PanopticSplit
from vistrain.data.segmentation.panoptic_generated import GeneratedPanoptic
from vistrain.data.segmentation.panoptic_sets import ADE20KPanoptic, CityscapesPanoptic, CocoPanoptic
from vistrain.data.segmentation.rare_classes import RareClasses
from vistrain.data.segmentation.segment_transforms import SegmentAugment
from vistrain.data.segmentation.tcga_lgg import TCGALGG
from vistrain.data.segmentation.transforms import EvalBands, EvalScale, EvalStretch, MaskAugment
from vistrain.data.volumes.chaos import CHAOS
from vistrain.data.volumes.generated import GeneratedTumours
from vistrain.data.volumes.module import VolumeData
from vistrain.data.volumes.preparation import VolumePreparation
from vistrain.data.volumes.sets import BraTS, VolumeFolders, VolumeList
from vistrain.data.volumes.transforms import VolumeAugment

__all__ = [
    "ADE20K",
    "CHAOS",
    "CIFAR10",
    "CIFAR100",
    "DRIVE",
    "MNIST",
    "TCGALGG",
    "ADE20KPanoptic",
    "AdaptationFolders",
    "AffineAugment",
    "Annotator",
    "Bands",
    "Bicubic",
    "BraTS",
    "COCOStuff",
    "CULane",
    "CamVid",
    "Chain",
    "Cityscapes",
    "CityscapesPanoptic",
    "ClassificationData",
    "ClipFolder",
    "Coco2017",
    "CocoDetection",
    "CocoInstances",
    "CocoPanoptic",
    "CocoSplit",
    "Concatenated",
    "DataModule",
    "DetectionData",
    "DetrAugment",
    "Digits",
    "EuroSAT",
    "EvalBands",
    "EvalCrop",
    "EvalResize",
    "EvalScale",
    "EvalStretch",
    "EvalTransform",
    "FashionMNIST",
    "FieldOfViewFolders",
    "GaussianNoise",
    "GeneratedLanes",
    "GeneratedMasks",
    "GeneratedMatches",
    "GeneratedPanoptic",
    "GeneratedPatterns",
    "GeneratedShapes",
    "GeneratedTextures",
    "GeneratedTumours",
    "ImageAugment",
    "ImageFolder",
    "ImageList",
    "ImageNet",
    "ImageSet",
    "InstanceFolders",
    "InstanceSplit",
    "Jpeg",
    "LaneData",
    "MaskAugment",
    "MaskFolders",
    "MaskSplit",
    "MatchedBands",
    "MatchingFolders",
    "PIDray",
    "PIDrayInstances",
    "PairSplit",
    "PanopticFolders",
    "PanopticSplit",
    "PascalContext",
    "PascalVOC",
    "RareClasses",
    "RestorationData",
    "Sample",
    "ScaleJitter",
    "Scenes",
    "SegmentAugment",
    "SegmentationData",
    "TuSimple",
    "UnlabelledFolder",
    "ViewSplit",
    "VolumeAugment",
    "VolumeData",
    "VolumeFolders",
    "VolumeList",
    "VolumePreparation",
    "collate",
    "read_image",
]
