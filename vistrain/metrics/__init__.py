"""Metrics: a computation with explicit arguments is a class, a protocol is a name for one frozen set of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vistrain.errors import ConfigError, nearest
from vistrain.metrics.accuracy import Accuracy, MultiLabel
from vistrain.metrics.annotator_agreement import AnnotatorAgreement
from vistrain.metrics.base import Metric, Record, Unit
from vistrain.metrics.binary_pixels import BinaryPixels
from vistrain.metrics.boundary_iou import BoundaryIoU
from vistrain.metrics.cityscapes_iou import CityscapesIoU
from vistrain.metrics.coco import CocoBoundary, CocoBox, CocoMask
from vistrain.metrics.displacement_error import DISPLACEMENTS, DisplacementError
from vistrain.metrics.image_quality import QUALITY, ImageQuality
from vistrain.metrics.lane_metrics import CULaneF1, TuSimpleAccuracy
from vistrain.metrics.lesions import LESIONS, LesionOverlap
from vistrain.metrics.lpips import Lpips
from vistrain.metrics.mean_iou import IOU, MeanIoU
from vistrain.metrics.panoptic_quality import PanopticQuality
from vistrain.metrics.probe_accuracy import ProbeAccuracy
from vistrain.metrics.reconstruction_loss import ReconstructionLoss
from vistrain.metrics.region_components import RegionComponents
from vistrain.metrics.region_overlap import REGIONS, RegionOverlap

# Each builds a metric from what it needs to know; the defaults are the protocol's frozen arguments.
PROTOCOLS: dict[str, Callable[..., Metric]] = {
    "coco_box": CocoBox,
    "coco_mask": CocoMask,
    "coco_boundary": CocoBoundary,
    "accuracy": Accuracy,
    "multi_label": MultiLabel,
    **{name: functools.partial(ImageQuality, name) for name in QUALITY},
    "lpips": Lpips,
    **{name: functools.partial(MeanIoU, name) for name in IOU},
    "cityscapes": CityscapesIoU,
    "boundary_iou": BoundaryIoU,
    "vessels": BinaryPixels,
    "annotators": AnnotatorAgreement,
    **{name: functools.partial(RegionOverlap, name) for name in REGIONS},
    **{name: functools.partial(LesionOverlap, name) for name in LESIONS},
    "components": RegionComponents,
    "panoptic": PanopticQuality,
    "culane": CULaneF1,
    "tusimple": TuSimpleAccuracy,
    **{name: functools.partial(DisplacementError, name) for name in DISPLACEMENTS},
    "reconstruction": ReconstructionLoss,
    "probes": ProbeAccuracy,
}

METRICS: tuple[type[Metric], ...] = (
    CocoBox,
    CocoMask,
    CocoBoundary,
    Accuracy,
    MultiLabel,
    ImageQuality,
    Lpips,
    MeanIoU,
    BinaryPixels,
    AnnotatorAgreement,
    RegionOverlap,
    LesionOverlap,
    RegionComponents,
    CityscapesIoU,
    BoundaryIoU,
    PanopticQuality,
    CULaneF1,
    TuSimpleAccuracy,
    DisplacementError,
    ReconstructionLoss,
    ProbeAccuracy,
)

__all__ = [
    "DISPLACEMENTS",
    "IOU",
    "LESIONS",
    "PROTOCOLS",
    "QUALITY",
    "REGIONS",
    "Accuracy",
    "AnnotatorAgreement",
    "BinaryPixels",
    "BoundaryIoU",
    "CULaneF1",
    "CityscapesIoU",
    "CocoBoundary",
    "CocoBox",
    "CocoMask",
    "DisplacementError",
    "ImageQuality",
    "LesionOverlap",
    "Lpips",
    "MeanIoU",
    "Metric",
    "MultiLabel",
    "PanopticQuality",
    "ProbeAccuracy",
    "ReconstructionLoss",
    "Record",
    "RegionComponents",
    "RegionOverlap",
    "TuSimpleAccuracy",
    "Unit",
    "protocol",
    "unit",
    "unit_of",
]


def protocol(name: str, **facts: Any) -> Any:
    """The metric that a protocol names.

    Args:
        name: a protocol (`coco_box`).
        facts: what the metric needs to know (`ground_truth` and `labels`, or `scale`), and any argument to change; a
            changed one makes the metric's `protocol` print as `custom(...)`.

    Raises:
        ConfigError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise ConfigError("metrics", f"unknown protocol {name!r}", nearest(str(name), PROTOCOLS))
    return PROTOCOLS[name](**facts)


def unit_of(name: str) -> Unit | None:
    """What a number of a protocol is measured in, by its name alone: `coco/AP`, `denoise/Set12/psnr`; None where no
    protocol gives it."""
    family = name.partition("/")[0]
    return next((metric.unit(name) for metric in METRICS if family in metric.families), None)


def unit(name: str) -> Unit:
    """As `unit_of`, and a plain number, of which much is good, where no protocol gives it."""
    return unit_of(name) or Unit()
