"""Prepared cases on disk, uncompressed, read through memory maps: a patch costs milliseconds, not a decompression.

A folder for each choice of settings holds, for each case, `CASE.image.npy` float16 `[C, d, h, w]`, `CASE.label.npy`
and `CASE.truth.npy` uint8 (as the network sees the case, and in its own voxels), `CASE.places.npy` int32 `[N, 4]`
(class, z, y, x of some voxels of each class), and `CASE.json`, which says what they were made from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vistrain.data.base.check import opened
from vistrain.data.volumes.cases import NUMBERED, Case
from vistrain.data.volumes.label_slices import read_label_slices
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.nifti import Geometry, read_geometry, read_labels, read_mask, read_volume, stem_of
from vistrain.data.volumes.preparation import VolumePreparation, resampled_labels
from vistrain.errors import DataError
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

VERSION = 1  # of the files; another one is another folder
PLACES = 4000  # voxels of each class that patches may be drawn around
PARTS = ("image", "label", "truth", "places")
LARGEST = 60000.0  # of float16


@dataclass(frozen=True)
class PreparedCase:
    """A case as it lies in the cache.

    Attributes:
        folder: of the cache.
        id: the case's.
        facts: what its JSON file says: `spacing` (mm, z y x, of the case), `sides` (of the case), `box`, `shape` (as
            the network sees it), `voxels` of each class, and what it was made from.
    """

    folder: Path
    id: str
    facts: Mapping[str, Any]

    def part(self, name: str) -> np.ndarray:
        """One of its arrays, mapped into memory, read only.

        Raises:
            DataError: it is gone or cut off.
        """
        path = part_file(self.folder, self.id, name)
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            problem = f"its prepared file cannot be read ({path})"
            raise DataError(self.id, problem, "start the run again: it is made anew") from error
        return found


class Cache:
    """The prepared cases of a set under one choice of settings.

    Args:
        parent: folder for the caches of all settings.
        preparation: what is done to a case.
        labels: its classes.
    """

    def __init__(self, parent: Path, preparation: VolumePreparation, labels: VoxelLabels) -> None:
        self.preparation, self.labels = preparation, labels
        self.settings = {"version": VERSION, "preparation": preparation.to_node(), "labels": labels.to_dict()}
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = parent / f"prepared-{digest}"

    def refuse_foreign(self) -> None:
        """Refuse a folder that other settings were written into.

        Raises:
            DataError: naming them.
        """
        file = self.folder / "settings.json"
        if not file.is_file():
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        wanted = json.loads(json.dumps(self.settings))
        if found != wanted:
            known = found if isinstance(found, dict) else {}
            keys = [key for key in wanted if known.get(key) != wanted[key]]
            problem = f"was made with other settings ({', '.join(keys) or 'unreadable'})"
            raise DataError(str(self.folder), problem, "delete the folder, or set data.cache to another one")

    def get(self, cases: Sequence[Case]) -> list[PreparedCase]:
        """The cases, prepared where they are not: new ones, those whose files have changed, and those cut off.

        Raises:
            DataError: a case cannot be read (the first one, and how many others), or the cache cannot be written.
        """
        self.refuse_foreign()
        found: dict[str, PreparedCase] = {}
        missing = []
        for case in cases:
            ready = self._ready(case)
            if ready is None:
                missing.append(case)
            else:
                found[case.id] = ready
        if missing:
            with whole_file(self.folder / "settings.json") as partial:
                partial.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
            log.info("preparing %d of %d cases in %s", len(missing), len(cases), self.folder)
            bad = []
            for case, result in opened(missing, self.prepare, "preparing cases"):
                if isinstance(result, DataError):
                    bad.append(result)
                else:
                    found[case.id] = result
            if bad:
                more = f"; {len(bad) - 1} other cases cannot be used either" if len(bad) > 1 else ""
                raise DataError(bad[0].where, bad[0].problem + more, bad[0].remedy or "`vistrain check` lists all")
        return [found[case.id] for case in cases]

    def _ready(self, case: Case) -> PreparedCase | None:
        """A case that lies there whole, made of the files as they are now."""
        try:
            facts = json.loads((self.folder / f"{case.id}.json").read_text(encoding="utf-8"))
            if facts["sources"] != sources_of(case):
                log.info("%s: its files have changed, it is prepared again", case.id)
                return None
            for name in PARTS:
                path = part_file(self.folder, case.id, name)
                if path.stat().st_size != facts["bytes"][name]:
                    log.warning("%s is cut off: the case is prepared again", path)
                    return None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            log.warning("%s: what was prepared cannot be read, it is made again", case.id)
            return None
        return PreparedCase(self.folder, case.id, facts)

    def prepare(self, case: Case) -> PreparedCase:
        """Make one case, and write it.

        Raises:
            DataError: with the case's name: a file cannot be read, files do not belong together, a label is none, or
                resampling would make too much of it.
        """
        images, geometry, brain = read_images(case, len(self.preparation.modalities))
        sides, spacing = images.shape[1:], geometry.spacing
        truth = read_truth(case, geometry, self.labels)
        previous = read_previous(case, geometry, self.labels) if self.preparation.previous else None
        with of_case(case.id):
            image, box = self.preparation.prepared(images, spacing, brain, previous)
        del images
        inside = tuple(slice(low, high) for low, high in box)
        label = resampled_labels(np.ascontiguousarray(truth[inside]), image.shape[1:])
        counts = np.bincount(truth.ravel(), minlength=256)
        lost = int(((truth != 0) & (truth != self.labels.ignored)).sum())
        lost -= int(((truth[inside] != 0) & (truth[inside] != self.labels.ignored)).sum())
        arrays = {
            "image": np.clip(image, -LARGEST, LARGEST).astype(np.float16),
            "label": label,
            "truth": truth,
            "places": places_of(label, self.labels),
        }
        sizes = {}
        for name, array in arrays.items():
            path = part_file(self.folder, case.id, name)
            with whole_file(path) as partial, partial.open("wb") as file:
                np.save(file, array)
            sizes[name] = path.stat().st_size
        facts = {
            "sources": sources_of(case),
            "bytes": sizes,
            "spacing": list(spacing),
            "sides": list(sides),
            "box": [list(pair) for pair in box],
            "shape": list(label.shape),
            "orientation": geometry.orientation,
            "voxels": {name: int(counts[c]) for c, name in enumerate(self.labels.names)},
            "outside_box": lost,
        }
        with whole_file(self.folder / f"{case.id}.json") as partial:
            partial.write_text(json.dumps(facts), encoding="utf-8")
        return PreparedCase(self.folder, case.id, facts)


def part_file(folder: Path, case: str, name: str) -> Path:
    """Where an array of a case lies."""
    return folder / f"{case}.{name}.npy"


def sources_of(case: Case) -> list[list[Any]]:
    """Name, bytes and time of each file of a case: what changes when a file does."""
    found: list[list[Any]] = []
    for file in case.files:
        try:
            state = file.stat()
        except OSError as error:
            raise DataError(
                case.id, f"{file} cannot be read ({error.strerror or error})", "correct its name"
            ) from error
        found.append([file.name, state.st_size, state.st_mtime_ns])
    return found


def read_images(case: Case, count: int | None = None) -> tuple[np.ndarray, Geometry, np.ndarray | None]:
    """The images of a case, which must lie on one grid.

    Args:
        case: with its files.
        count: how many channels there must be; None: as many as files (or the fourth axis of a single file has).

    Returns:
        float32 `[C, z, y, x]`, where they are, and the mask of the brain, bool `[z, y, x]`, if there is one.

    Raises:
        DataError: with the case's name.
    """
    with of_case(case.id):
        first = read_geometry(case.images[0])
        whole = len(case.images) == 1 and first.channels > 1
        channels = first.channels if whole else len(case.images)
        if count is not None and channels != count:
            if not whole and channels < count and NUMBERED.match(stem_of(case.images[0])):
                missing = ", ".join(f"{number:04d}" for number in range(channels, count))
                problem = f"has no {missing} beside {case.images[0].name}"
                raise DataError(case.id, problem, f"there are {count} modalities")
            problem = f"{channels} images, and there are {count} modalities"
            raise DataError(str(case.images[0]), problem, "correct data.modalities")
        found = np.empty((channels, *first.sides), np.float32)
        for index in range(channels):
            path = case.images[0] if whole else case.images[index]
            values, geometry = read_volume(path, index if whole else None)
            if difference := first.differs(geometry):
                remedy = f"resample it to the grid of {case.images[0].name}"
                raise DataError(str(path), f"has {difference}, unlike {case.images[0].name}", remedy)
            found[index] = values
        brain = None
        if case.brain is not None:
            brain, geometry = read_mask(case.brain)
            if difference := first.differs(geometry):
                raise DataError(str(case.brain), f"has {difference}, unlike {case.images[0].name}", "resample it")
    return found, first, brain


def read_truth(case: Case, geometry: Geometry, labels: VoxelLabels) -> np.ndarray:
    """Class channels of a case, uint8 `[z, y, x]`.

    Raises:
        DataError: with the case's name: there is no label, it lies elsewhere, or has a value that is no class.
    """
    with of_case(case.id):
        if case.label_slices:
            values = read_label_slices(case.label_slices, geometry)
            return labels.channels(values, str(case.label_slices[0].parent))
        if case.label is None:
            raise DataError(case.id, "has no label", "add it, or remove the case")
        values, own = read_labels(case.label)
        if difference := geometry.differs(own):
            remedy = f"a label map has the grid of its image; resample {case.label.name} without interpolation"
            raise DataError(str(case.label), f"has {difference}, unlike {case.images[0].name}", remedy)
        return labels.channels(values, str(case.label))


def read_previous(case: Case, geometry: Geometry, labels: VoxelLabels) -> np.ndarray | None:
    """Class channels that the first stage of a cascade has found, uint8 `[z, y, x]`, or None.

    Raises:
        DataError: as `read_truth`.
    """
    return None if case.previous is None else read_truth(replace(case, label=case.previous), geometry, labels)


def places_of(label: np.ndarray, labels: VoxelLabels) -> np.ndarray:
    """Some voxels of each class but the first, evenly spread over all of them: int32 `[N, 4]`, class, z, y, x."""
    found = []
    flat = label.ravel()
    for channel in range(1, len(labels.names)):
        index = np.flatnonzero(flat == channel)
        if len(index) > PLACES:
            index = index[np.linspace(0, len(index) - 1, PLACES).astype(np.int64)]
        places = np.stack(np.unravel_index(index, label.shape), 1)
        found.append(np.concatenate((np.full((len(index), 1), channel), places), 1))
    return np.concatenate(found).astype(np.int32) if found else np.zeros((0, 4), np.int32)


class of_case:
    """Errors of files, with the name of their case."""

    def __init__(self, case: str) -> None:
        self.case = case

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, DataError) and not error.where.startswith(self.case):
            raise DataError(f"{self.case}: {Path(error.where).name}", error.problem, error.remedy) from error
