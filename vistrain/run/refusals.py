"""What other libraries refuse while a run is set up or under way, said in our words, once, at the boundary."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from vistrain import processes
from vistrain.callbacks.preemption import Preemption
from vistrain.data import DataModule
from vistrain.errors import ConfigError, DataError, VistrainError, WeightsError, first_line, origin
from vistrain.internals.lightning import callbacks_of
from vistrain.internals.torch import of_compiler
from vistrain.tasks import Task

LIBRARIES = ("lightning", "torch", "numpy", "PIL", "lightning_utilities", "torchmetrics")
REFUSED = (
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    OSError,
    ImportError,
)


@contextmanager
def of_trainer(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside, Lightning's Trainer is made; what it refuses becomes an error of the key that it speaks of.

    Args:
        arguments: the config's.

    Raises:
        ConfigError: it refused them.
    """
    try:
        yield
    except (MisconfigurationException, *REFUSED, ImportError) as error:
        if isinstance(error, VistrainError) or origin(error) == "vistrain":
            raise
        raise ConfigError(_key_in(str(error), arguments), f"Lightning refuses it: {first_line(error)}") from error


@contextmanager
def of_run(task: Task, data: DataModule, checkpoint: Path | None) -> Iterator[None]:
    """Inside, a trainer runs.

    Until training has begun, all that other libraries refuse is the config's, or the checkpoint's. Later, these are: a
    data worker that died, a batch too small for its norms, a full device, and an optimizer without the memory it wants.

    Args:
        task, data: of the run.
        checkpoint: that it goes on from, or None.

    Raises:
        ConfigError, DataError, WeightsError: in place of what was raised.
    """
    try:
        yield
    except DataError as error:
        going_on = Path(task.trainer.default_root_dir) / "last.ckpt"
        of_a_file = _came_through(error, "vistrain.data.base.module")
        if not (of_a_file and task.began and not task.training and going_on.is_file()):
            raise
        # In training another image takes its place; an evaluation is of all images.
        remedy = f"mend or remove it (`vistrain check` names all), then: vistrain fit --resume {going_on.parent}"
        raise DataError(error.where, error.problem, f"{error.remedy}; {remedy}".lstrip("; ")) from error
    except VistrainError:
        raise
    except Exception as error:
        if of_compiler(error):  # the signal that told this process to stop may have reached the compiler, too
            told = max((c.wanted for c in callbacks_of(task.trainer) if isinstance(c, Preemption)), default=0)
            if told:
                raise SystemExit(told) from error
        reason = None if processes.came_of_interrupt(error) else _reason(error, task, data, checkpoint)
        if reason is None:
            raise
        raise reason from error


def _reason(error: Exception, task: Task, data: DataModule, checkpoint: Path | None) -> VistrainError | None:
    if (died := data.explain(error)) is not None:
        return died
    message, source = str(error), origin(error)
    if of_compiler(error):
        problem = f"torch could not compile this network: {first_line(error)}"
        return ConfigError("task.compile", problem, "set it to false; `vistrain doctor` for a report to torch")
    if "Expected more than 1 value per channel" in message:
        if not task.training:  # a group norm's, which says the same of one image
            problem = "a norm has one value of each channel, and no variance: an evaluated image is too small"
            return ConfigError("data", problem, "evaluate larger images (data.eval_scale, where it is set)")
        problem = "a batch norm has one value of each channel, and no variance: the batch and the map are too small"
        return ConfigError("data.per_device", problem, "raise data.batch_size, data.per_device, or the images' size")
    other_types = source == "torch" and re.search(r"should be the same|same dtype|expected scalar", message)
    if other_types and (precision := str(task.trainer.precision)).endswith(("16-true", "64-true")):
        problem = f"this network does not compute in {precision}: {first_line(error)}"
        return ConfigError("trainer.precision", problem, f"use {precision.replace('-true', '-mixed')}, or 32-true")
    if isinstance(error, torch.OutOfMemoryError):
        if not task.training:
            remedy = "lower data.eval_batch_size, evaluate smaller images, or set trainer.precision=bf16-mixed"
            return ConfigError("data.eval_batch_size", "the device's memory is full", remedy)
        remedy = "set it to auto or lower (batches are then accumulated), task.recompute=true, or smaller images"
        return ConfigError("data.per_device", "the device's memory is full", remedy)
    if isinstance(error, KeyError) and _came_through(error, "torch.optim"):
        return ConfigError("optimizer", f"its memory in {checkpoint} lacks {error}", "leave its arguments as they were")
    if isinstance(error, MisconfigurationException) or (not task.began and source in LIBRARIES):
        if not isinstance(error, (MisconfigurationException, *REFUSED)):
            return None
        if checkpoint is not None and not isinstance(error, MisconfigurationException):
            return WeightsError(
                str(checkpoint), f"cannot be gone on from: {first_line(error)}", "take another checkpoint"
            )
        return ConfigError(_key_in(message, {}), f"Lightning refuses it: {first_line(error)}")
    return None


def _key_in(message: str, written: Mapping[str, Any]) -> str:
    """The Trainer's argument that a message speaks of, those that the config writes first; else its section."""
    known = inspect.signature(Trainer).parameters
    named = [word.strip("_") for word in re.findall(r"[a-z_]{4,}", message.replace("Precision", "precision"))]
    found = [word for word in named if word in known]
    first = next((word for word in found if word in written), found[0] if found else None)
    return "trainer" if first is None else f"trainer.{first}"


def _came_through(error: BaseException, module: str) -> bool:
    """Whether code of a module called what raised an error."""
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(module):
            return True
        trace = trace.tb_next
    return False
