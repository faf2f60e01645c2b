"""What a network is to everything around it: two methods that it must have, and all that it may say of itself.

Tasks, the command line, checkpoints, profiles and the builder ask for nothing else. A network is pure torch.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vistrain.checkpoints import KeyMap
from vistrain.contract import GuardedContract
from vistrain.errors import ConfigError
from vistrain.structures import Exported, LabelSpace, Preprocessing


class Network(GuardedContract, nn.Module, abc.ABC):
    """Base of all networks that a config's `model` names.

    Batches are dicts: `image` uint8 or floating point `[B, C, *S]` (S: height and width, or depth, height and width),
    padded at the end of each side; `size` int64 `[B, len(S)]`, without padding; `host_size`, the same as a list of
    tuples, which no host waits for (of batches made by hand it may be missing); `original_size`, `size` before any
    transform; `id`, a list; `target`, a list of dicts; and what a task's data module adds.

    `forward` takes normalised images `[B, C, *S]` and has no side effects: it is what is exported and profiled.

    Attributes:
        labels: the label space that it was built for; None where there are no classes.
        preprocessing: how images must reach it; the data module's transforms follow it, and checkpoints hold it.
        channels: C of the images.
        compiled_parts: paths of the sub-modules that `task.compile` compiles, in place.
        sharded_parts: paths of the sub-modules whose repeated blocks are sharded one by one under FSDP2; None:
            `compiled_parts`.
        entrances: methods that a task calls on it, besides `forward`.
        learns_from: keys of each `target` of a batch that `losses` reads; none: it does not say.
        key_maps: names in its official files; `load_weights` takes the first that a file has.
        class_layers: regular expressions of the tensors whose shape depends on the classes: they keep their first
            values, and are named, when weights for other classes start a run.
        scale_layers: the same for tensors that depend on a factor of enlargement.
        input_layers: the same for weights whose second axis is the image's channels, and nothing else of which depends
            on them: weights for other channels are adapted, and named, when they start a run.
        score_threshold: least score of what `predict` gives, of networks that cut by it; 0: none is cut by its score.
        measured_size: sides of the image, pixels, that multiply-adds are counted for unless another is asked for.
        exported_size: sides of the image that it is exported at; None: those that evaluation gives it.
    """

    labels: LabelSpace | None = None
    preprocessing: Preprocessing = Preprocessing()
    channels: int = 3
    compiled_parts: tuple[str, ...] = ("backbone",)
    sharded_parts: tuple[str, ...] | None = None
    entrances: tuple[str, ...] = ("losses", "predict")
    learns_from: tuple[str, ...] = ()
    key_maps: Sequence[KeyMap] = ()
    class_layers: tuple[str, ...] = ()
    scale_layers: tuple[str, ...] = ()
    input_layers: tuple[str, ...] = ()
    score_threshold: float = 0.0
    measured_size: tuple[int, ...] = (800, 1280)
    exported_size: tuple[int, ...] | None = None

    @abc.abstractmethod
    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses of a batch, scalars by name; their sum is trained.

        Mixed precision is kept out of losses and matching. A batch whose gradients are accumulated carries
        `num_targets` and `micro_batches`, see `DataModule.train_dataloader`.
        """

    @abc.abstractmethod
    def predict(self, batch: Mapping[str, Any]) -> list[Any]:
        """What it finds in each image of a batch, in the original image's coordinates, without gradients."""

    def counted(self, images: Tensor) -> Any:
        """What multiply-adds are counted of: `forward`, unless its work depends on what it finds; nothing is computed
        then, and shapes must not depend on numbers."""
        return self(images)

    def exported(self, images: Tensor, *sizes: Tensor) -> Any:
        """What the file of an exported network computes of normalised images without a batch's padding: `forward` as
        `predict` calls it, tensors in any containers. `sizes` are those of `Exported.of_one`, else none."""
        return self(images, *sizes)

    def exported_facts(self) -> Exported:
        """What `exported` gives, tensor by tensor.

        Raises:
            ConfigError: it cannot be exported.
        """
        raise ConfigError("export", f"{type(self).__name__} has no outputs that another program could read")

    def check_size(self, *size: int) -> None:
        """Refuse images of sides (pixels, in the order of S) that it cannot take; accepts all unless it knows better.

        Raises:
            ConfigError: naming sizes that it can take.
        """

    def average_with(self, others: Sequence[Network]) -> None:
        """Predict the mean with other networks from now on; refused unless it says how.

        Raises:
            ConfigError: it does not average, or they have other outputs.
        """
        raise ConfigError("--ckpt", f"{type(self).__name__} does not average networks", "give one")

    def on_step_end(self, step: int) -> None:
        """Called after the optimizer's step number `step` (from 1), for teachers and schedules; does nothing."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that its authors exempt from weight decay, beside norms and biases."""
        return set()

    def layers_above(self) -> dict[str, int] | None:
        """How many layers lie above each parameter's, by name, for learning rates that fall with depth.

        The topmost layer has 0, and so has every parameter that is not named. None: it does not say what its layers
        are.
        """
        return None
