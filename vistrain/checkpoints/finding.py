"""Finding the state dict in what training programs save around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vistrain.errors import ConfigError, WeightsError
from vistrain.layers.low_rank import merged_low_rank
from vistrain.structures import LabelSpace

# Where training programs put the state dict, averaged weights first: published numbers are theirs. mmengine's
# `ema_state_dict` is missing on purpose: its hook swaps the two before saving, `state_dict` holds the average.
_WRAPPERS = (
    *("params_ema", "model_ema", "ema_model", "state_dict_ema", "ema"),
    *("state_dict", "model", "model_state_dict", "params", "net", "network", "network_weights", "module", "weights"),
)
_AVERAGES = ("model_ema.", "ema_model.", "ema.")
_STATES = ("optim", "sched", "scaler", "amp")  # of names of what is no network's, though tensors are in it
EXPANDED = 2**26  # bytes of a tensor that repeats a few values


def labels_in(content: Mapping[str, Any]) -> LabelSpace | None:
    """The classes that a file's network was trained for; None where the file does not say them, as no other program's.

    Checked by hand, and not by `schema`: networks load weights where torch and timm are all there is.
    """
    facts = content.get("vistrain")
    labels = facts.get("labels") if isinstance(facts, Mapping) else None
    names, ids = (labels.get(key) if isinstance(labels, Mapping) else None for key in ("names", "ids"))
    if not (isinstance(names, list | tuple) and isinstance(ids, list | tuple) and isinstance(labels, Mapping)):
        return None
    if not (all(isinstance(n, str) for n in names) and all(isinstance(i, int) for i in ids)):
        return None
    try:
        return LabelSpace(tuple(names), tuple(ids), str(labels.get("name")))
    except ConfigError:
        return None


def find_state_dict(content: Mapping[str, Any], where: str = "state dict") -> tuple[dict[str, Tensor], str]:
    """Finds the state dict within what a training program saved.

    Args:
        content: a state dict, or nested dictionaries around one.
        where: the file, for the message.

    Returns:
        The state dict (tensors alone) and its dotted place, empty for the top level.

    Raises:
        WeightsError: no tensors in any of the usual places.
    """
    found = _search(content, set()) or _deeper(content, where)
    if found is None:
        keys = ", ".join(f"{key!r:.40}" for key in list(content)[:8]) or "nothing"
        raise WeightsError(where, f"no state dict in it; it holds {keys}", "save `model.state_dict()` alone")
    refuse_odd(found[0], where)
    return found


def refuse_odd(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuses tensors that are no plain numbers, one for each place: what follows copies and compares them.

    Raises:
        WeightsError: one is sparse, quantised, complex, without content, of a subclass, or claims more values than it
            holds.
    """
    for name, tensor in tensors.items():
        kind = ""
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "sparse or nested"
        elif tensor.is_quantized:
            kind = "quantised"
        elif tensor.device.type == "meta":
            kind = "without content (on the meta device)"
        elif tensor.is_complex():
            kind = "complex"
        elif tensor.is_floating_point() and tensor.element_size() == 1:
            kind = f"{tensor.dtype}, which needs scales that are not weights"
        elif tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), EXPANDED):
            kind = f"{list(tensor.shape)}, but holds {tensor.untyped_storage().nbytes()} bytes"
        if kind:
            raise WeightsError(where, f"{name} is {kind}", "save plain tensors of floating-point numbers")


def _search(content: Mapping[str, Any], seen: set[int]) -> tuple[dict[str, Tensor], str] | None:
    """The state dict within nested dictionaries, of which one may hold itself."""
    seen.add(id(content))
    for name in _WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and id(inner) not in seen and (found := _search(inner, seen)):
            return found[0], f"{name}.{found[1]}".rstrip(".")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return (tensors, "") if tensors else None


def _deeper(content: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], str] | None:
    """The state dict under a name that no program is known for, one level down, if it is the only one.

    Raises:
        WeightsError: there are several.
    """
    found = list(_inner(content))
    if len(found) > 1:
        places = ", ".join(repr(place) for _, place in found[:6])
        raise WeightsError(where, f"several state dicts in it: {places}", "save the one that is meant alone")
    return found[0] if found else None


def _inner(content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Tensor], str]]:
    for name, inner in content.items():
        if isinstance(inner, Mapping) and not any(word in str(name).lower() for word in _STATES):
            found = _search(inner, {id(content)})
            if found is not None:
                yield found[0], f"{name}.{found[1]}".rstrip(".")


def strip_prefixes(state_dict: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes what wrappers put before names: torch.compile, DDP, AveragedModel, LightningModule, averages.

    Weights that learnt through low-rank products come with the product added (`layers.low_rank`). Of weights and their
    average in one state dict, the average is taken; counters of it are dropped.

    Args:
        state_dict: of a file.
        own: whose names are wanted: a prefix that these have, too, stays.
    """
    state_dict = merged_low_rank({key.replace("_orig_mod.", ""): value for key, value in state_dict.items()})
    # OpenMMLab's hook swaps the two before saving: what is under the plain name is the average.
    copies = {f"ema_{key.replace('.', '_')}" for key in state_dict}
    state_dict = {key: value for key, value in state_dict.items() if key not in copies}
    for prefix in _AVERAGES:
        average, rest = _split(state_dict, prefix)
        plain = {key.removeprefix("model."): value for key, value in rest.items()}
        beside = [key for key, value in plain.items() if key not in average and value.numel() > 1]
        if average and not beside and not any(key.startswith(prefix) for key in own):
            counters = {key for key, value in average.items() if value.ndim == 0 and key in ("decay", "num_updates")}
            state_dict = {key: value for key, value in average.items() if key not in counters}
    for prefix in ("module.", "model."):
        inside, rest = _split(state_dict, prefix)
        if inside and rest.keys() <= {"n_averaged"} and not any(key.startswith(prefix) for key in own):
            state_dict = inside
    return state_dict


def _split(state_dict: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is under a prefix, without it, and the rest."""
    inside = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in state_dict.items() if not key.startswith(prefix)}
