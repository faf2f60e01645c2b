"""vistrain trains, evaluates and reproduces dense-vision models. Importing it is light: no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vistrain.tasks.base.predictor import Predictor

__version__ = "0.2.0"


def load(checkpoint: str | Path, device: str = "auto", allow: Collection[str] = ()) -> Predictor[Any]:
    """A predictor from a checkpoint that vistrain wrote: `vistrain.load("best.ckpt").predict("photo.jpg")`.

    Args:
        checkpoint: the file; nothing else is needed.
        device: `auto` takes an accelerator where there is one.
        allow: packages beyond the default ones whose classes the checkpoint's config may name.

    Raises:
        ConfigError, WeightsError: the file is not ours, or cannot be read.
    """
    from vistrain.run.predict import load_predictor

    return load_predictor(checkpoint, device=device, allow=allow)
