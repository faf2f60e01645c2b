"""NIfTI volumes in, label maps in the same voxels out."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from vistrain import pictures
from vistrain.config.values import is_number
from vistrain.data.base.storage import read_json
from vistrain.data.volumes.cases import NUMBERED, TRUTH, WORDS, Case, modality_of
from vistrain.data.volumes.first_stage import label_maps
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.nifti import CONVERTERS, SUFFIXES, Geometry, refuse_other_kinds, stem_of, write_volume
from vistrain.data.volumes.preparation import VolumePreparation
from vistrain.data.volumes.prepared import of_case, read_images, read_previous, read_truth
from vistrain.errors import ConfigError, DataError
from vistrain.metrics.region_components import LARGEST, cleaned
from vistrain.metrics.region_overlap import RegionOverlap
from vistrain.network import Network
from vistrain.segmentation.volume import VolumeSegmenter
from vistrain.structures import LabelSpace
from vistrain.tasks.base.inputs import InputFile, find_files, save_picture
from vistrain.tasks.base.predictor import Predictor
from vistrain.tasks.volumes.pictures import montage

log = logging.getLogger(__name__)

LABELS_AND_MASKS = ("seg", "brain")
SHOWN = 12  # names in a line


@dataclass
class Volume:
    """The images of a case, as a network's predictor takes them.

    Attributes:
        images: float32 `[C, z, y, x]` as measured, C modalities in the network's order.
        geometry: where the voxels are; what is written has it again.
        brain: mask of what intensities are measured on, bool `[z, y, x]`, or None.
        name: for messages.
        previous: class channels `[z, y, x]` of a first stage, or None.
    """

    images: np.ndarray
    geometry: Geometry
    brain: np.ndarray | None = None
    name: str = "volume"
    previous: np.ndarray | None = None


@dataclass
class VolumeResult:
    """What was found in a case.

    Attributes:
        classes: `[z, y, x]`, class channels.
        probabilities: float16 `[K, z, y, x]` of classes or regions, where they were asked for.
    """

    classes: np.ndarray
    probabilities: np.ndarray | None = None


class VolumePredictor(Predictor[VolumeResult]):
    """NIfTI files in, the class channel of each of their voxels out.

    An input is a file, or the first one of several modalities, which lie beside it and are called alike: `CASE_0000`,
    `CASE_0001`, ..., or `CASE_flair`, `CASE_t1ce`, ... (or `flair`, `t1ce`, ... in the folder of a case). Labels and
    masks are no inputs; a mask called `brainmask` is used.

    Of files, `pictures/labels/` holds NIfTI label maps with the affine, the axes and the type of the input and the
    values of the training data, and `pictures/montages/` three planes of each.

    Args:
        model: a network that classifies voxels.
        device, base: see `Predictor`.
        probabilities: also write that of each class or region, float32 NIfTI, into `pictures/probabilities/`.
        mirror: mean over mirror images along all axes; by default what the config says.
        overlap: of windows, as a share of their sides; by default the network's own.
        window_batch: windows at a time; by default the network's own.
        truth: folder of label maps called as the inputs are: montages show them beside the prediction, which is
            alone where there is none.
        components: `folds.json` of folds that were measured with `components`, whose rules are applied to label maps.

        previous: folder of what the first stage of a cascade has predicted of the inputs.

    Raises:
        ConfigError: a value is out of its range, the network takes no windows, or it takes label maps of a first stage
            and there are none.
        DataError: the file of rules cannot be read, or has none.
    """

    noun = "volume"
    label_maps: ClassVar[str] = "labels"
    montages: ClassVar[str] = "montages"
    shares: ClassVar[str] = "probabilities"

    def __init__(
        self,
        model: Network,
        device: str = "auto",
        *,
        probabilities: bool = False,
        mirror: bool | None = None,
        overlap: float | None = None,
        window_batch: int | None = None,
        truth: str | None = None,
        components: str | None = None,
        previous: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(model, device, **base)
        if not isinstance(model, VolumeSegmenter):
            raise ConfigError("model.type", f"{type(model).__name__} does not classify voxels")
        if not isinstance(self.transform, VolumePreparation):
            raise ConfigError("data.type", "no data of volumes, so nothing says how they reach the network")
        if overlap is not None and not 0 <= overlap < 1:
            raise ConfigError("--overlap", f"{overlap}", "a share of a window's side: from 0 to below 1")
        if window_batch is not None and window_batch < 1:
            raise ConfigError("--window-batch", f"{window_batch}", "use 1 or more")
        self.segmenter, self.preparation = model, self.transform
        self.probabilities, self.truth, self._folder = probabilities, truth, Path()
        self._truths: dict[str, Path] = {}
        if mirror is not None:
            model.mirror = (0, 1, 2) if mirror else ()
        model.overlap = model.overlap if overlap is None else overlap
        model.window_batch = window_batch or model.window_batch
        if bool(self.preparation.previous) != (previous is not None):
            problem = "the network takes label maps of a first stage" if previous is None else "it has no first stage"
            raise ConfigError("--previous", problem, "give the folder of its predictions, where there is one")
        self._previous = {} if previous is None else label_maps(previous)
        self.kept_regions = RegionOverlap("regions", self.labels).regions
        self.rules = {} if components is None else rules_of(Path(components), self.kept_regions)

    def average_with(self, others: Sequence[Network]) -> None:
        """See `Predictor`: of their probabilities.

        Raises:
            ConfigError: they have other outputs.
        """
        self.segmenter.average_with(others)

    # ---------------------------------------------------------------- inputs

    @classmethod
    def find(cls, inputs: Sequence[str | Path], output: Path) -> list[InputFile]:
        """The first file of each case, see the class; its name is the case's. Files of other formats in a folder are
        among them: `read` refuses each, so that they are named and counted."""
        for given in inputs:
            if Path(given).is_file():
                refuse_other_kinds(given)
        groups: dict[tuple[Path, str], list[InputFile]] = {}
        find_files(inputs, SUFFIXES, cls.noun, output / cls.pictures)  # refuses where there is no NIfTI file at all
        for file in find_files(inputs, (*SUFFIXES, *CONVERTERS), cls.noun, output / cls.pictures):
            case, word = _case_of(file.path)
            if word not in LABELS_AND_MASKS:
                groups.setdefault((file.path.parent, case), []).append(file)
        if not groups:
            raise DataError(str(inputs[0]), "holds labels or masks alone", "give the images")
        found = []
        for (_, case), files in groups.items():
            first = files[0]
            # Alone it is called as its file is, without the number of its modality; several have the name that they
            # share. So labels are called as in training.
            folder = first.name.rpartition("/")[0]
            alone = len(files) == 1 and not NUMBERED.match(stem_of(first.path))
            name = first.name if alone else "/".join(p for p in (folder, f"{case}{_suffix(first.path)}") if p)
            found.append(InputFile(first.path, name))
        return found

    def read(self, source: Any) -> Volume:
        """A case by one of its files; or a `Volume`.

        Raises:
            DataError: a file cannot be read, a modality is missing, or the input is of another kind.
        """
        if isinstance(source, Volume):
            return source
        if not isinstance(source, str | os.PathLike):
            problem = f"a volume is a NIfTI file or a Volume, not {type(source).__name__}"
            raise DataError("input", problem, "give a path, or Volume(images, geometry)")
        path = Path(source)
        refuse_other_kinds(path)
        names = self.preparation.modalities
        case, _ = _case_of(path)
        files, brain = self._siblings(path, names)
        stems = (case, stem_of(path))
        first = next((self._previous[stem] for stem in stems if stem in self._previous), None)
        if self.preparation.previous and first is None:
            raise DataError(case, "has no label map in --previous", "predict it with the first stage")
        files_of_case = Case(case, files, None, brain, previous=first)
        images, geometry, mask = read_images(files_of_case, len(names))
        return Volume(images, geometry, mask, case, read_previous(files_of_case, geometry, labels_of(self.labels)))

    def _siblings(self, path: Path, names: Sequence[str]) -> tuple[tuple[Path, ...], Path | None]:
        """The file of each modality, and a mask of the brain."""
        case, _ = _case_of(path)
        beside: dict[str, Path] = {}
        for other in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
            if other.name.lower().endswith(SUFFIXES) and not other.name.startswith("."):
                own, word = _case_of(other)
                if own == case:
                    beside.setdefault(word, other)
        brain = beside.get("brain")
        if len(names) == 1:
            return (path,), brain
        numbers = [f"{index:04d}" for index in range(len(names))]
        for wanted in (numbers, list(names)):
            if all(word in beside for word in wanted):
                return tuple(beside[word] for word in wanted), brain
        if not set(beside) & {*numbers, *names}:
            return (path,), brain  # a fourth axis may hold all of them
        wanted = numbers if NUMBERED.match(stem_of(path)) else list(names)
        missing = ", ".join(word for word in wanted if word not in beside)
        raise DataError(case, f"has no {missing} beside {path.name}", f"the network takes {', '.join(names)}")

    # ---------------------------------------------------------------- results

    @torch.inference_mode()
    def run(self, inputs: Sequence[Volume]) -> list[VolumeResult]:
        """Classes of several cases, one after the other, in their own voxels."""
        results = [self._found(volume) for volume in inputs]
        for volume, result in zip(inputs, results, strict=True):
            mm3 = float(np.prod(volume.geometry.spacing))
            cleaned(result.classes, self.rules, self.kept_regions, mm3)
        return results

    def _found(self, volume: Volume) -> VolumeResult:
        sides = volume.images.shape[1:]
        with of_case(volume.name):
            image, box = self.preparation.prepared(
                volume.images, volume.geometry.spacing, volume.brain, volume.previous
            )
        batch = {
            "image": torch.from_numpy(image)[None],
            "size": torch.tensor([image.shape[1:]]),
            "original_size": torch.tensor([sides]),
            "box": torch.tensor([box]),
        }
        if not self.probabilities:
            (found,) = self.segmenter.predict(batch)
            assert found.semantic is not None
            return VolumeResult(found.semantic.cpu().numpy())
        classes = np.zeros(sides, np.uint8)
        shares = np.zeros((self.segmenter.num_outputs, *sides), np.float16)
        shares[: 0 if self.segmenter.painted else 1] = 1  # outside the box it is the background
        inside = tuple(slice(low, high) for low, high in box)
        part = classes[inside]
        for index, mean in enumerate(self.segmenter.mean_planes(batch["image"][0], box)):
            part[index] = self.segmenter.plane_classes(mean, threshold=0.5).cpu().numpy()
            shares[(slice(None), *inside)][:, index] = mean.cpu().numpy()
        return VolumeResult(classes, shares)

    def describe(self, image: Volume, result: VolumeResult) -> dict[str, Any]:
        """Sides of the file in voxels and mm, and how many millilitres each class but the first has."""
        geometry = image.geometry
        # Plane by plane: NumPy counts in 64 bits, which would be eight times the case.
        counts = np.zeros(max(self.labels.num_classes, int(result.classes.max()) + 1), np.int64)
        for plane in result.classes:
            counts += np.bincount(plane.ravel(), minlength=len(counts))
        cubic = float(np.prod(geometry.spacing)) / 1000
        names = self.labels.name_of
        return {
            "voxels": list(geometry.shape),
            "spacing": [round(float(x), 6) for x in np.linalg.norm(geometry.affine[:3, :3], axis=0)],
            "orientation": geometry.orientation,
            "ml": {names[c]: round(float(n) * cubic, 3) for c, n in enumerate(counts.tolist()) if c in names and c},
        }

    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        """See `Predictor`: the label maps.

        Raises:
            DataError: one would replace an input or another; or there are no truths where they should be.
        """
        self._folder = folder
        if self.truth is not None:
            self._find_truths(Path(self.truth), files)
        paths = [folder / self.label_maps / file.name for file in files]
        bare = [path.with_name(stem_of(path)) for path in paths]  # montages are called so
        inputs = {os.path.realpath(file.path) for file in files}
        for path, name in zip(paths, bare, strict=True):
            if bare.count(name) > 1 or os.path.realpath(path) in inputs:
                raise DataError(
                    str(path), "would replace an input, or another case's labels", "choose another --output"
                )
        return paths

    def write_picture(self, file: InputFile, image: Volume, result: VolumeResult, target: Path) -> None:
        """See `Predictor` and the class."""
        write_volume(target, stored_values(result.classes, self.labels), image.geometry)
        name = target.relative_to(self._folder / self.label_maps)
        stem = name.with_name(stem_of(name))
        if result.probabilities is not None:
            regions = [region for region, _ in self.labels.regions or ()]
            names = regions if self.segmenter.painted else self.labels.names
            for label, share in zip(names, result.probabilities, strict=True):
                path = self._folder / self.shares / stem.with_name(f"{stem.name}_{label}{_suffix(name)}")
                write_volume(path, share.astype(np.float32), image.geometry, "float32")
        maps = {"prediction": result.classes}
        if file.name in self._truths:
            case = Case(stem_of(file.name), (file.path,), self._truths[file.name])
            try:
                maps = {"truth": read_truth(case, image.geometry, labels_of(self.labels)), **maps}
            except DataError as error:
                log.warning("%s: its montage has no truth: %s", file.name, error)
        cells = montage(image.images[0], maps, image.geometry.spacing, self.labels)
        shown = pictures.grid([[picture] for picture in cells.values()], [[caption or name.name] for caption in cells])
        save_picture(shown, self._folder / self.montages / stem.with_name(f"{stem.name}.png"))

    def _find_truths(self, folder: Path, files: Sequence[InputFile]) -> None:
        """Look for the truth of each input before anything is computed, and name those that have none.

        Raises:
            DataError: none has one.
        """
        found = {file.name: truth_of(folder, file.name) for file in files}
        missing = [name for name, path in found.items() if path is None]
        self._truths = {name: path for name, path in found.items() if path is not None}
        if files and not self._truths:
            problem = f"has no truth of {missing[0]}" + (", nor of any other" if missing[1:] else "")
            raise DataError(str(folder), problem, f"call it {Path(stem_of(missing[0])).name}.nii.gz")
        if missing:
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            log.warning("no truth in %s, so montages without it: %s%s", folder, ", ".join(missing[:SHOWN]), more)

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """The mean volume of each class."""
        names = list(entries[0]["ml"]) if entries else []
        means = [f"{name} {np.mean([entry['ml'][name] for entry in entries]):.1f} ml" for name in names]
        return ", ".join(means[:4]) + (" on average" if means else "")

    def header(self) -> dict[str, Any]:
        """The classes, and the values that label maps have for them."""
        return {"classes": [{"value": v, "name": n} for v, n in zip(self.labels.ids, self.labels.names, strict=True)]}


def stored_values(classes: np.ndarray, labels: LabelSpace) -> np.ndarray:
    """Class channels as the values that the data's files have, of the smallest type that holds them."""
    values = np.array([labels.category_of.get(channel, 0) for channel in range(labels.num_classes)])
    smallest = np.promote_types(np.min_scalar_type(values.min()), np.min_scalar_type(values.max()))
    return values.astype(smallest)[classes]


def rules_of(path: Path, regions: Collection[str]) -> dict[str, str | float]:
    """Region -> rule for its components, of what `vistrain folds` wrote.

    Raises:
        DataError: it cannot be read, has no rules, or one of a region that is not there.
    """
    content = read_json(path, "give the folds.json of `vistrain folds`")
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, dict) or content.get("missing") or not isinstance(choices.get("components"), dict):
        problem = "has no rules for components"
        raise DataError(str(path), problem, "run all folds with `metrics=[regions, components]`")
    rules: dict[str, str | float] = choices["components"]
    for region, rule in rules.items():
        if region not in regions or not (rule == LARGEST or is_number(rule)):
            raise DataError(str(path), f"has the rule {rule!r} for {region!r}", "use that of the same classes")
    return rules


def truth_of(folder: Path, name: str) -> Path | None:
    """The label map of an input in a folder, or None.

    Args:
        folder: of label maps.
        name: of the input, relative.
    """
    stem, parent = stem_of(name), Path(name).parent
    names = [f"{base}{suffix}" for base in (stem, f"{stem}_seg", f"{stem}-seg", "seg") for suffix in SUFFIXES]
    places = [folder, folder / parent, folder / stem]
    return next((place / known for place in places for known in names if (place / known).is_file()), None)


def labels_of(space: LabelSpace) -> VoxelLabels:
    """The values in label files, from what a checkpoint carries."""
    return VoxelLabels(dict(zip(space.names, space.ids, strict=True)))


def _case_of(path: Path) -> tuple[str, str]:
    """The case, and which of its files this is: a number, a modality, `seg`, `brain`, or nothing known."""
    match = NUMBERED.match(stem_of(path))
    if match:
        return match["case"], match["number"]
    case, word = modality_of(path)
    known = word in WORDS or word in LABELS_AND_MASKS or word in TRUTH
    return (case, word) if known else (stem_of(path), "")


def _suffix(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
