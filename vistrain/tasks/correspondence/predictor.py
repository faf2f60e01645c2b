"""Pairs of pictures in, displacements out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from vistrain.data.base.images import SUFFIXES
from vistrain.data.base.storage import file_names
from vistrain.data.correspondence.displacement_files import write_displacement
from vistrain.errors import DataError
from vistrain.network import Network
from vistrain.pictures import grid
from vistrain.predictions import Displacement
from vistrain.tasks.base.given import kind_of
from vistrain.tasks.base.inputs import InputFile, bare_names, picture_paths
from vistrain.tasks.base.predictor import ImagePredictor
from vistrain.tasks.correspondence.pictures import cells


class MatchingPredictor(ImagePredictor[Displacement]):
    """Pairs of pictures in; where each pixel of the first one is in the second out.

    The files that are given are the first images. In Python an input is a pair of what `ImagePredictor` takes.
    `pictures/colours/` shows both pictures and the displacements in colours, `pictures/fields/` holds them as numbers:
    PFM for disparity, `.flo` for flow, which `data.correspondence` reads.

    Args:
        model: a network for pairs.
        device, base: see `Predictor`.
        second: folder of the second images, which are called as the first ones (their suffixes may differ).
        kitti: write numbers as KITTI's 16-bit PNG files instead.
    """

    noun = "pair"
    lossless = True
    colours: ClassVar[str] = "colours"
    fields: ClassVar[str] = "fields"

    def __init__(
        self, model: Network, device: str = "auto", *, second: str = "", kitti: bool = False, **base: Any
    ) -> None:
        super().__init__(model, device, **base)
        self.second, self.kitti, self._folder = Path(second), kitti, Path()
        self._names = {Path(name).stem: name for name in file_names(self.second) if name.lower().endswith(SUFFIXES)}
        self._named = bool(second)
        self._bare: dict[Path, str] = {}
        if second and not self._names:
            raise DataError(second, "has no picture, or is no folder", "give --second the folder of the second images")

    def read(self, source: Any) -> np.ndarray:
        """uint8 `[H, W, 6]`: the colours of the first image, and of the second one.

        Raises:
            DataError: see `Predictor`; there is no second image, or the two differ in size.
        """
        if isinstance(source, str | Path):
            source = (source, self._second_of(Path(source)))
        if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] == 6:
            return source
        if not isinstance(source, list | tuple) or len(source) != 2:
            raise DataError("input", f"{kind_of(source)} is no pair of pictures", "give two in a tuple")
        first, second = (super(MatchingPredictor, self).read(one) for one in source)
        if first.shape != second.shape:
            (h, w), (height, width) = second.shape[:2], first.shape[:2]
            name = str(source[1]) if isinstance(source[1], str | Path) else "the second picture"
            raise DataError(
                name, f"is {w}x{h} pixels, the first {width}x{height}", "rectify or resize both to one size"
            )
        return np.concatenate((first, second), 2)

    def _second_of(self, path: Path) -> Path:
        if not self._named:
            raise DataError(str(path), "has no second image", "give --second the folder of the second images")
        if path.stem not in self._names:
            raise DataError(str(path), f"has no second image {self.second / path.stem}.*", "complete the folder")
        return self.second / self._names[path.stem]

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[Displacement]:
        """Displacements of several pairs `[H, W, 6]`, on the CPU."""
        batch = self.batch([pair[..., :3] for pair in inputs])
        batch["views"] = self.batch([pair[..., 3:] for pair in inputs])["image"][None]
        found: list[Displacement] = self.model.predict(batch)
        return [Displacement(one.field.cpu()) for one in found]

    def describe(self, image: np.ndarray, result: Displacement) -> dict[str, Any]:
        """Beside the sides the mean and the largest displacement, pixels."""
        lengths = result.field.norm(dim=0)
        said = {"mean_displacement": float(lengths.mean()), "largest_displacement": float(lengths.max())}
        return {**super().describe(image, result), **said}

    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        """See `Predictor`."""
        self._folder = folder
        paths = picture_paths(files, folder / self.colours, self.lossless)
        bare = bare_names([path.relative_to(folder / self.colours).as_posix() for path in paths])
        self._bare = dict(zip(paths, bare.values(), strict=True))
        return paths

    def draw(self, image: np.ndarray, result: Displacement) -> np.ndarray:
        """Both pictures, and the displacements in colours."""
        captions, images = zip(*cells("first", image[..., :3], image[..., 3:], result.field.numpy(), None), strict=True)
        return grid([list(images)], [list(captions)])

    def write_picture(self, file: InputFile, image: np.ndarray, result: Displacement, target: Path) -> None:
        """See `Predictor` and the class."""
        super().write_picture(file, image, result, target)
        suffix = ".png" if self.kitti else ".pfm" if len(result.field) == 1 else ".flo"
        write_displacement(self._folder / self.fields / f"{self._bare[target]}{suffix}", result.field.numpy())

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """The mean over all pairs."""
        mean = sum(entry["mean_displacement"] for entry in entries) / len(entries)
        return f"displacements of {mean:.2f} px on average"
