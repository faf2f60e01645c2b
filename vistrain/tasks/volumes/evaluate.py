"""Folders of NIfTI label maps, of whatever program, measured against the truth under a protocol."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from vistrain.data.base.module import DataModule
from vistrain.data.volumes.module import VolumeData
from vistrain.data.volumes.nifti import SUFFIXES, read_geometry, read_labels, stem_of
from vistrain.data.volumes.prepared import read_truth
from vistrain.errors import ConfigError, DataError
from vistrain.metrics import LESIONS, REGIONS, protocol
from vistrain.metrics.lesions import LesionResult
from vistrain.metrics.region_overlap import RegionResult
from vistrain.predictions import Segmentation
from vistrain.tasks.volumes.predictor import VolumePredictor

log = logging.getLogger(__name__)


def evaluate_volumes(predictions: Path, data: DataModule, name: str = "regions") -> RegionResult | LesionResult:
    """Measure a folder of label maps against a data module's test split.

    Args:
        predictions: holds `CASE.nii.gz` (or `.nii`) for each case, with the data's own values; or is what `vistrain
            predict` wrote.
        data: of volumes.
        name: a protocol of `REGIONS` or `LESIONS`.

    Raises:
        ConfigError: the data has no volumes, or the protocol is not one of theirs.
        DataError: a file is missing, cannot be read, or lies elsewhere than its truth.
    """
    if not isinstance(data, VolumeData):
        raise ConfigError("data.type", f"{type(data).__name__} has no volumes")
    if name not in (protocols := {**REGIONS, **LESIONS}):
        raise ConfigError("--protocol", f"{name!r} is none for regions", f"use {', '.join(protocols)}")
    if not predictions.is_dir():
        raise DataError(str(predictions), "is no folder of predictions", "give one of NIfTI files")
    own = predictions / VolumePredictor.pictures / VolumePredictor.label_maps
    folder = own if own.is_dir() else predictions
    metric, records, cases = protocol(name, labels=data.labels), [], data.cases("test")
    known = {case.id for case in cases}
    places = (folder, *(folder / case for case in known))
    others = {stem_of(file) for place in places for file in place.glob("[!.]*.nii*")} - known
    if others:
        log.warning("%d predictions of no case of the test split are left out, such as %s", len(others), min(others))
    for case in cases:
        files = [place / f"{case.id}{suffix}" for place in (folder, folder / case.id) for suffix in SUFFIXES]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            remedy = f"call it {case.id}.nii.gz; the test split has {len(known)} cases"
            raise DataError(case.id, f"has no prediction in {folder}", remedy)
        geometry = read_geometry(case.images[0])
        truth = read_truth(case, geometry, data.rule)
        values, there = read_labels(file)
        if difference := geometry.differs(there):
            raise DataError(
                str(file), f"has {difference}, unlike {case.images[0].name}", "predict in the case's voxels"
            )
        found = data.rule.channels(values, str(file))
        target = {"label_map": torch.from_numpy(truth), "spacing": torch.tensor(geometry.spacing)}
        records += metric.update([case.id], [Segmentation(semantic=torch.from_numpy(found))], [target])
    metric.compute(records)
    result: RegionResult | LesionResult = metric.result
    return result
