"""Comparison of a backbone of ours with its fixture: classification and dense forms."""

from __future__ import annotations

from ast import literal_eval
from typing import Any, Literal

import torch
from torch import Tensor

from parity.compare import assert_outputs
from vistrain.backbones import Backbone
from vistrain.checkpoints import KeyMap, load_weights


def constructor(fixture: dict[str, Any], *unused: str) -> dict[str, Any]:
    """The official arguments, those that are stored as text read; without arguments that compute nothing."""
    return {key: _read(value) for key, value in fixture["constructor"].items() if key not in unused}


def _read(value: Any) -> Any:
    try:
        return literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        return value


def assert_classifies(model: Any, state: dict[str, Tensor], convert: Any, fixture: dict[str, Any]) -> None:
    """Loads official weights strictly, and compares logits, features, or every map, logits before them or not."""
    model.eval().load_state_dict(convert(state, model), strict=True)
    for images, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        with torch.no_grad():
            if isinstance(theirs, list | tuple):
                logits = [model(images)] if theirs[0].dim() == 2 else []
                assert_outputs([*logits, *model.forward_intermediates(images, intermediates_only=True)], theirs)
            else:
                assert_outputs(model(images) if theirs.dim() == 2 else model.forward_features(images), theirs)


def assert_dense(
    name: str,
    args: dict[str, Any],
    eps: float | None,
    names: KeyMap,
    fixture: dict[str, Any],
    strides: tuple[int, ...] = (4, 8, 16, 32),
    output_norm: Literal["layer", "batch"] = "layer",
) -> None:
    """Loads the official dense backbone strictly, and compares its maps, normalised if `eps` is given."""
    norm: dict[str, Any] = {"output_norm_eps": eps, "output_norm": output_norm}
    backbone = Backbone(name, strides=strides, args=args, **norm).eval()
    load_weights(backbone, fixture["state_dict"], key_maps=[names])
    for images, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        with torch.no_grad():
            ours = backbone(images)
        # The wrapper gives ceil(size / stride) cells; their first convolution may have one fewer.
        for x, y in zip(ours, theirs, strict=True):
            assert all(0 <= a - b <= 1 for a, b in zip(x.shape, y.shape, strict=True))
        assert_outputs([x[..., : y.shape[2], : y.shape[3]] for x, y in zip(ours, theirs, strict=True)], list(theirs))


def is_dense(fixture: dict[str, Any], norm: str) -> bool:
    """Whether a fixture is of the dense code, whose maps have norms of this name."""
    return any(key.startswith(f"{norm}.") for key in fixture["state_dict"])
