"""Looking at images with masks before a GPU is spent on them: every file is opened, every value held against the
classes, and for each finding the line of the config that mends it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape

from vistrain.data.base.bands import Bands, BandStatistics, described
from vistrain.data.base.check import (
    Findings,
    SplitFindings,
    opened,
    pixel_hash,
    refusals,
    shown,
    write_report,
)
from vistrain.data.base.images import read_image
from vistrain.data.base.module import SplitName
from vistrain.data.base.report import shuffled, split_table, write_samples
from vistrain.data.segmentation.label_files import LabelRule, label_values, open_label_file
from vistrain.data.segmentation.mask_advice import LEAVE_OUT, Advice, advice, without_masks
from vistrain.data.segmentation.mask_pairs import MaskPair
from vistrain.data.segmentation.module import SegmentationData, sized_image
from vistrain.errors import DataError
from vistrain.pictures import bars, class_colours, legend, overlaid
from vistrain.structures import left_out

SAMPLES = 6
MOST_VALUES = 4096  # different ones of a file that are counted; more are no classes
KINDS = {"P": "palette", "1": "1 bit", "L": "grey, 8 bits", "LA": "grey, 8 bits", "PA": "palette"}


@dataclass
class MaskSplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        images: pairs.
        image_sizes: `width x height` -> images, the ten most frequent.
        kinds: what label files are (`grey, 8 bits`, `palette`, `16 bits`, `colours`) -> files.
        palettes: different palettes of palette files.
        pixels: class -> pixels.
        class_images: class -> images that it occurs in.
        ignored: share of the pixels that is ignored, 0..1.
        unlabelled: files of which every pixel is ignored.
        black_and_white: files that hold 0 and 255 alone.
        bordered: how many of the others hold 255.
        strangers: stored value (of colours `r g b`) that is no class -> `[pixels, files]`.
        values: all stored values (colours) -> pixels.
        bare: images without a mask.
        lonely: masks without an image.
        band_mean, band_std: of each of `data.bands.channels`, where images have bands.
    """

    images: int = 0
    image_sizes: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    palettes: int = 0
    pixels: dict[str, int] = field(default_factory=dict)
    class_images: dict[str, int] = field(default_factory=dict)
    ignored: float = 0.0
    unlabelled: list[str] = field(default_factory=list)
    black_and_white: list[str] = field(default_factory=list)
    bordered: int = 0
    strangers: dict[str, list[int]] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)
    lonely: list[str] = field(default_factory=list)
    band_mean: list[float] = field(default_factory=list)
    band_std: list[float] = field(default_factory=list)


@dataclass
class MaskReport(Findings):
    """The findings of `check_masks`.

    Attributes:
        splits: by name.
        classes: names, in the order of their channels.
        class_weights: ENet's (Paszke et al. 2016, arXiv 1606.02147): 1 / ln(1.02 + share of the training pixels).
        advice: what is wrong or odd, and the lines of the config that mend it.
    """

    splits: dict[str, MaskSplitReport]
    classes: list[str] = field(default_factory=list)
    class_weights: list[float] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether a run can go through, and learns what the masks say."""
        return super().ok and not any(found.stops for found in self.advice)

    @property
    def said(self) -> set[str]:
        """With what stops a run by the values of its masks."""
        return super().said | {found.problem for found in self.advice if found.stops}

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        lines = []
        for name, split in self.splits.items():
            lines += refusals(name, split)
        if self.leaks:
            lines.append(f"[yellow]in several splits[/]: {len(self.leaks)} images, such as {shown(self.leaks)}")
        for found in self.advice:
            mend = f"\n    -> {escape(found.remedy)}" if found.remedy else ""
            lines.append(f"[{'red' if found.stops else 'yellow'}]{found.split}[/]: {escape(found.problem)}{mend}")
        return Group(*_summary(self), *lines)


@dataclass
class _Seen:
    """What one pair holds."""

    kind: str
    palette: bytes
    size: tuple[int, int]
    values: dict[str, int]
    channels: dict[int, int]
    ignored: int
    strangers: dict[str, int]
    digest: bytes
    problem: str
    bands: BandStatistics | None


def check_masks(data: SegmentationData, output: str | Path) -> MaskReport:
    """Opens every file of a set, and holds what label files store against the classes.

    Writes `report.json`, `classes-*.png` (pixels of each class) and `samples-*.png` (images, and their classes).

    Args:
        data: the data module; a test split that is the validation split is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        ConfigError, DataError: the classes cannot be read, or the output cannot be written.
    """
    data.prepare_data()  # a generated set is written on first use
    output, rule = Path(output), data.rule
    report = MaskReport(splits={}, classes=list(rule.labels.names))
    seen: dict[bytes, list[str]] = {}
    names: list[SplitName] = ["train", "val", "test"]
    for name in names:
        found = MaskSplitReport()
        try:
            pairing = data.pairing(name)
        except DataError as error:
            found.problem = str(error)
            if name != "test" or found.problem != report.splits["val"].problem:
                report.splits[name] = found
            continue
        if name == "test" and pairing == data.pairing("val"):
            continue
        report.splits[name] = found
        found.images = len(pairing.pairs)
        found.bare, found.lonely = ([str(path) for path in paths] for paths in (pairing.bare, pairing.lonely))
        if found.bare and data.unpaired == "refuse":
            found.problem = f"{without_masks(found.bare)} - {LEAVE_OUT}"
        found.refused += data.refusals(name, found.images)
        for digest, path in _open_all(pairing.pairs, data, name, found):
            seen.setdefault(digest, []).append(f"{name}: {path}")
        found.bad_files |= _unreadable_beside(data, name)
        report.pictures += _draw(pairing.pairs, data, name, found, output)
    report.note_copies(seen)
    report.advice = advice(report.splits, rule) + _of_bands(data.bands, report.splits["train"])
    train = report.splits["train"]
    if total := sum(train.pixels.values()):
        shares = [train.pixels.get(name, 0) / total for name in report.classes]
        report.class_weights = [round(float(1 / np.log(1.02 + share)), 4) for share in shares]
    write_report(report.to_dict(), output)
    return report


def _unreadable_beside(data: SegmentationData, name: SplitName) -> dict[str, str]:
    """File -> problem, of images without masks."""
    looked = opened(data.images_beside(name), lambda path: read_image(path).shape, f"opening {name} without masks")
    return {seen.where: seen.problem for _, seen in looked if isinstance(seen, DataError)}


def _open_all(
    pairs: tuple[MaskPair, ...], data: SegmentationData, name: str, found: MaskSplitReport
) -> list[tuple[bytes, str]]:
    """Fill a split's report; returns hashes of the images with their files."""
    rule, bands = data.rule, BandStatistics()
    kinds, sizes, palettes = Counter[str](), Counter[tuple[int, int]](), set[bytes]()
    pixels, images, values, strangers = Counter[str](), Counter[str](), Counter[str](), dict[str, list[int]]()
    names, hashes, ignored = rule.labels.names, [], 0
    for pair, seen in opened(pairs, lambda pair: _look(pair, rule, data.bands), f"opening {name}"):
        if isinstance(seen, DataError):
            found.refuse_file(seen)
            continue
        if seen.problem:
            found.bad_files[str(pair.mask)] = seen.problem
        bands = bands if seen.bands is None else bands + seen.bands
        kinds[seen.kind] += 1
        sizes[seen.size] += 1
        palettes |= {seen.palette} if seen.palette else set()
        values.update(seen.values)
        if set(seen.values) == {"0", "255"}:
            found.black_and_white.append(str(pair.mask))
        else:
            found.bordered += "255" in seen.values
        pixels.update({names[channel]: count for channel, count in seen.channels.items()})
        images.update(names[channel] for channel in seen.channels)
        ignored += seen.ignored
        for value, count in seen.strangers.items():
            known = strangers.setdefault(value, [0, 0])
            known[0], known[1] = known[0] + count, known[1] + 1
        if seen.ignored and not seen.channels and not seen.strangers:
            found.unlabelled.append(str(pair.mask))
        hashes.append((seen.digest, str(pair.image)))
    if data.bands is not None and hashes:
        found.band_mean, found.band_std = bands.mean_and_std()
    found.kinds, found.palettes = dict(kinds), len(palettes)
    found.image_sizes = {f"{w} x {h}": n for (h, w), n in sizes.most_common(10)}
    found.pixels, found.class_images = ({n: counts[n] for n in names if n in counts} for counts in (pixels, images))
    found.values = dict(values.most_common(MOST_VALUES))
    found.strangers = dict(sorted(strangers.items(), key=lambda item: -item[1][0])[:MOST_VALUES])
    found.ignored = ignored / max(ignored + sum(pixels.values()), 1)
    return hashes


def _look(pair: MaskPair, rule: LabelRule, bands: Bands | None) -> _Seen:
    """Open a pair.

    Raises:
        DataError: a file cannot be read, or their sizes differ.
    """
    image = open_label_file(pair.mask)
    stored = np.array(image.convert("RGB")) if rule.colours else label_values(image, pair.mask)
    pixels = sized_image(pair, stored.shape[:2], bands)
    kind = "colours" if stored.ndim == 3 else KINDS.get(image.mode, "16 bits" if stored.dtype != np.uint8 else "grey")
    palette = bytes(image.getpalette() or b"") if image.mode == "P" else b""
    values, counts = counted(stored)
    if len(values) > MOST_VALUES:
        raise DataError(str(pair.mask), f"holds {len(values):,} different values: interpolated, or a photograph")
    texts = [" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in values.tolist()]
    channels: dict[int, int] = {}
    strangers: dict[str, int] = {}
    ignored = 0
    for value, text, count in zip(values, texts, counts.tolist(), strict=True):
        channel = None if values.ndim == 2 and not rule.colours else rule.channel_of(value)
        if channel is None:
            strangers[text] = count
        elif channel == rule.ignored:
            ignored += count
        else:
            channels[channel] = count
    problem = ""
    if strangers:
        what = "colours" if stored.ndim == 3 else "values"
        problem = f"{what} that are no class: {', '.join(list(strangers)[:5])}"
    size, digest = (stored.shape[0], stored.shape[1]), pixel_hash(pixels)
    everything = dict(zip(texts, counts.tolist(), strict=True))
    statistics = None if bands is None else BandStatistics.of(pixels)
    return _Seen(kind, palette, size, everything, channels, ignored, strangers, digest, problem, statistics)


def _of_bands(bands: Bands | None, train: MaskSplitReport) -> list[Advice]:
    """Mean and spread of channels that the config does not state."""
    if bands is None or not train.band_mean:
        return []
    flat = [n for n, std in zip(bands.channels, train.band_std, strict=True) if not std]
    found = [Advice("train", f"the channels {flat} have one value everywhere", "leave them out", True)] if flat else []
    if not bands.mean and not flat:
        line = f"data.bands.mean={described(train.band_mean)} data.bands.std={described(train.band_std)}"
        found.append(Advice("train", "mean and std of the channels are missing", line, stops=True))
    return found


def counted(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values `[N]` (colours `[N, 3]`) of a label file, and the pixels of each."""
    if stored.ndim == 3:
        packed = stored.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        codes, counts = np.unique(packed, return_counts=True)
        return np.stack([codes >> 16, (codes >> 8) & 255, codes & 255], 1), counts
    if stored.dtype == np.uint8:
        counts = np.bincount(stored.reshape(-1), minlength=256)
        return np.flatnonzero(counts), counts[counts > 0]
    values, counts = np.unique(stored, return_counts=True)
    return values, counts


def _draw(
    pairs: tuple[MaskPair, ...], data: SegmentationData, name: SplitName, found: MaskSplitReport, output: Path
) -> list[str]:
    """Writes a split's pictures; returns their paths."""
    written = []
    if found.pixels:
        total = max(sum(found.pixels.values()), 1)
        shares = {n: 100 * count / total for n, count in sorted(found.pixels.items(), key=lambda item: -item[1])}
        written.append(str(bars(shares, output / f"classes-{name}.png", f"{name}: pixels of each class", "%")))
    rows: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    colours, names = class_colours(data.labels), data.labels.name_of
    for index in shuffled(len(pairs)):
        pair = pairs[index]
        if len(rows) == SAMPLES or str(pair.mask) in found.bad_files or str(pair.image) in found.bad_files:
            continue
        image, label_map = data.drawn(name, pair)
        occurring = set(np.unique(label_map).tolist())
        line = legend(names, colours, [c for c in names if c in occurring], image.shape[1])
        rows.append([image, np.concatenate([overlaid(image, label_map, colours), line])])
        captions.append([pair.name, "classes"])
    return written + write_samples(rows, captions, output, name)


def _summary(report: MaskReport) -> list[RenderableType]:
    title = f"{len(report.classes)} classes"
    splits = report.splits.values()
    rows: dict[str, list[str]] = {
        "images with masks": [f"{s.images:,}" for s in splits],
        "unusable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits],
        "most frequent size": [next(iter(s.image_sizes), "-") for s in splits],
        "masks": [", ".join(s.kinds) or "-" for s in splits],
        "ignored pixels, %": [f"{100 * s.ignored:.1f}" for s in splits],
    }
    table = split_table(title, report.splits, rows)
    there = [name for name in report.classes if any(split.pixels.get(name) for split in splits)]
    for name in there:
        cells = []
        for split in splits:
            share = 100 * split.pixels.get(name, 0) / max(sum(split.pixels.values()), 1)
            cells.append(f"{share:.2f} %" if name in split.pixels else "[yellow]never[/]")
        table.add_row(f"  {escape(name)}", *cells)
    return [table, *left_out(len(report.classes) - len(there), "pixels")]
