"""Exported files in the place of networks: what they compute, and how long that takes."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistrain.errors import ConfigError, DataError, first_line
from vistrain.internals.torch import TreeSpec, tree_flatten, tree_unflatten
from vistrain.network import Network

INSTALL = "pip install 'vistrain[export]'"
# Normalised float32 images [B, C, *S], and sizes where one is taken at a time -> outputs, on the CPU
Run = Callable[..., list[Tensor]]


def runtime_of(path: Path, trusted: bool = False) -> Run:
    """What runs an exported file on the CPU, with as many threads as torch has.

    Args:
        path: an `.onnx` file, for onnxruntime; or a `.pt2` file.
        trusted: whether it was written here: torch loads programs that may run anything.

    Raises:
        ConfigError: onnxruntime is not installed; or a program of torch's is not trusted.
        DataError: there is no such file, or it cannot be run.
    """
    if not path.is_file():
        raise DataError(str(path), "there is no such file", "`vistrain export` writes one")
    if path.suffix == ".pt2":
        if not trusted:
            remedy = "measure it where it is made: `vistrain export --measure`"
            raise ConfigError(str(path), "loading a program of torch's may run anything that is in it", remedy)
        program = torch.export.load(path).module()
        return lambda *inputs: list(program(*inputs))
    refuse_missing_runtime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own kinds, which have no common one
        raise DataError(str(path), f"onnxruntime cannot run it: {reason(error)}", "export it again") from error
    inputs = session.get_inputs()
    wanted = inputs[0]

    def run(images: Tensor, *sizes: Tensor) -> list[Tensor]:
        if wanted.shape[0] == 1 != images.shape[0]:
            problem = f"takes one image at a time, not {images.shape[0]}"
            raise ConfigError(str(path), problem, "set data.eval_batch_size=1")
        fixed = [(want, got) for want, got in zip(wanted.shape, images.shape, strict=True) if isinstance(want, int)]
        if any(want != got for want, got in fixed):
            sides = "x".join(str(side) for side in wanted.shape[2:])
            given = "x".join(str(side) for side in images.shape[2:])
            remedy = f"export it with --size {given.replace('x', ' ')}, or without where sides can be free"
            raise ConfigError(str(path), f"takes images of {sides} pixels alone, not {given}", remedy)
        try:
            values = (images.float(), *sizes)
            found = session.run(None, {i.name: x.cpu().numpy() for i, x in zip(inputs, values, strict=True)})
        except Exception as error:
            raise DataError(str(path), f"onnxruntime cannot run it: {reason(error)}", "export it again") from error
        return [torch.from_numpy(np.ascontiguousarray(value)) for value in found]

    return run


def refuse_missing_runtime() -> None:
    """Raise `ConfigError` where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError("export", "onnxruntime is not installed", INSTALL)


class Replaced:
    """Takes the place of a network's `forward`, and notes how long each call takes.

    Attributes:
        seconds: for each call after the first, which warms up, those that passed for one image.
    """

    def __init__(self, network: Network, run: Run | None = None) -> None:
        """Args: network: whose `forward` is replaced; run: by what; None: by itself."""
        self.seconds: list[float] = []
        self._forward, self._run, self._calls = network.forward, run, 0
        self._form: TreeSpec | None = None
        network.forward = self

    def __call__(self, images: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
        """As `forward`; options that are tensors are inputs of a file, too.

        Raises:
            ConfigError: images are padded in their batch.
        """
        given = () if mask is None else (mask,)
        if self._run is None:
            began = time.perf_counter()
            found = self._forward(images, *given, **options)
        else:
            if mask is not None and bool(mask.any()):
                problem = "images are padded to one size in their batch, which an exported file knows nothing of"
                raise ConfigError("data.eval_batch_size", problem, "use 1")
            if self._form is None:  # how the network packs what it gives
                self._form = tree_flatten(self._forward(images, *given, **options))[1]
            began = time.perf_counter()
            sizes = [value for value in options.values() if isinstance(value, Tensor)]
            found = tree_unflatten([value.to(images.device) for value in self._run(images, *sizes)], self._form)
        self._calls += 1
        if self._calls > 1:
            self.seconds.append((time.perf_counter() - began) / images.shape[0])
        return found


def replacing(file: Path) -> Callable[[Network], None]:
    """What puts an `.onnx` file in the place of a network.

    Raises:
        ConfigError, DataError: see `runtime_of`.
    """
    run = runtime_of(file)

    def replace(model: Network) -> None:
        Replaced(model, run)

    return replace


def reason(error: BaseException) -> str:
    """The first line of the error that an error came of: exporters wrap a network's own several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
