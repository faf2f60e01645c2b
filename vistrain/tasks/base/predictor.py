"""What every predictor does: any picture in; devices; what a loop over files asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from vistrain.data.base.images import read_image
from vistrain.errors import ConfigError, DataError

PICTURES = "pictures"  # folder below the output of `vistrain predict`
Result = TypeVar("Result")


class Predictor(ABC, Generic[Result]):
    """A network with everything around it: any picture in, what the task finds in it out.

    Args:
        model: has `predict(batch)`; it is moved to the device and put in evaluation mode.
        device: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps` ...

    Attributes:
        lossless: whether pictures are written as PNG, whatever the input was.

    Raises:
        ConfigError: there is no such device.
    """

    lossless = False

    def __init__(self, model: nn.Module, device: str = "auto") -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()

    @classmethod
    @abstractmethod
    def from_facts(
        cls,
        model: nn.Module,
        facts: Mapping[str, Any],
        device: str = "auto",
        allow: Collection[str] = (),
        **options: Any,
    ) -> Predictor[Any]:
        """Build one for a loaded network.

        Args:
            model: the network.
            facts: what its checkpoint carries: `config`, `labels`, `preprocessing`.
            device: see the class.
            allow: packages beyond the default ones whose classes the config may name.
            options: of the task, such as `threshold`; see `take`.

        Raises:
            ConfigError: an option is not of this task, or its value is wrong.
        """

    @abstractmethod
    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Results of several uint8 `[H, W, 3]` RGB pictures, on the CPU."""

    @abstractmethod
    def describe(self, image: np.ndarray, result: Result) -> dict[str, Any]:
        """What `predictions.json` says of one picture, beside `id`, `file`, `width` and `height`."""

    @abstractmethod
    def draw(self, image: np.ndarray, result: Result) -> np.ndarray:
        """uint8 `[H, W, 3]`: the picture to write."""

    def picture(self, file: Path, image: np.ndarray, result: Result) -> np.ndarray:
        """What is written for a file: uint8 `[H, W, 3]` as `draw` gives it, or `[H, W]`, `[H, W, 2]`, `[H, W, 4]`."""
        return self.draw(image, result)

    @abstractmethod
    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """What was found in all pictures, in a few words."""

    def header(self) -> dict[str, Any]:
        """What `predictions.json` says once."""
        return {}

    def write(self, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
        """Write further files, beside `predictions.json` and the pictures."""

    def predict(self, image: str | Path | np.ndarray | Image.Image) -> Result:
        """The result for one picture.

        Args:
            image: a file or a PIL image (its EXIF orientation is respected), or uint8 `[H, W, 3]` (RGB) or `[H, W]`.

        Raises:
            DataError: the file cannot be read, or the picture is of another kind.
        """
        return self.predict_batch([pixels(image)])[0]


def take(options: Mapping[str, Any], **defaults: Any) -> list[Any]:
    """The values of a task's options, in the order of the defaults; an option that is None counts as not given.

    Raises:
        ConfigError: an option is given that the task does not have.
    """
    for name, value in options.items():
        if value is not None and name not in defaults:
            remedy = f"its options are {', '.join(f'--{n}' for n in defaults)}" if defaults else ""
            raise ConfigError(f"--{name.replace('_', '-')}", "means nothing for the task of this network", remedy)
    return [default if options.get(name) is None else options[name] for name, default in defaults.items()]


def choose_device(name: str) -> torch.device:
    """The device that a name stands for.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch has no common error for this; a CPU-only build raises AssertionError for cuda
        reason = str(error).partition("\n")[0]
        raise ConfigError("--device", f"{name!r} is not available ({reason})", "use 'auto' or 'cpu'") from error
    return device


def pixels(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    """uint8 `[H, W, 3]` of a file, a PIL image or an array.

    Raises:
        DataError: the file cannot be read, or the picture is of another kind.
    """
    if isinstance(image, str | Path):
        return read_image(image, apply_exif=True)
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise DataError("image", f"PIL mode {image.mode} has no agreed range", "convert it to 8 bits")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype == np.uint8 and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError("image", f"{image.dtype} {list(image.shape)} is not uint8 [H, W, 3] or [H, W]")
    return np.ascontiguousarray(image)
