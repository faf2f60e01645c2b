"""Weights under other names: what `vistrain convert-weights` does."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistrain import __version__
from vistrain.checkpoints import (
    KeyMap,
    disagreements,
    find_state_dict,
    load_file,
    locate,
    of_another_kind,
    renamed,
    save_durably,
    strip_prefixes,
)
from vistrain.errors import ConfigError, WeightsError, nearest
from vistrain.internals.pages import FileMemory
from vistrain.run.networks import build_without_memory
from vistrain.writing import whole_file

_NAMED = 4  # of the names left out, that are said


def convert(
    weights: str | Path,
    output: Path,
    config: dict[str, Any],
    name: str = "",
    official: str | None = None,
    allow: Collection[str] = (),
) -> str:
    """Write weights of a config's network under our names, or under published ones; the values are the same, bit for
    bit, and of the same type.

    Args:
        weights: see `checkpoints.locate`; under our names or any that the network knows, with or without what training
            programs save around them.
        output: the file; its suffix decides the format.
        config: composed.
        name: what the config is called, for the file's own record.
        official: None for our names; else the naming that is wanted, or empty for the network's first.
        allow: packages beyond the default ones whose classes the config may name.

    Returns:
        A line that says what was written.

    Raises:
        ConfigError: the network does not know that naming.
        WeightsError: the weights are of another network, or the naming cannot be written.
        DataError: the file cannot be written.
    """
    found = locate(weights)
    model = build_without_memory(config, allow)
    own = model.state_dict()
    foreign, _ = find_state_dict(load_file(found.path), str(weights))
    foreign = strip_prefixes(foreign, own)
    ours, known = renamed(foreign, own, model.key_maps, str(weights))
    _, problems = disagreements(ours, own, model.class_layers, model.scale_layers)
    if problems:
        remedy = "is it the config that these weights were trained with?"
        raise WeightsError(str(weights), f"is not of {name or 'this config'}: {'; '.join(problems)}", remedy)
    parameters = {key for key, _ in model.named_parameters()}
    if wrong := of_another_kind(ours, own, parameters, set(), FileMemory(None, ())):
        raise WeightsError(str(weights), "; ".join(wrong), "take another checkpoint")
    left = [] if known is None else [key for key in foreign if known.rename(key) is None]
    facts = {"format": "pt", "vistrain": __version__, "config": name, "sha256_of_source": found.identity()["sha256"]}
    if official is None:
        _write(ours, output, {**facts, "names": "vistrain"})
        told = f"{output}: {len(ours)} tensors under vistrain's names"
        told += f", from the names of {known.name}" if known else ""
    else:
        naming = _naming(model.key_maps, official)
        theirs = naming.export(ours)
        left = [] if len(theirs) >= len(ours) else [key for key in ours if key not in naming.apply(theirs)]
        _refuse_other(naming.apply(theirs), ours, naming)
        _write(theirs, output, {**facts, "names": naming.name})
        told = f"{output}: {len(theirs)} tensors under the names of {naming.name}"
    if left:
        few = ", ".join(left[:_NAMED]) + (", ..." if len(left) > _NAMED else "")
        told += f"; left out {len(left)} that carry nothing: {few}"
    return told


def _naming(key_maps: Collection[KeyMap], wanted: str) -> KeyMap:
    names = {key_map.name: key_map for key_map in key_maps}
    if not names:
        raise ConfigError("--official", "this network knows no names but ours", "leave it out")
    if wanted and wanted not in names:
        raise ConfigError("--official", f"no names {wanted!r}", nearest(wanted, names))
    return names[wanted] if wanted else next(iter(names.values()))


def _refuse_other(again: Mapping[str, Tensor], ours: Mapping[str, Tensor], naming: KeyMap) -> None:
    """Refuse what would not be read back as it is."""
    for name, value in again.items():
        if name in ours and (value.shape != ours[name].shape or not torch.equal(value, ours[name])):
            raise WeightsError(naming.name, f"these names cannot be written: '{name}' would be read back otherwise")
    strange = [name for name in again if name not in ours]
    if strange:
        raise WeightsError(naming.name, f"these names cannot be written: '{strange[0]}' would be read back")


def _write_npz(tensors: Mapping[str, Tensor], output: Path) -> None:
    """Any names, which `numpy.savez` takes for its own arguments; bfloat16, which NumPy lacks, in float32, exactly."""
    import numpy as np

    with whole_file(output) as path, zipfile.ZipFile(path, "w") as archive:
        for name, value in tensors.items():
            array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _write(tensors: Mapping[str, Tensor], output: Path, facts: dict[str, str]) -> None:
    # Second names of one tensor hold it twice: formats for others know no sharing.
    plain = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    if output.suffix == ".safetensors":
        from safetensors.torch import save_file

        with whole_file(output) as path:
            save_file(plain, path, metadata=facts)
    elif output.suffix == ".npz":
        _write_npz(plain, output)
    else:
        save_durably(plain, output)
