"""What a checkpoint of ours holds, checked before anything is built of it.

A file may be readable and yet be damaged, edited, or another program's under our name; each part is looked at once,
here, and everything that reads a checkpoint relies on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from vistrain.errors import ConfigError, WeightsError
from vistrain.structures import LabelSpace, Preprocessing

PREFIX = "model."  # of the network's tensors in a checkpoint of ours
REMEDY = "take another checkpoint of the run, such as best.ckpt"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = tuple[Positive, Positive] | Annotated[list[Positive], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    """A mapping with these keys, and any others."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class _Labels(_Part):
    names: Sequence[str]
    ids: Sequence[int]
    name: str


class _Preprocessing(_Part):
    mean: Annotated[Sequence[Finite], Field(min_length=1)]
    std: Annotated[Sequence[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]
    channel_order: str
    interpolation: str
    crop_pct: Annotated[float, Field(gt=0, le=1)]
    size_divisor: Positive
    input_size: Size | None = None
    crop_mode: str = "center"
    test_size: Size | None = None
    test_crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None


class _DataProgress(_Part):
    epoch: Count
    consumed: Count
    world_size: Positive


class _Facts(_Part):
    version: str
    config: dict[str, Any]
    labels: _Labels | None
    preprocessing: _Preprocessing
    channels: Positive = 3
    evaluation: dict[str, Any] | None = None
    progress: _DataProgress | None = None
    samples: Count | None = None
    optimized: list[list[str]] | None = None


class _Network(_Part):
    vistrain: _Facts
    state_dict: Annotated[Mapping[str, Tensor], Field(min_length=1)]


class _Counts(_Part):
    ready: Count
    completed: Count


class _Progress(_Part):
    total: _Counts
    current: _Counts


class _FitLoop(_Part):
    epochs: _Progress = Field(alias="epoch_progress")
    batches: _Progress = Field(alias="epoch_loop.batch_progress")
    evaluation: _Progress = Field(alias="epoch_loop.val_loop.batch_progress")


class _Loops(_Part):
    fit_loop: _FitLoop


class _Group(_Part):
    params: list[Count]


class _Optimizer(_Part):
    state: dict[int, dict[str, Any]]
    param_groups: Annotated[list[_Group], Field(min_length=1)]


class _Scheduler(_Part):
    last_epoch: Count


class _Run(_Network):
    epoch: Count
    global_step: Count
    lightning: str = Field(alias="pytorch-lightning_version")
    loops: _Loops
    optimizer_states: Annotated[list[_Optimizer], Field(min_length=1, max_length=1)]
    lr_schedulers: Annotated[list[_Scheduler], Field(min_length=1, max_length=1)]
    callbacks: dict[str, Any]


def check_network(content: Mapping[str, Any], path: Path) -> None:
    """Check what rebuilds a network: facts, labels, preprocessing, and tensors under the network's name.

    Args:
        content: of the file, which has a mapping under `vistrain`.
        path: of the file, for messages.

    Raises:
        WeightsError: a part is missing or is none.
    """
    _check(_Network, content, path)
    facts = content["vistrain"]
    try:
        if facts["labels"] is not None:
            LabelSpace.from_dict(facts["labels"])
        Preprocessing.from_dict(facts["preprocessing"])
    except (ConfigError, TypeError) as error:
        raise WeightsError(str(path), f"is damaged: {str(error).splitlines()[0]}", REMEDY) from error
    if not any(name.startswith(PREFIX) for name in content["state_dict"]):
        raise WeightsError(str(path), f"is damaged: no tensor of its state_dict is called {PREFIX}...", REMEDY)


def check_run(content: Mapping[str, Any], path: Path) -> None:
    """Check what a run continues from, too: loops, optimizer, schedule, callbacks, and where in the data it stands.

    Args:
        content, path: as for `check_network`.

    Raises:
        WeightsError: a part is missing or is none.
    """
    check_network(content, path)
    _check(_Run, content, path)
    if content["vistrain"].get("progress") is None:
        raise WeightsError(str(path), "does not say where in the data it stands", "give it as weights: run.weights")
    optimizer = content["optimizer_states"][0]
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    if sorted(numbers) != list(range(len(numbers))) or not set(optimizer["state"]) <= set(numbers):
        raise WeightsError(str(path), "is damaged: optimizer_states number their parameters wrongly", REMEDY)


def _check(kind: type[BaseModel], content: Mapping[str, Any], path: Path) -> None:
    try:
        kind.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WeightsError(str(path), f"is damaged: {place}: {first['msg'].lower()}", REMEDY) from None
