"""What the values of label files say about a config that does not fit them, and the line that mends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vistrain.data.segmentation.label_files import LabelRule, read_label_file
from vistrain.errors import DataError

if TYPE_CHECKING:
    from vistrain.data.segmentation.check import MaskSplitReport

NAMED = 8  # values, colours or classes that a line lists
LOOKED_AT = 32  # masks that a run looks at before it begins
LEAVE_OUT = "data.unpaired=skip leaves them out"
TOO_MANY = 64  # colours that classes are not painted in
RARE = 0.01  # share of the pixels below which a value is a border, or a slip
MUCH = 0.1  # share of the pixels above which hardly anyone leaves them out


@dataclass(frozen=True)
class Advice:
    """A finding.

    Attributes:
        split: where.
        problem: what is wrong or odd.
        remedy: the line of the config, or what else mends it; may be empty.
        stops: whether a run cannot go through as it is.
    """

    split: str
    problem: str
    remedy: str = ""
    stops: bool = False


def advice(splits: Mapping[str, MaskSplitReport], rule: LabelRule) -> list[Advice]:
    """All findings of a set, split by split.

    Args:
        splits: what `check_masks` has seen.
        rule: what the config says of the values.
    """
    found: list[Advice] = []
    stored = sum((Counter(split.values) for split in splits.values()), Counter[str]())
    for name, split in splits.items():
        if split.strangers:
            found.append(_strangers(name, split, rule, stored))
        else:
            found += _quiet(name, split, rule, stored)
        if split.black_and_white and not split.bordered and not _half_told(split, rule) and _needs_more(rule):
            files = split.black_and_white
            problem = f"{len(files)} masks hold 0 and 255 alone, others never 255, such as {files[0]}"
            found.append(Advice(name, problem, "export them as the others are; 255 is not what a class has there"))
        if split.bare or split.lonely:
            found += _alone(name, split)
        if split.palettes > 1 and not rule.colours:
            problem = f"palette masks have {split.palettes} different palettes: one value may be several classes"
            found.append(Advice(name, problem, "data.colors=true looks the colours up; or export with one palette"))
        if len(split.kinds) > 1:
            kinds = ", ".join(f"{count} {kind}" for kind, count in split.kinds.items())
            found.append(Advice(name, f"label files of several kinds: {kinds}", "are all of them exported alike?"))
        sound = split.kinds and not split.strangers and not split.bad_files and not _half_told(split, rule)
        if sound and len(split.pixels) < (2 if name == "train" else 1):
            found.append(Advice(name, *_one(tuple(split.pixels), rule, name), stops=True))
        if split.unlabelled:
            problem = f"{len(split.unlabelled)} masks are ignored as a whole, such as {split.unlabelled[0]}"
            found.append(Advice(name, problem, "label them, or leave them out"))
    told = {name: split for name, split in splits.items() if not _half_told(split, rule)}
    return found + _never(told, rule.labels.names)


def _share(value: str, stored: Mapping[str, int]) -> float:
    """Of the pixels that are not 255, those of a value, 0..1."""
    return stored.get(value, 0) / max(sum(count for other, count in stored.items() if other != "255"), 1)


def _strangers(name: str, split: MaskSplitReport, rule: LabelRule, stored: Mapping[str, int]) -> Advice:
    """Values or colours that no class has; `stored` are the values of all splits, which count alike."""
    files = max(files for _, files in split.strangers.values())
    listed = ", ".join(list(split.strangers)[:NAMED])
    if any(" " in value for value in split.values):
        return _colours(name, split, rule, files)
    used, classes = {int(v) for v in split.values}, set(rule.classes.values)
    problem = f"the values {listed} are no class, in up to {files} files"
    count = len(classes)
    if used <= {0, 255} and count == 2:
        problem = f"masks hold 0 and 255, classes have {_listed(sorted(classes))}"
        return Advice(name, problem, "data.values=[0,255] data.ignore=[]", stops=True)
    if _half_told(split, rule):
        return Advice(name, *_half(rule), stops=True)
    first, end = min(classes), max(classes) + 1
    follow = classes == set(range(first, end))
    if follow and str(end) in split.strangers and used <= {*classes, 0, 255, end}:
        if first or _share("0", stored) >= RARE:  # 0 is a class as others are: nothing is shifted
            kept = () if rule.ignore == "others" else rule.ignore
            ignored = _listed(sorted({*kept, *map(int, split.strangers)}))
            line = f"data.ignore={ignored} if {end} is void, or name its class in data.classes"
            if not first and 0 in used:
                line += "; where 0 is no class, data.first_value=1 data.ignore=[0,255]"
            return Advice(
                name, f"{problem}: {end} follows the last class, {rule.classes.names[-1]!r}", line, stops=True
            )
        problem = f"values run from {min(used - {0})} to {end}, classes from {first}: off by one"
        border = _listed([0, 255] if "0" in stored else [255])
        return Advice(name, problem, f"data.first_value={first + 1} data.ignore={border}", stops=True)
    if follow and first and first - 1 in used and not used - {*range(first - 1, end - 1), 255}:
        problem = f"values run from {first - 1} to {max(used - {255})}, classes from {first}: off by one"
        return Advice(name, problem, f"data.first_value={first - 1} data.ignore=[255]", stops=True)
    strangers = [int(value) for value in split.strangers]
    if len(strangers) > TOO_MANY:
        return Advice(name, problem, "interpolated while resizing? resize masks with nearest neighbours", stops=True)
    ignore = sorted({*(() if rule.ignore == "others" else rule.ignore), *strangers})
    line = f"data.ignore={_listed(ignore)} leaves them out, or name their classes in data.classes"
    return Advice(name, problem, line, stops=True)


def _quiet(name: str, split: MaskSplitReport, rule: LabelRule, stored: Mapping[str, int]) -> list[Advice]:
    """Values that fit the config, and yet hardly mean what it says."""
    used, values, names = set(split.values), rule.classes.values, rule.classes.names
    if _half_told(split, rule):
        return [Advice(name, *_half(rule), stops=True)]
    if min(values) != 1 or "0" not in used:
        return []
    last, share = names[values.index(max(values))], _share("0", stored)
    if str(max(values)) not in stored and str(max(values) - 1) in used:
        problem = f"0 is ignored, and {last!r}, the last class, never occurs: do values count from 0?"
        shifted = share >= RARE and all(str(value - 1) in stored for value in values)  # nothing else is missing
        return [Advice(name, problem, "if so, data.first_value=0 data.ignore=[255]", stops=shifted)]
    if share >= MUCH and rule.ignore != "others":
        problem = f"0 is ignored, {100 * share:.0f} % of the pixels: is it a class, and {max(values)} void?"
        return [Advice(name, problem, f"if so, data.first_value=0 data.ignore=[{max(values)},255]")]
    return []


def _half_told(split: MaskSplitReport, rule: LabelRule) -> bool:
    """Whether a split's masks are black and white alone, and at most one of the two is a class."""
    return set(split.values) == {"0", "255"} and _needs_more(rule)


def _needs_more(rule: LabelRule) -> bool:
    """Whether the classes are several, and 0 and 255 are not both among them."""
    return not rule.colours and len(rule.classes.names) > 1 and not {0, 255} <= set(rule.classes.values)


def _half(rule: LabelRule) -> tuple[str, str]:
    """Black and white masks, of which one half is read: the problem, and what mends it."""
    values, names = rule.classes.values, rule.classes.names
    if len(names) == 2:
        problem = f"masks hold 0 and 255 alone, of which classes have {_listed(values)}: the rest is ignored"
        return problem, "data.values=[0,255] data.ignore=[]"
    stored = list(zip(values, names, strict=True))
    here = [f"{value} is {name!r}, " for value, name in stored if value in (0, 255)]
    never = ", ".join([name for value, name in stored if value not in (0, 255)][:NAMED])
    problem = f"masks hold 0 and 255 alone: {''.join(here)}the rest is ignored, and these never occur: {never}"
    wanted = ", ".join(f"{value} {name}" for value, name in stored[:NAMED])
    return (
        problem,
        f"export masks with a value for each class ({wanted}); if 255 is one of them, say so in data.values, and "
        "data.ignore=[]",
    )


def half_read(files: Sequence[Path], rule: LabelRule) -> DataError | None:
    """What is wrong with black and white masks where at most one of the two is a class of several; or None.

    A few files are read, spread over all of them; where they are black and white alone, all are, until one shows that
    it is not so. What cannot be read is skipped.
    """
    if not _needs_more(rule):
        return None
    spread = range(0, len(files), max(len(files) // LOOKED_AT, 1))
    if _used(files[i] for i in spread) == {0, 255} and _used(files) == {0, 255}:
        return DataError(str(files[0].parent), *_half(rule))
    return None


def nothing_told(files: Sequence[Path], rule: LabelRule, split: str) -> DataError | None:
    """What is wrong with a split's masks of which every pixel is ignored; or None.

    Masks are read until one has a class, which most often is the first. Where one cannot be read, nobody knows.
    """
    for path in files:
        try:
            if (rule.read(path) != rule.ignored).any():
                return None
        except DataError:
            return None
    return DataError(f"{split}: {files[0].parent}", *_one((), rule, split)) if files else None


def one_class(files: Sequence[Path], rule: LabelRule) -> DataError | None:
    """What is wrong with masks of which one class at the most can be learned, as all else is ignored; or None.

    Masks are read, spread over all of them, until two classes are seen. Where one cannot be read, nobody knows.
    """
    seen: set[int] = set()
    step = max(len(files) // LOOKED_AT, 1)
    for path in (files[i] for start in range(step) for i in range(start, len(files), step)):
        try:
            seen |= set(np.unique(rule.read(path)).tolist()) - {rule.ignored}
        except DataError:
            return None
        if len(seen) > 1:
            return None
    return DataError(str(files[0].parent), *_one([rule.labels.names[channel] for channel in seen], rule))


def _one(names: Sequence[str], rule: LabelRule, split: str = "train") -> tuple[str, str]:
    """Masks of one class, or none: the problem, and what mends it."""
    remedy = "name what surrounds it as a class of its own"
    if not names:
        what = "learned" if split == "train" else "measured"
        problem = f"every pixel of the masks is ignored: nothing can be {what}"
        return problem, f"correct data.classes, data.ignore or data.{split}"
    if len(rule.classes.names) == 1 and not rule.colours and rule.ignore != "others" and rule.ignore:
        value = rule.classes.values[0]
        remedy += f": data.classes=[other,{names[0]}] data.values=[{rule.ignore[0]},{value}] data.ignore=[]"
    problem = f"every pixel that counts is {names[0]!r}: nothing can be learned, and any network reaches an mIoU of 1"
    return problem, remedy


def _used(files: Iterable[Path]) -> set[int]:
    """The values of masks, of the files up to the first one that is not black and white."""
    used: set[int] = set()
    for path in files:
        with suppress(DataError):
            stored = read_label_file(path)
            used |= set(np.unique(stored).tolist()) if stored.ndim == 2 else {-1}
        if not used <= {0, 255}:
            break
    return used


def _colours(name: str, split: MaskSplitReport, rule: LabelRule, files: int) -> Advice:
    """Masks with colours: the nearest class of each, or a palette to start from."""
    colours = [tuple(int(c) for c in value.split()) for value in split.strangers if " " in value]
    if len(colours) > TOO_MANY:
        problem = f"{len(colours)} colours that are no class's, in up to {files} files"
        return Advice(name, problem, "smoothed or compressed edges? export label values, without smoothing", stops=True)
    if rule.classes.palette:
        near = [f"{list(c)} (nearest: {_nearest(c, rule)})" for c in colours[:NAMED]]
        which = "no class's" if rule.colours else "stored instead of values"
        line = "add their classes, or data.ignore=others" if rule.colours else "data.colors=true"
        return Advice(name, f"colours are {which}: {', '.join(near)}", line, stops=True)
    listed = ", ".join(_listed(c) for c in colours[:NAMED])
    listed += f" and {len(colours) - NAMED} more" if len(colours) > NAMED else ""
    if len(colours) == len(rule.classes.names) == 1:
        line = f"data.colors=true data.palette=[{_listed(colours[0])}]"
    else:  # names stand where colours belong: which is whose is not known, and what cannot be run is not run unread
        names = ",".join(f"<{class_}>" for class_ in rule.classes.names[:NAMED])
        names += ",..." if len(rule.classes.names) > NAMED else ""
        line = f"data.colors=true data.palette=[{names}], with the colour of each class in place of its name"
    return Advice(name, f"masks hold colours, not values: {listed}", line, stops=True)


def _nearest(colour: Sequence[int], rule: LabelRule) -> str:
    def distance(index: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, rule.classes.palette[index], strict=True))

    return rule.classes.names[min(range(len(rule.classes.names)), key=distance)]


def without_masks(files: Sequence[str]) -> str:
    """What is said of images that have no mask."""
    return f"images without a mask: {len(files)}, such as {files[0]}"


def _alone(name: str, split: MaskSplitReport) -> list[Advice]:
    found = []
    if split.bare and not split.problem:
        found.append(Advice(name, without_masks(split.bare), LEAVE_OUT))
    if split.lonely:
        problem = f"{len(split.lonely)} masks have no image, such as {split.lonely[0]}"
        found.append(Advice(name, problem, f"they are left out; is data.{name}.image_suffix right?"))
    return found


def _never(splits: Mapping[str, MaskSplitReport], names: Sequence[str]) -> list[Advice]:
    """Classes that occur nowhere, or not where they are learnt or measured."""
    read = {name: split for name, split in splits.items() if split.pixels}
    missing = {name: [c for c in names if c not in split.pixels] for name, split in read.items()}
    nowhere = [c for c in names if all(c in absent for absent in missing.values())] if read else []
    found = []
    if nowhere:
        problem = f"classes that never occur: {', '.join(nowhere[:NAMED])}"
        found.append(Advice("all", problem, "take them out of data.classes, or correct their values"))
    for name, absent in missing.items():
        here = [c for c in absent if c not in nowhere]
        if here:
            what = "cannot be learnt" if name == "train" else "are not measured"
            found.append(Advice(name, f"classes that {what}, as they occur in other splits alone: {', '.join(here)}"))
    return found


def _listed(values: Sequence[int]) -> str:
    """`[0,255]`, as a command line takes it."""
    return f"[{','.join(map(str, values))}]"
