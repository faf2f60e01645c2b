"""Folders of label files, of whatever program, measured against the truth under a protocol."""

from __future__ import annotations

from pathlib import Path

import torch

from vistrain.data.base.module import DataModule
from vistrain.data.coco.kinds import refuse_other_kind
from vistrain.data.segmentation.label_files import SUFFIXES
from vistrain.data.segmentation.module import SegmentationData
from vistrain.errors import ConfigError, DataError
from vistrain.metrics import IOU, protocol
from vistrain.metrics.mean_iou import IoUResult
from vistrain.predictions import Segmentation
from vistrain.tasks.segmentation.predictor import SegmentationPredictor


def evaluate_masks(predictions: Path, data: DataModule, name: str = "miou") -> IoUResult:
    """Measure a folder of label files against a data module's test split.

    Args:
        predictions: holds `NAME.png` (or another lossless file) for each image, with the data's own values; or is what
            `vistrain predict` wrote.
        data: of images with class maps.
        name: a protocol of `IOU`.

    Raises:
        ConfigError: the data has no class maps, or the protocol is not one of theirs.
        DataError: a file is missing, cannot be read, or has another size than its truth.
    """
    if not isinstance(data, SegmentationData):
        raise ConfigError("data.type", f"{type(data).__name__} has no class maps")
    if name not in IOU:
        raise ConfigError("--protocol", f"{name!r} is none for class maps", f"use {', '.join(IOU)}")
    own = predictions / SegmentationPredictor.pictures / SegmentationPredictor.masks
    if not own.is_dir():
        remedy = "give a folder of label files, or what `vistrain predict` wrote with a network for class maps"
        refuse_other_kind(predictions, "class maps", remedy)
        if not predictions.is_dir():
            raise DataError(str(predictions), "is no folder of predictions", remedy)
    data.prepare_data()
    folder = own if own.is_dir() else predictions
    metric, records = protocol(name, labels=data.labels), []
    pairs, missing = data.pairs("test"), []
    for pair in pairs:
        # By the pair's name; or by the image's, as `vistrain predict` calls them: with the suffix, but of JPEG and PNG.
        called = (pair.name, *(str(Path(pair.name).with_name(n)) for n in (pair.image.stem, pair.image.name)))
        files = [folder / f"{one}{suffix}" for one in called for suffix in SUFFIXES]
        file = next((f for f in (*files, *(folder / f.name for f in files)) if f.is_file()), None)
        if file is None:
            missing.append(pair)
            continue
        if missing:
            continue
        truth, found = (data.rule.read(path) for path in (pair.mask, file))
        if found.shape != truth.shape:
            sizes = [f"{height} x {width}" for height, width in (found.shape, truth.shape)]
            raise DataError(str(file), f"is {sizes[0]} pixels (height x width), its truth {pair.mask} {sizes[1]}")
        if (found == data.rule.ignored).any():
            raise DataError(str(file), "holds values that are ignored, not classes", "predict a class for each pixel")
        maps = [torch.from_numpy(x) for x in (truth, found)]
        target = {"label_map": maps[0]}
        if data.instances is not None:
            target["instance_map"] = torch.from_numpy(data.instances(pair))
        records += metric.update([pair.name], [Segmentation(semantic=maps[1].long())], [target])
    if missing:
        problem = f"{len(missing)} of {len(pairs)} images of the test split have no prediction in it"
        remedy = f"predict all images; label files are called as images are: {missing[0].name}.png"
        raise DataError(str(folder), f"{problem}, such as {missing[0].image}", remedy)
    metric.compute(records)
    return metric.result
