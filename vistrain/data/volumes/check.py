"""Looking at volumes before a GPU is spent on them: every file is read, every case held against the classes and the
others, and a plan is proposed."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from vistrain.config import to_yaml
from vistrain.data.base.check import Findings, SplitFindings, opened, pixel_hash, refusals, shown, write_report
from vistrain.data.base.module import SplitName
from vistrain.data.volumes.cases import Case
from vistrain.data.volumes.fold_numbers import folds_of
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.module import VolumeData
from vistrain.data.volumes.nifti import read_labels
from vistrain.data.volumes.plan import ANISOTROPIC, Fingerprint, memory_of, plans
from vistrain.data.volumes.prepared import read_images, read_truth
from vistrain.errors import DataError, VistrainError
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

DRAWN = 2000  # voxels of each case and modality that intensities are measured on
MOST = 12  # names in a line


@dataclass
class VolumeSplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        cases: how many.
        voxels: class -> voxels.
        class_cases: class -> cases that it occurs in.
    """

    cases: int = 0
    voxels: dict[str, int] = field(default_factory=dict)
    class_cases: dict[str, int] = field(default_factory=dict)


@dataclass
class VolumeReport(Findings):
    """The findings of `check_volumes`.

    Attributes:
        splits: by name.
        bare: images without a label.
        lonely: label without an image -> what it is.
        notes: what is odd, and does not stop a run -> the cases.
        fingerprint: of all cases that can be read.
        plans: name -> file with a config.
        memory: name of a plan -> GiB of a training step, an estimate.
    """

    splits: dict[str, VolumeSplitReport]
    bare: list[str] = field(default_factory=list)
    lonely: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    plans: dict[str, str] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """What was written, in words."""
        return "report and plans" if self.plans else "report"

    @property
    def ok(self) -> bool:
        """See `Findings`; cases with the same voxels are one case, which counts twice or is trained and evaluated."""
        return super().ok and not self.leaks and not any(split.repeated for split in self.splits.values())

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        found = self.fingerprint
        table = Table("", *self.splits)
        table.add_row("cases", *(str(split.cases) for split in self.splits.values()))
        for name in found.shares:
            cells = [f"{s.class_cases.get(name, 0)} cases" for s in self.splits.values()]
            table.add_row(f"{escape(name)}, {100 * found.shares[name]:.3g} % of voxels", *cells)
        lines: list[str] = []
        for name, split in self.splits.items():
            lines += refusals(name, split)
        if self.bare:
            lines.append(f"[red]without a label[/]: {_listed(self.bare)}")
        lines += [f"[red]without an image[/]: label {escape(k)}, {escape(v)}" for k, v in self.lonely.items()]
        lines += [f"[yellow]{escape(what)}[/]: {_listed(cases)}" for what, cases in self.notes.items()]
        if self.leaks:
            lines.append(f"[red]in several splits[/]: {shown(self.leaks)}")
        for name, split in self.splits.items():
            if split.repeated:
                lines.append(f"[red]the same voxels[/] {name}: {shown(split.repeated)}")
        if found.cases:
            mm = " x ".join(f"{x:g}" for x in found.spacing)
            lines.append(
                f"{_sides(found.smallest)} to {_sides(found.largest)} voxels (z, y, x), in the middle "
                f"{_sides(found.sides)} of {mm} mm; {', '.join(f'{n} {o}' for o, n in found.orientations.items())}; "
                f"{100 * found.foreground:.3g} % have a class"
            )
        for name, file in self.plans.items():
            lines.append(f"plan {name}: {escape(file)} (a training step holds about {self.memory[name]:.1f} GiB)")
        return Group(table, *lines)


@dataclass
class _Seen:
    """What one case holds."""

    sides: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    kept: tuple[int, ...]
    counts: np.ndarray
    outside: int
    constant: list[int]
    values: np.ndarray | None
    image: bytes
    label: bytes


def check_volumes(data: VolumeData, output: str | Path) -> VolumeReport:
    """Opens every file of all cases.

    Args:
        data: of volumes.
        output: folder for `report.json` and the plans.

    Raises:
        DataError: the set cannot be listed, or the output cannot be written.
    """
    folder, listing, rule = Path(output), data.listing, data.rule
    names: tuple[SplitName, ...] = ("train", "val")
    report = VolumeReport({name: VolumeSplitReport() for name in names})
    split_of = _splits(data, report)
    skipped = data.unpaired == "skip"
    for problem in listing.problems:
        report.splits["train"].refused.append(str(problem))
    report.bare = list(listing.bare)
    if listing.bare and not skipped:
        report.splits["train"].refused.append(
            f"{len(listing.bare)} images have no label ({', '.join(listing.bare[:MOST])}) - add or remove them, or "
            "data.unpaired=skip"
        )
    if listing.lonely and not skipped:
        labels = ", ".join(list(listing.lonely)[:MOST])
        report.splits["train"].refused.append(
            f"{len(listing.lonely)} labels have no image ({labels}) - add or remove them, or data.unpaired=skip"
        )
    seen: dict[str, _Seen] = {}
    for case, found in opened(listing.cases, lambda case: _look(case, data), "reading cases"):
        if isinstance(found, DataError):
            where = found.where if found.where.startswith(case.id) else f"{case.id}: {found.where}"
            remedy = f" - {found.remedy}" if found.remedy else ""
            report.splits[split_of[case.id]].bad_files[where] = found.problem + remedy
        else:
            seen[case.id] = found
    _count(report, seen, split_of, rule)
    _notes(report, seen, data)
    _copies(report, seen, split_of, data)
    if seen:
        report.fingerprint = _fingerprint(seen, data)
        made = plans(report.fingerprint, [case.spacing for case in seen.values()])
        if "low_resolution" in made:
            second = {**made["3d"]["data"], "previous": "runs/plan_low_resolution"}
            made["second_stage"] = {**made["3d"], "data": second}
        for name, plan in made.items():
            file = folder / f"plan_{name}.yaml"
            with whole_file(file) as partial:
                partial.write_text(_explained(name, plan), encoding="utf-8")
            report.plans[name], report.memory[name] = str(file), round(memory_of(plan, data.channels), 2)
    for name in names:
        split = report.splits[name]
        split.refused += data.refusals(name, split.cases * (data.patches if name == "train" else 1))
    write_report(report.to_dict(), folder)
    return report


def _splits(data: VolumeData, report: VolumeReport) -> dict[str, str]:
    """The split of each case; of all `train`, where folds cannot be made."""
    cases = data.listing.cases
    held_out = 0 if data.fold is None else data.fold
    try:
        folds = folds_of(cases, data.folds)
        if cases and held_out not in folds:
            raise DataError("data.fold", f"no case is in fold {held_out}", f"there are {sorted(set(folds))}")
    except VistrainError as error:
        report.splits["train"].refused.append(str(error))
        folds = [held_out + 1] * len(cases)
    found = {case.id: "val" if fold == held_out else "train" for case, fold in zip(cases, folds, strict=True)}
    for name in found.values():
        report.splits[name].cases += 1
    return found


def _look(case: Case, data: VolumeData) -> _Seen:
    """Read one case.

    Raises:
        DataError: a run would not take it.
    """
    images, geometry, brain = read_images(case, data.channels)
    truth = read_truth(case, geometry, data.rule)
    preparation = data.eval_transform
    if preparation.within == "all" or brain is None or not brain.any():
        brain = preparation.brain_of(images)
    box = preparation.box_of(truth.shape, brain)
    counts = np.bincount(truth.ravel(), minlength=256)
    inside = (truth > 0) & (truth != data.rule.ignored)
    outside = 0 if brain is None else int((inside & ~brain).sum())
    constant = [index for index, image in enumerate(images) if image.min() == image.max()]
    places = np.flatnonzero(inside)
    values = None
    if len(places):
        drawn = places[np.linspace(0, len(places) - 1, min(DRAWN, len(places))).astype(int)]
        values = images.reshape(len(images), -1)[:, drawn]
    kept = tuple(high - low for low, high in box)
    preparation.sides_of(kept, geometry.spacing)
    hashes = pixel_hash(images[0]), pixel_hash(truth)
    orientation = geometry.orientation
    return _Seen(truth.shape, geometry.spacing, orientation, kept, counts, outside, constant, values, *hashes)


def _count(report: VolumeReport, seen: dict[str, _Seen], split_of: dict[str, str], rule: VoxelLabels) -> None:
    for name, split in report.splits.items():
        own = [case for key, case in seen.items() if split_of[key] == name]
        for channel, label in enumerate(rule.names):
            split.voxels[label] = int(sum(case.counts[channel] for case in own))
            split.class_cases[label] = sum(bool(case.counts[channel]) for case in own)


def _notes(report: VolumeReport, seen: dict[str, _Seen], data: VolumeData) -> None:
    """What is odd."""
    notes: dict[str, list[str]] = {}
    common = Counter(case.orientation for case in seen.values()).most_common(1)
    for key, case in seen.items():
        wanted = data.eval_transform.sides_of(case.kept, case.spacing)
        if not case.counts[1:255].any():
            notes.setdefault("background alone (trained on as it is)", []).append(key)
        if case.constant:
            which = ", ".join(data.modalities[index] for index in case.constant)
            notes.setdefault(f"one value in all voxels of {which}", []).append(key)
        if any(side < length for side, length in zip(wanted, data.patch, strict=True)):
            notes.setdefault("smaller than data.patch (filled up with zeros, which are ignored)", []).append(key)
        if max(case.spacing) > ANISOTROPIC * min(case.spacing):
            notes.setdefault("slices far apart (set data.augment.in_plane=true, as the plans do)", []).append(key)
        if case.orientation != common[0][0]:
            what = f"axes unlike the others' {common[0][0]} (turned when read, turned back when written)"
            notes.setdefault(what, []).append(f"{key} ({case.orientation})")
        if case.outside:
            share = 100 * case.outside / max(1, int(case.counts[1:255].sum()))
            notes.setdefault("labelled voxels outside the brain", []).append(f"{key} ({case.outside}, {share:.2g} %)")
    for label in report.splits["train"].voxels:
        there = [name for name, split in report.splits.items() if split.voxels[label]]
        if len(there) < len(report.splits):
            where = f"in {there[0]} alone" if there else "nowhere"
            notes.setdefault(f"a class that occurs {where}", []).append(label)
    if others := data.listing.other_kinds:
        what = f"{len(others)} files of other formats, which are not read (make .nii.gz of them)"
        notes[what] = [path.name for path in others]
    report.notes = notes


def _copies(report: VolumeReport, seen: dict[str, _Seen], split_of: dict[str, str], data: VolumeData) -> None:
    """Cases with the same voxels, and whose labels those are that have no image."""
    hashes: dict[bytes, list[str]] = {}
    labels: dict[bytes, str] = {}
    for key, case in seen.items():
        hashes.setdefault(case.image, []).append(f"{split_of[key]}: {key}")
        labels.setdefault(case.label, key)
    report.note_copies(hashes)
    usual = {case.sides for case in seen.values()}
    for name, file in data.listing.lonely.items():
        report.lonely[name] = _lonely(file, data.rule, labels, usual)


def _lonely(file: Path, rule: VoxelLabels, labels: dict[bytes, str], usual: set[tuple[int, ...]]) -> str:
    """What a label without an image is."""
    try:
        values, geometry = read_labels(file)
        present = np.unique(values).tolist()
        facts = f"{_sides(geometry.sides)} voxels of {' x '.join(f'{x:.3g}' for x in geometry.spacing)} mm, "
        facts += f"values {', '.join(map(str, present[:8]))}"
        largest = [max(sides) for sides in zip(*usual, strict=True)] if usual else []
        if any(side > 2 * most for side, most in zip(geometry.sides, largest, strict=False)):
            facts += f": of another set by its size (images have up to {_sides(largest)})"
        twin = labels.get(pixel_hash(rule.channels(values, str(file))))
        return facts + (f": the same voxels as the label of {twin}" if twin else "")
    except DataError as error:
        return error.problem


def _fingerprint(seen: dict[str, _Seen], data: VolumeData) -> Fingerprint:
    cases = list(seen.values())
    sides = np.array([case.kept for case in cases])
    counts = np.sum([case.counts for case in cases], 0)
    total, names = int(counts.sum()), data.rule.names
    values = [case.values for case in cases if case.values is not None]
    intensities: dict[str, dict[str, float]] = {}
    if values:
        for name, drawn in zip(data.modalities, np.concatenate(values, 1), strict=True):
            low, high = np.percentile(drawn, (0.5, 99.5))
            numbers: dict[str, Any] = {"low": low, "high": high, "mean": drawn.mean(), "std": drawn.std()}
            intensities[name] = {key: float(number) for key, number in numbers.items()}
    orientations = Counter(case.orientation for case in cases)
    return Fingerprint(
        len(cases),
        [round(float(x), 6) for x in np.median([case.spacing for case in cases], 0)],
        [round(float(x)) for x in np.median(sides, 0)],
        sides.min(0).tolist(),
        sides.max(0).tolist(),
        dict(orientations.most_common()),
        float(counts[1:255].sum() / total),
        {name: float(counts[channel] / total) for channel, name in enumerate(names) if channel},
        {name: sum(not case.counts[channel] for case in cases) for channel, name in enumerate(names) if channel},
        intensities,
    )


def _explained(name: str, plan: dict[str, Any]) -> str:
    """A plan as YAML, with what it is for above it."""
    what = {
        "3d": "A network for volumes at the set's own resolution.",
        "2d": "A network for slices: quicker, and often as good where slices lie far apart.",
        "low_resolution": "A network for volumes at a lower resolution, whose patches show a quarter of a case.",
        "second_stage": "As plan_3d, behind the folds of plan_low_resolution with task.keep_labels=true.",
    }[name]
    how = "# Proposed by `vistrain check`; use it after your own config:\n# vistrain fit -c mine.yaml -c THIS\n"
    return f"# {what}\n{how}{to_yaml(plan)}"


def _sides(sides: Any) -> str:
    return "x".join(str(n) for n in sides)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return escape(", ".join(names[:MOST]) + more)
