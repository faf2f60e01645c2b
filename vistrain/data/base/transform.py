"""The evaluation transform of an image: a small object of plain values, which travels in checkpoints as a node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import Any, cast

import numpy as np


class EvalTransform(ABC):
    """What evaluation and prediction do to an image before a network sees it. Subclasses are frozen dataclasses.

    A data module's `eval_transform` gives one, and checkpoints hold its node: a network predicts as it was evaluated,
    whatever data module it was trained with.
    """

    @abstractmethod
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """`[*S, C]` to `[*T, C]` of the same type: nothing random, and of the image alone."""

    def read(self, source: Any) -> np.ndarray | None:
        """An input as `__call__` takes it, where images are no photographs; None: they are.

        Raises:
            DataError: it cannot be read.
        """
        return None

    def picture(self, image: np.ndarray) -> np.ndarray:
        """What people are shown of such an input, uint8 `[H, W, 3]`."""
        return image

    def in_python(self) -> tuple[str, ...]:
        """Lines of Python that make `pixels` `[h, w, C]` of a PIL picture `image`, with NumPy (`np`), Pillow (`Image`)
        and this transform's values, `rule`, alone: for programs that run an exported network. Empty: it takes more."""
        return ()

    def to_node(self) -> dict[str, Any]:
        """The config node that `config.builder.build` makes the transform of again: `type` and its fields, plain."""
        cls = type(self)
        package, room = cls.__module__.split(".")[0], cls.__module__.split(".")[1:2]
        name = f"{room[0]}.{cls.__name__}" if package == "vistrain" else f"{cls.__module__}.{cls.__qualname__}"
        return {"type": name, **{f.name: _plain(getattr(self, f.name)) for f in fields(cast(Any, self)) if f.init}}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
