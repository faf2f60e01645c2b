"""Networks with everything around them: any input in, what the task finds in it out, and what is written of it."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch

from vistrain.config.builder import build
from vistrain.contract import Contract, constructor
from vistrain.data.base import bands
from vistrain.data.base.collate import batch_of
from vistrain.data.base.module import DataModule
from vistrain.data.base.transform import EvalTransform
from vistrain.devices import choose_device
from vistrain.errors import ConfigError, DataError
from vistrain.network import Network
from vistrain.structures import LabelSpace, Preprocessing
from vistrain.tasks.base.given import kind_of, read_picture
from vistrain.tasks.base.inputs import InputFile, find_files, find_images, picture_paths, save_picture
from vistrain.tasks.base.options import checked

Result = TypeVar("Result")


class Predictor(Contract, ABC, Generic[Result]):
    """A network that is run on files or arrays. The base of all; inputs of any kind, results of any kind.

    A subclass adds its task's options as keyword-only parameters (`threshold`, `tile`), with hints, defaults and a line
    in its docstring each: they are what `vistrain predict` takes for the task.

    Args:
        model: it is moved to the device and put in evaluation mode.
        device: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps` ...
        labels: the classes; the network's own if None.
        preprocessing: how inputs must reach the network; the network's own if None.
        transform: what evaluation does to an input; nothing if None.

    Attributes:
        noun: what one input is called.
        pictures: folder below the output of `vistrain predict` that `write_picture` fills.

    Raises:
        ConfigError: there is no such device.
    """

    noun: ClassVar[str] = "file"
    pictures: ClassVar[str] = "pictures"

    def __init__(
        self,
        model: Network,
        device: str = "auto",
        *,
        labels: LabelSpace | None = None,
        preprocessing: Preprocessing | None = None,
        transform: EvalTransform | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.labels = labels or model.labels or LabelSpace((), ())
        self.preprocessing = preprocessing or model.preprocessing
        self.transform = transform

    @classmethod
    def from_facts(
        cls, model: Network, facts: Mapping[str, Any], device: str = "auto", allow: Collection[str] = (), **options: Any
    ) -> Self:
        """Build one for a loaded network.

        Args:
            model: the network.
            facts: what its checkpoint carries: `config`, `labels`, `preprocessing`, `evaluation`.
            device: see the class.
            allow: packages beyond the default ones whose classes the config may name.
            options: of the task; None counts as not given.

        Raises:
            ConfigError: an option is not of this task, or its value is wrong.
        """
        given = cls.chosen(**options)
        labels, preprocessing = facts["labels"], Preprocessing.from_dict(facts["preprocessing"])
        return cls(
            model,
            device,
            labels=None if labels is None else LabelSpace.from_dict(labels),
            preprocessing=preprocessing,
            transform=evaluation_transform(facts, preprocessing, allow),
            **given,
        )

    @classmethod
    def chosen(cls, **options: Any) -> dict[str, Any]:
        """Those of the task's options that are given, checked; None counts as not given.

        Raises:
            ConfigError: an option is not of this task, or its value is of another type.
        """
        hints = constructor(cls)[1]
        own = {name: hints.get(name, Any) for name in cls.options()}
        return checked({name: value for name, value in options.items() if value is not None}, own)

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The task's options: keyword-only parameters that the base has not."""
        own, base = constructor(cls)[0], constructor(Predictor)[0]
        return {name: p for name, p in own.items() if p.kind is p.KEYWORD_ONLY and name not in base}

    def average_with(self, others: Sequence[Network]) -> None:
        """Predict the mean of this network and others that were trained alike (on other folds, say).

        Raises:
            ConfigError: the task has no such mean.
        """
        raise ConfigError("--ckpt", f"{type(self).__name__} does not average networks", "give one checkpoint")

    # ---------------------------------------------------------------- inputs

    @classmethod
    @abstractmethod
    def find(cls, inputs: Sequence[str | Path], output: Path) -> list[InputFile]:
        """The files that files, folders and patterns name; not those that an earlier run wrote into `output`.

        Raises:
            DataError: an input does not exist, or holds no such file.
        """

    @abstractmethod
    def read(self, source: Any) -> Any:
        """An input as `run` takes it, from a file, or from whatever else may be given in its place; such an input too.

        Raises:
            DataError: the file cannot be read, or the input is of another kind.
        """

    def batch(self, inputs: Sequence[np.ndarray]) -> dict[str, Any]:
        """Inputs `[*S, C]`, transformed and padded to common sides, as the network takes them, on the device."""
        images = [image if self.transform is None else self.transform(image) for image in inputs]
        sizes, nothing = [image.shape[:-1] for image in inputs], [dict[str, Any]() for _ in inputs]
        found = batch_of(images, sizes, range(len(images)), nothing, self.preprocessing.size_divisor)
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in found.items()}

    # ---------------------------------------------------------------- results

    @abstractmethod
    def run(self, inputs: Sequence[Any]) -> list[Result]:
        """Results of inputs as `read` gives them, on the CPU; there is at least one."""

    def predict_batch(self, inputs: Sequence[Any]) -> list[Result]:
        """Results of several inputs at a time, on the CPU; each is what `read` takes.

        Raises:
            DataError: see `read`; or this is one input, and not several.
        """
        if not isinstance(inputs, list | tuple):
            remedy = "put what belongs together into a list, or call predict for one"
            raise DataError("inputs", f"{kind_of(inputs)} is not a list of {self.noun}s", remedy)
        return self.run([self.read(source) for source in inputs]) if inputs else []

    def predict(self, source: Any) -> Result:
        """The result for one input: a file, or what `read` takes in its place.

        Raises:
            DataError: see `read`.
        """
        return self.run([self.read(source)])[0]

    # ---------------------------------------------------------------- what is written

    def input_id(self, file: InputFile) -> int | str:
        """What predictions call an input: its name, unless the task knows ids. Names are no numbers, which might be
        taken for those of some annotation file.

        Raises:
            DataError: the input is none of those that have ids.
        """
        return file.name

    @abstractmethod
    def describe(self, image: Any, result: Result) -> dict[str, Any]:
        """What `predictions.json` says of one input, beside `id` and `file`."""

    @abstractmethod
    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        """Where `write_picture` writes for each file, below a folder; no two are the same, none is an input.

        Raises:
            DataError: one would replace an input.
        """

    @abstractmethod
    def write_picture(self, file: InputFile, image: Any, result: Result, target: Path) -> None:
        """Write the result as one looks at it, or as one goes on with it.

        Raises:
            DataError: it cannot be written.
        """

    @abstractmethod
    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """What was found in all inputs, in a few words."""

    def header(self) -> dict[str, Any]:
        """What `predictions.json` says once: nothing, here."""
        return {}

    def write(self, entries: Sequence[Mapping[str, Any]], output: Path) -> None:
        """Write further files, beside `predictions.json` and the pictures: none, here."""


class ImagePredictor(Predictor[Result]):
    """Any picture in.

    That is a path, an open file, the bytes of a file, or a PIL image (EXIF orientations are respected); or an array
    `[H, W, 3]` RGB, `[H, W]` or `[H, W, 1]` grey, or `[H, W, 4]`, whose alpha channel is dropped as that of files is,
    uint8, floating point in 0..1, or whole numbers of 0..255 in floating point; or a tensor of these types, as
    torchvision has them (`[3, H, W]`, or 1, or 4) or as an array.

    Args:
        model, device, base: see `Predictor`.

    Attributes:
        lossless: whether pictures are written as PNG, whatever the input was.
    """

    noun = "picture"
    lossless: ClassVar[bool] = False

    @classmethod
    def find(cls, inputs: Sequence[str | Path], output: Path) -> list[InputFile]:
        """See `Predictor`; where there is no picture, `.npy` arrays."""
        try:
            return find_images(inputs, exclude=output / cls.pictures)
        except DataError:
            with contextlib.suppress(DataError):
                return find_files(inputs, (bands.ARRAY,), exclude=output / cls.pictures)
            raise

    def read(self, source: Any) -> np.ndarray:
        """uint8 `[H, W, 3]`, or what the evaluation transform reads; see `Predictor`."""
        found = None if self.transform is None else self.transform.read(source)
        return read_picture(source) if found is None else found

    def describe(self, image: np.ndarray, result: Result) -> dict[str, Any]:
        """`width` and `height` of the upright picture, in pixels."""
        return {"width": image.shape[1], "height": image.shape[0]}

    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        """See `Predictor`."""
        return picture_paths(files, folder, self.lossless)

    def write_picture(self, file: InputFile, image: np.ndarray, result: Result, target: Path) -> None:
        """See `Predictor`."""
        shown = image if self.transform is None else self.transform.picture(image)
        save_picture(self.draw(shown, result), target)

    @abstractmethod
    def draw(self, image: np.ndarray, result: Result) -> np.ndarray:
        """uint8 `[H, W, 3]`: the picture to write."""


def evaluation_transform(
    facts: Mapping[str, Any], preprocessing: Preprocessing, allow: Collection[str] = ()
) -> EvalTransform | None:
    """What evaluation did to images, from what a checkpoint carries.

    Checkpoints of the first versions have no `evaluation`: their config's data module is asked, which needs no files.

    Raises:
        ConfigError: a class is unknown, or of a package that is not allowed.
    """
    if "evaluation" in facts:
        node = facts["evaluation"]
        if node is None:
            return None
        name = str(node["type"])
        # Of ours, no config names one, so the index need not list it; its room's path finds it.
        node = {**node, "type": f"vistrain.{name}" if name.startswith("data.") else name}
        found: EvalTransform = build(node, EvalTransform, where="evaluation", allow=allow)
        return found
    data: DataModule = build(facts["config"]["data"], DataModule, where="data", allow=allow)
    data.preprocessing = preprocessing
    return data.eval_transform
