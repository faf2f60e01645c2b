"""Photographs in, class maps out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from PIL import Image

from vistrain.data.segmentation.label_files import stored_values
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.pictures import class_colours, viewable
from vistrain.predictions import Segmentation
from vistrain.segmentation.semantic import SemanticNetwork, check_scales
from vistrain.tasks.base.inputs import InputFile, bare_names, picture_paths
from vistrain.tasks.base.predictor import ImagePredictor
from vistrain.tasks.segmentation.pictures import picture
from vistrain.writing import whole_file


class SegmentationPredictor(ImagePredictor[np.ndarray]):
    """Any picture in, the class channel of each of its pixels out, int64 `[H, W]`.

    Of files, `pictures/overlays/` shows the classes over the image with a legend, and `pictures/masks/` holds label
    files: palette PNGs whose values are those of the training data (ADE20K: 1 to 150); on request
    `pictures/probabilities/` holds `.npy` files `[K, H, W]` of the classes' probabilities.

    Args:
        model: a network that classifies pixels.
        device, base: see `Predictor`.
        window: side of the windows that pictures are cut into, pixels; 0: whole; by default the network's own.
        stride: between windows, pixels; two thirds of the window by default.
        merge: what is done where windows overlap: `mean`, `blend` or `cut`; by default the network's own.
        scales: sizes at which a picture is seen, 1 is the evaluation's; the mean probability decides.
        flip: see each mirrored, too.
        opacity: of the colours over the image, 0..1.
        probabilities: write the probability of each class at each pixel, too: `float16`, or `uint8`, 255 times it.

    Raises:
        ConfigError: a value is out of its range, or the network takes no windows.
    """

    overlays: ClassVar[str] = "overlays"
    masks: ClassVar[str] = "masks"
    maps: ClassVar[str] = "probabilities"

    def __init__(
        self,
        model: Network,
        device: str = "auto",
        *,
        window: int | None = None,
        stride: int | None = None,
        merge: Literal["mean", "blend", "cut"] | None = None,
        scales: tuple[float, ...] | None = None,
        flip: bool = False,
        opacity: float = 0.55,
        probabilities: Literal["uint8", "float16"] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(model, device, **base)
        if not 0 <= opacity <= 1:
            raise ConfigError("--opacity", f"{opacity} is not in 0..1")
        if window is None and stride is not None:
            raise ConfigError("--stride", "means nothing without windows", "give --window, too")
        if window == 0 and (stride is not None or merge is not None):
            word = "--merge" if stride is None else "--stride"
            raise ConfigError(word, "means nothing without windows", "give --window a side, or leave it out")
        self.opacity, self.probabilities, self._folder = opacity, probabilities, Path()
        self._bare: dict[Path, str] = {}
        if probabilities is not None and not isinstance(self.model, SemanticNetwork):
            raise ConfigError("--probabilities", f"{type(self.model).__name__} gives none", "leave it out")
        given = {"window": window, "merge": merge, "scales": scales, "flip": flip or None}
        wanted = [name for name, value in given.items() if value is not None]
        if not wanted:
            return
        if not isinstance(self.model, SemanticNetwork):
            raise ConfigError(f"--{wanted[0]}", f"{type(self.model).__name__} takes images whole, once", "leave it out")
        if merge is not None and window is None and self.model.window is None:
            raise ConfigError("--merge", "means nothing without windows", "give --window, too")
        if scales is not None:
            check_scales(scales, "--scales")
        self.model.scales = self.model.scales if scales is None else tuple(scales)
        self.model.flip = self.model.flip or flip
        self.model.window_merge = merge or self.model.window_merge
        if window is not None:
            self._cut(self.model, window, stride)

    @staticmethod
    def _cut(model: SemanticNetwork, window: int, stride: int | None) -> None:
        step = max(1, window * 2 // 3) if stride is None else stride
        if window < 0 or not 0 < max(step, 1 - bool(window)) <= max(window, 1):
            raise ConfigError("--window", f"{window} with a stride of {step}", "a stride is 1 to the window's side")
        model.window = (window, window) if window else None
        model.window_stride = (step, step) if window else None

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class maps of several uint8 `[H, W, 3]` pictures at a time, in their own sizes."""
        found: list[Segmentation] = self.model.predict(self.batch(inputs))
        return [cast(torch.Tensor, one.semantic).cpu().numpy() for one in found]

    def describe(self, image: np.ndarray, result: np.ndarray) -> dict[str, Any]:
        """Sides, and `classes`: what share of the pixels each class has, the largest first."""
        values, counts = np.unique(result, return_counts=True)
        names = self.labels.name_of
        shares = {names[v]: round(n / result.size, 6) for v, n in zip(values.tolist(), counts.tolist(), strict=True)}
        ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
        return {**super().describe(image, result), "classes": ordered}

    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        """See `Predictor`."""
        self._folder = folder
        paths = picture_paths(files, folder / self.overlays)
        bare = bare_names([path.relative_to(folder / self.overlays).as_posix() for path in paths])
        self._bare = dict(zip(paths, bare.values(), strict=True))
        return paths

    def draw(self, image: np.ndarray, result: np.ndarray) -> np.ndarray:
        """The picture, small ones enlarged, under its classes, with a legend below it."""
        return picture(viewable(image)[0], result, self.labels, opacity=self.opacity)

    def write_picture(self, file: InputFile, image: np.ndarray, result: np.ndarray, target: Path) -> None:
        """See `Predictor` and the class."""
        super().write_picture(file, image, result, target)
        name = self._bare[target]
        write_label_file(self._folder / self.masks / f"{name}.png", result, self.labels)
        if self.probabilities is not None:
            self._write_probabilities(image, self._folder / self.maps / f"{name}.npy")

    @torch.inference_mode()
    def _write_probabilities(self, image: np.ndarray, path: Path) -> None:
        """Look at a picture once more, and write tile by tile into the file: all classes of a large one fill the memory
        many times over.

        Raises:
            DataError: it cannot be written.
        """
        assert isinstance(self.model, SemanticNetwork)
        shape = (self.labels.num_classes, *image.shape[:2])
        with whole_file(path) as partial:
            stored = np.lib.format.open_memmap(partial, "w+", np.dtype(self.probabilities), shape)
            for rows, columns, tile in self.model.probability_tiles(self.batch([image])):
                values = (tile * 255).round().to(torch.uint8) if self.probabilities == "uint8" else tile.half()
                stored[:, rows, columns] = values.cpu().numpy()
            stored.flush()

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """How many classes."""
        return f"{len({name for entry in entries for name in entry['classes']})} classes"

    def header(self) -> dict[str, Any]:
        """The classes, and the values that label files have for them."""
        return {"classes": [{"value": v, "name": n} for v, n in zip(self.labels.ids, self.labels.names, strict=True)]}


def write_label_file(path: Path, classes: Any, labels: Any) -> None:
    """Write a class map as the data set's label files are: an 8-bit PNG with the classes' colours as its palette, or a
    16-bit one without, where values need that.

    Args:
        path: ends in `.png`; written whole or not at all.
        classes: `[H, W]`, class channels.
        labels: of the network.

    Raises:
        DataError: it cannot be written.
    """
    stored = stored_values(labels, np.asarray(classes))
    image = Image.fromarray(stored)
    if stored.dtype == np.uint8:
        palette = np.zeros((256, 3), np.uint8)
        for channel, colour in class_colours(labels).items():
            palette[labels.category_of[channel]] = colour
        image.putpalette(palette.tobytes())
    with whole_file(path) as partial:
        image.save(partial, format="PNG")
