"""Clips without labels: folders of frames, and video files, of which no more is decoded than a clip needs.

Video files are read by OpenCV, which brings its own decoders; a file is gone through from its start, so that a frame is
the same one whatever the codec.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from rich.console import RenderableType
from rich.table import Table

from vistrain.data.base.check import Findings, SplitFindings, opened, refusals, write_report
from vistrain.data.base.collate import Batch
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import SUFFIXES, read_image
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.base.storage import files_below, is_folder
from vistrain.data.classification.class_folders import hold_out, refuse_share
from vistrain.data.classification.module import LabelledImage, collate_pictures
from vistrain.data.classification.transforms import random_window, resize
from vistrain.errors import ConfigError, DataError, refuse_below

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # it would write lines of its own beside an error
RATIO = (3 / 4, 4 / 3)  # width / height of the windows that are cut out


class Clip(Protocol):
    """Something that has frames."""

    @property
    def path(self) -> Path:
        """Its file or folder."""
        ...

    def __len__(self) -> int:
        """Its frames; of a video file what its head says, which may be wrong."""
        ...

    def read(self, chosen: Sequence[int]) -> list[np.ndarray]:
        """These frames (ascending), uint8 `[H, W, 3]`, RGB.

        Raises:
            DataError: one cannot be read.
        """
        ...


@dataclass(frozen=True)
class FrameFolder:
    """Pictures of a folder, one after the other.

    Args:
        path: the folder.
        names: of its frames, in their order.
    """

    path: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, chosen: Sequence[int]) -> list[np.ndarray]:
        """See `Clip`; frames of differing sizes are refused."""
        frames = [read_image(self.path / self.names[i], apply_exif=False) for i in chosen]
        if len({frame.shape for frame in frames}) > 1:
            (h, w), (height, width) = sorted({frame.shape[:2] for frame in frames})[:2]
            problem = f"has frames of {w}x{h} and of {width}x{height} pixels"
            raise DataError(str(self.path), problem, "put each video's frames into a folder of its own")
        return frames


@dataclass(frozen=True)
class VideoFile:
    """A video file.

    Args:
        path: the file.
    """

    path: Path

    def __len__(self) -> int:
        capture = self._open()
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        return max(count, 0)

    def read(self, chosen: Sequence[int]) -> list[np.ndarray]:
        """See `Clip`."""
        capture, frames = self._open(), []
        try:
            wanted = set(chosen)
            for index in range(max(wanted) + 1):
                if not capture.grab():
                    problem = f"ends after {index} frame{'s' * (index != 1)}, and frame {max(wanted)} is wanted"
                    raise DataError(str(self.path), problem, "write it anew, or leave it out")
                if index in wanted:
                    good, frame = capture.retrieve()
                    if not good:
                        raise DataError(str(self.path), f"frame {index} cannot be decoded", "write it anew")
                    frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        finally:
            capture.release()
        return frames

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            problem = "is no video that can be read" if self.path.is_file() else "no such file"
            raise DataError(str(self.path), problem, "write it as MP4 or AVI, or as a folder of frames")
        return capture


def find_clips(folder: Path) -> list[Clip]:
    """The video files below a folder, and the folders that hold pictures, sorted by name; a folder's frames are in the
    order of the numbers in their names.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        names = [n for n in files_below(folder) if not os.path.basename(n).startswith(".")]
    except OSError as error:
        raise DataError(str(folder), f"cannot be read: {error.strerror or error}") from error
    frames: dict[str, list[str]] = defaultdict(list)
    found: list[Clip] = []
    for name in names:
        if name.lower().endswith(VIDEOS):
            found.append(VideoFile(folder / name))
        elif name.lower().endswith(SUFFIXES):
            frames[os.path.dirname(name)].append(os.path.basename(name))
    found += [FrameFolder(folder / where, tuple(sorted(inside, key=_numbered))) for where, inside in frames.items()]
    return sorted(found, key=lambda clip: str(clip.path))


def _numbered(name: str) -> tuple[tuple[int, ...], str]:
    """`frame10` after `frame9`."""
    digits = "".join(c if c.isdigit() else " " for c in os.path.splitext(name)[0]).split()
    return tuple(int(d) for d in digits if d.isdecimal()), name


class Clips(SampleSet):
    """Clips of a fixed number of frames, read and cropped on demand.

    Args:
        clips: where they come from.
        frames: of a clip.
        step: from frame to frame.
        size: height and width of the result, pixels.
        scale: least and greatest share of a frame's area that is cut out while training; None evaluates: the middle of
            the video, and the central window.
        flip: probability.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        frames: int,
        step: int,
        size: tuple[int, int],
        scale: tuple[float, float] | None,
        flip: float = 0.0,
    ) -> None:
        self.clips, self.frames, self.step, self.size, self.scale, self.flip = clips, frames, step, size, scale, flip

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, seed: int = 0) -> LabelledImage:
        """A clip `[T, H, W, 3]`; all its frames are cut out alike.

        Raises:
            DataError: it cannot be read, or is too short.
        """
        clip, rng = self.clips[index], np.random.default_rng(seed)
        last = len(clip) - (self.frames - 1) * self.step - 1
        if last < 0:
            refuse_short(clip, self.frames, self.step)
        start = last // 2 if self.scale is None else int(rng.integers(last + 1))
        read = clip.read([start + i * self.step for i in range(self.frames)])
        height, width = read[0].shape[:2]
        if self.scale is None:
            top, left, rows, columns = central_window(height, width, self.size[1] / self.size[0])
        else:
            top, left, rows, columns = random_window(height, width, self.scale, RATIO, rng)
        flipped = self.scale is not None and rng.random() < self.flip
        made = [resize(frame[top : top + rows, left : left + columns], self.size, "bilinear") for frame in read]
        image = np.stack([cv2.flip(frame, 1) for frame in made] if flipped else made)
        return LabelledImage(image, index, (self.frames, height, width), ())

    def where(self, index: int) -> str:
        """The video's file, or the folder of its frames."""
        return str(self.clips[index].path)


def central_window(height: int, width: int, shape: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest window of a shape (width / height) in the middle of a frame."""
    rows = min(height, max(round(width / shape), 1))
    columns = min(width, max(round(height * shape), 1))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def refuse_short(clip: Clip, frames: int, step: int) -> None:
    """Refuse a video of which no clip can be cut.

    Raises:
        DataError: it has too few frames.
    """
    wanted = (frames - 1) * step + 1
    if len(clip) < wanted:
        every = "" if step == 1 else f", one frame in {step},"
        has = f"{len(clip)} frame{'s' * (len(clip) != 1)}"
        problem = f"is too short: it has {has}, a clip of {frames}{every} wants {wanted}"
        raise DataError(str(clip.path), problem, "lower data.frames or data.step, or leave it out")


@dataclass
class ClipSplitFindings(SplitFindings):
    """What a split holds.

    Attributes:
        clips: videos that are listed.
        frames: of the shortest and the longest of those that can be read.
    """

    clips: int = 0
    frames: tuple[int, int] = (0, 0)


@dataclass
class ClipFindings(Findings):
    """What `ClipFolder.check` found.

    Attributes:
        splits: by name.
    """

    splits: dict[str, ClipSplitFindings] = field(default_factory=dict)

    def table(self) -> RenderableType:
        """A line for each split, and for what is wrong with it."""
        table = Table("split", "videos", "frames")
        for name, split in self.splits.items():
            table.add_row(name, str(split.clips), " to ".join(map(str, split.frames)))
            for line in refusals(name, split):
                table.add_row("", line, "")
        return table


class ClipFolder(DataModule):
    """Videos of any folder: files (MP4, AVI, MKV, WebM, MOV), and folders of frames, one folder for each video.

    Args:
        train: folder of the training videos, relative to the root.
        val: of those that evaluations look at; without it, every `holdout`-th part of the training videos is held out,
            the same ones each time.
        test: what `vistrain test` evaluates; as `val` if None.
        holdout: share of the videos that is held out.
        frames: T of a clip.
        step: from one frame of a clip to the next, in frames of the video.
        image_size: height and width of a clip, pixels.
        scale: least and greatest share of a frame's area that training clips are cut out of.
        flip: probability that a training clip is mirrored.
        base: see `DataModule`.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        train: str = ".",
        val: str | None = None,
        test: str | None = None,
        holdout: float = 0.05,
        frames: int = 16,
        step: int = 4,
        image_size: int | tuple[int, int] = 224,
        scale: tuple[float, float] = (0.4, 1.0),
        flip: float = 0.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        refuse_below(1, frames=frames, step=step, image_size=min(size))
        refuse_share(holdout)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError("scale", f"{list(scale)} is not [least, greatest] share of the area in 0..1")
        if not 0 <= flip <= 1:
            raise ConfigError("flip", f"{flip} is not in 0..1")
        self.folders: dict[SplitName, str | None] = {"train": train, "val": val, "test": test or val}
        self.holdout, self.frames, self.step, self.size, self.scale = holdout, frames, step, size, scale
        self.flip = flip
        self._found: dict[SplitName, list[Clip]] = {}

    def clips(self, split: SplitName) -> list[Clip]:
        """The videos of a split, listed the first time.

        Raises:
            DataError: the folder is missing or holds too few, or a folder of frames is too short (files are opened as
                they are read).
        """
        if split in self._found:
            return self._found[split]
        held_out = self.folders[split] is None
        folder = self.root / (self.folders[split] or self.folders["train"] or ".")
        if not is_folder(folder):
            raise DataError(str(folder), "no such folder", self.remedy(split))
        found = find_clips(folder)
        if held_out or (split == "train" and self.folders["val"] is None):
            if len(found) == 1:
                problem = "has one video, of which none can be held out"
                raise DataError(str(folder), problem, "add some, or name data.val")
            if found:
                chosen = hold_out(np.zeros(len(found), np.int64), self.holdout, take=held_out)
                found = [found[i] for i in chosen]
        if not found:
            kinds = ", ".join(VIDEOS)
            raise DataError(str(folder), "has no video", f"it wants files ({kinds}), or folders of frames")
        wanted = (self.frames - 1) * self.step + 1
        short = [clip for clip in found if isinstance(clip, FrameFolder) and len(clip) < wanted]
        try:
            for clip in short:
                refuse_short(clip, self.frames, self.step)
        except DataError as error:
            rest = ", ".join(f"{clip.path.name} ({len(clip)})" for clip in short[1:])
            raise DataError(error.where, error.problem + (f"; so are {rest}" if rest else ""), error.remedy) from None
        self._found[split] = found
        return found

    def find(self, split: SplitName) -> None:
        """Finds the videos of a split."""
        self.clips(split)

    def dataset(self, split: SplitName) -> Clips:
        """The clips of a split: of a random time and window for `train`, of the middle otherwise."""
        place = (self.frames, self.step, self.size)
        if split == "train":
            return Clips(self.clips(split), *place, scale=self.scale, flip=self.flip)
        return Clips(self.clips(split), *place, scale=None)

    def image_sizes(self) -> dict[str, tuple[int, ...]]:
        """Frames, height and width of the clips, by the key that sets them: what a model must be able to take."""
        return {"image_size": (self.frames, *self.size)}

    def largest(self, split: SplitName) -> tuple[int, ...]:
        """Frames, and the sides of a clip, pixels."""
        return (self.frames, *self.size)

    def ground_truth(self, split: SplitName) -> dict[str, Any]:
        """`images`: how many videos there are; they have no classes."""
        found = len(self.clips(split))
        return {"images": found, "labels": [()] * found}

    def image_path(self, split: SplitName, image_id: int) -> Path:
        """The file of a video, or the folder of its frames."""
        return self.clips(split)[image_id].path

    @property
    def collate(self) -> Callable[[Sequence[LabelledImage]], Batch]:
        """See `collate_pictures`; `image` is `[B, 3, T, H, W]`."""
        return collate_pictures

    def check(self, output: str | Path) -> ClipFindings:
        """Reads a clip of every video.

        Args:
            output: folder for `report.json`, made if absent.

        Raises:
            DataError: the output cannot be written.
        """
        report = ClipFindings()
        names: tuple[SplitName, ...] = ("train", "val", "test")
        for name in names if self.folders["test"] != self.folders["val"] else names[:2]:
            found = report.splits[name] = ClipSplitFindings()
            try:
                samples = Clips(self.clips(name), self.frames, self.step, self.size, scale=None)
            except DataError as error:
                found.problem = str(error)
                continue
            found.clips, least, most = len(samples), math.inf, 0
            found.refused += self.refusals(name, len(samples))

            def count(index: int, of: Clips = samples) -> int:
                of.sample(index)
                return len(of.clips[index])

            for index, result in opened(range(len(samples)), count, f"opening {name}"):
                if isinstance(result, DataError):
                    found.bad_files[samples.where(index)] = result.problem
                else:
                    least, most = min(least, result), max(most, result)
            found.frames = (0 if least == math.inf else int(least), most)
        write_report(report.to_dict(), Path(output))
        return report
