"""What looking at any data set takes: every file opened by several threads, copies found, a report written."""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import track

from vistrain.errors import DataError, VistrainError
from vistrain.processes import available_cores
from vistrain.writing import whole_file

MOST = 20  # findings of a kind that are shown; report.json has all
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class SplitFindings:
    """What was found in a split; each kind of set has its own, with more in it.

    Attributes:
        bad_files: file -> why it cannot be used.
        remedies: why a file cannot be used -> what mends it, where that is known.
        problem: why the split could not be listed, else empty.
        refused: what a run would refuse or silently lose, and what to do about it.
        several: files of several pages or frames, of which only the first is read.
        repeated: groups of files of this split with the same pixels, where that is looked at.
    """

    bad_files: dict[str, str] = field(default_factory=dict, kw_only=True)
    remedies: dict[str, str] = field(default_factory=dict, kw_only=True)
    problem: str = field(default="", kw_only=True)
    refused: list[str] = field(default_factory=list, kw_only=True)
    several: list[str] = field(default_factory=list, kw_only=True)
    repeated: list[list[str]] = field(default_factory=list, kw_only=True)

    def refuse_file(self, error: DataError) -> None:
        """Keep that a file cannot be used, why, and what mends it."""
        self.bad_files[error.where] = error.problem
        if error.remedy:
            self.remedies[error.problem] = error.remedy


@dataclass
class Findings(ABC):
    """What `DataModule.check` found; each kind of set has its own, with more in it.

    Attributes:
        splits: by name.
        leaks: groups of files with the same pixels in more than one split, where that is looked at.
        pictures: the PNGs that were written.
    """

    splits: Mapping[str, SplitFindings]
    leaks: list[list[str]] = field(default_factory=list, kw_only=True)
    pictures: list[str] = field(default_factory=list, kw_only=True)

    @property
    def ok(self) -> bool:
        """Whether a run can go through and uses all there is: every split can be listed and every file read, nothing is
        refused. Leaks do not stop one."""
        return not any(s.bad_files or s.problem or s.refused or s.several for s in self.splits.values())

    @property
    def said(self) -> set[str]:
        """Why splits cannot be listed, or what a run would refuse of them, as its own errors say it."""
        return {line for split in self.splits.values() for line in (split.problem, *split.refused) if line}

    @property
    def written(self) -> str:
        """What was written, in words."""
        return "report and pictures" if self.pictures else "report"

    def lists(self, error: VistrainError) -> bool:
        """Whether an error of a run is of what is said already: of a split, or of a file that cannot be used."""
        if not isinstance(error, DataError):
            return str(error) in self.said
        files = (file for split in self.splits.values() for file in split.bad_files)
        ends = ("/", ": ")  # of a folder, where files are told by their place in it; of a stage
        return bool(self.said) or any(
            error.where == file or error.where.endswith(tuple(end + file for end in ends)) for file in files
        )

    @abstractmethod
    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""

    def note_copies(self, seen: Mapping[bytes, Sequence[str]]) -> None:
        """Keep which files have the same pixels, see `same_pixels`."""
        self.leaks, repeated = same_pixels(seen)
        for split, groups in repeated.items():
            self.splits[split].repeated = groups

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as in `report.json`."""
        return {"ok": self.ok, **asdict(self)}


def opened(
    items: Sequence[Item], open_one: Callable[[Item], Result], title: str
) -> Iterator[tuple[Item, Result | DataError]]:
    """Each item with what a function makes of it, or its DataError; in order, with a progress bar on a terminal.

    Threads do: decoding frees Python's lock.
    """

    def safe(item: Item) -> tuple[Item, Result | DataError]:
        try:
            return item, open_one(item)
        except DataError as error:
            return item, error

    with ThreadPoolExecutor(available_cores()) as pool:
        results: Iterable[tuple[Item, Result | DataError]] = pool.map(safe, items)
        if sys.stderr.isatty():
            console = Console(stderr=True)
            results = track(results, title, total=len(items), console=console, transient=True)
        yield from results


def pixel_hash(pixels: np.ndarray) -> bytes:
    """16 bytes that tell images of other pixels or widths apart."""
    contiguous = np.ascontiguousarray(pixels)
    return hashlib.blake2b(contiguous.data, digest_size=16, salt=b"%d" % pixels.shape[1]).digest()


def same_pixels(seen: Mapping[bytes, Sequence[str]]) -> tuple[list[list[str]], dict[str, list[list[str]]]]:
    """Groups of files with the same pixels.

    Args:
        seen: hash -> files as `split: file`.

    Returns:
        Those in more than one split; and split -> those within it, without the split's name.
    """
    leaks, repeated = [], dict[str, list[list[str]]]()
    for files in seen.values():
        where = {file.split(": ")[0] for file in files}
        if len(where) > 1:
            leaks.append(list(files))
        elif len(files) > 1:
            repeated.setdefault(where.pop(), []).append([file.split(": ", 1)[1] for file in files])
    return leaks, repeated


def refusals(name: str, split: SplitFindings) -> list[str]:
    """Lines for a terminal about why a run could not go through with a split, or would lose a part of it."""
    lines = [f"[red]{name}[/]: {escape(split.problem)}"] if split.problem else []
    lines += [f"[red]refused[/] {name}: {escape(why)}" for why in split.refused[:MOST]]
    if len(split.refused) > MOST:
        lines.append(f"... and {len(split.refused) - MOST} more, see report.json")
    lines += unreadable(name, split.bad_files, split.remedies)
    if split.several:
        first = escape(", ".join(split.several[:3]))
        remedy = "save each page or frame as a file of its own"
        lines.append(f"[red]{name}[/]: of {len(split.several)} files only the first page is read ({first}) - {remedy}")
    return lines


def unreadable(split: str, bad: Mapping[str, str], remedies: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Lines for a terminal about files that cannot be used (file -> why), one for all of which the same is said, with
    what mends it."""
    alike: dict[str, list[str]] = {}
    for file, why in bad.items():
        alike.setdefault(why, []).append(file)
    lines = []
    for why, files in list(alike.items())[:MOST]:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        mend = f"\n    -> {escape(remedies[why])}" if why in remedies else ""
        lines.append(f"[red]unusable[/] {split}: {escape(files[0])}{more}: {escape(why)}{mend}")
    if rest := sum(map(len, list(alike.values())[MOST:])):
        lines.append(f"... and {rest} more, see report.json")
    return lines


def shown(groups: Sequence[Sequence[str]]) -> str:
    """The first groups of equal files, for a line."""
    return escape("; ".join(" = ".join(files) for files in groups[:3]))


def write_report(content: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json`.

    Raises:
        DataError: the folder cannot be written.
    """
    with whole_file(folder / "report.json") as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
