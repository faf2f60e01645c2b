"""What a network is to everything around it: two methods that it must have, and all that it may say of itself.

Tasks, the command line, checkpoints, profiles and the builder ask for nothing else. A network is pure torch.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.contract import Contract, refuse_misspelt
from vistrain.structures import LabelSpace, Preprocessing


class Network(Contract, nn.Module, abc.ABC):
    """Base of all networks that a config's `model` names.

    Batches are dicts: `image` uint8 or floating point `[B, C, *S]` (S: height and width, or depth, height and width),
    padded at the end of each side; `size` int64 `[B, len(S)]`, without padding; `original_size`, the same before any
    transform; `id`, a list; `target`, a list of dicts; and what a task's data module adds.

    `forward` takes normalised images `[B, C, *S]` and has no side effects: it is what is exported and profiled.

    Attributes:
        labels: the label space that it was built for; None where there are no classes.
        preprocessing: how images must reach it; the data module's transforms follow it, and checkpoints hold it.
        channels: C of the images.
        compiled_parts: paths of the sub-modules that `task.compile` compiles, in place; none unless it names some.
        sharded_parts: paths of the sub-modules whose blocks are sharded one by one under FSDP2; `compiled_parts` if
            None.
        entrances: methods that a task calls on it, besides `forward`.
        key_maps: the names of its official files, tried in order by `load_weights`.
        class_layers: regular expressions of the tensors that depend on the classes: left out when weights of other
            classes start a run, and named then.
        scale_layers: the same for tensors that depend on an enlargement factor.
        measured_size: sides of an image, pixels, that multiply-adds are counted at.
    """

    labels: LabelSpace | None = None
    preprocessing: Preprocessing = Preprocessing()
    channels: int = 3
    compiled_parts: tuple[str, ...] = ()
    sharded_parts: tuple[str, ...] | None = None
    entrances: tuple[str, ...] = ("losses", "predict")
    key_maps: Sequence[KeyMap] = ()
    class_layers: tuple[str, ...] = ()
    scale_layers: tuple[str, ...] = ()
    measured_size: tuple[int, ...] = (800, 1280)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_misspelt(type(self), name)
        super().__setattr__(name, value)

    @abc.abstractmethod
    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses of a batch, scalars by name; their sum is trained.

        Mixed precision is kept out of losses and matching. A batch whose gradients are accumulated carries
        `num_targets` and `micro_batches`, see `DataModule.train_dataloader`.
        """

    @abc.abstractmethod
    def predict(self, batch: Mapping[str, Any]) -> list[Any]:
        """What it finds in each image of a batch, in the original image's coordinates, without gradients."""

    def check_size(self, *size: int) -> None:
        """Refuse images of sides (pixels, in the order of S) that it cannot take; accepts all unless it knows better.

        Raises:
            ConfigError: naming sizes that it can take.
        """

    def on_step_end(self, step: int) -> None:
        """Called after the optimizer's step number `step` (from 1), for teachers and schedules; does nothing."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that its authors exempt from weight decay; none unless it says so."""
        return set()

    def layer_of(self) -> dict[str, int] | None:
        """Parameter name -> number of its layer from the input (0), for learning rates that decay with depth; None if
        it does not say."""
        return None
