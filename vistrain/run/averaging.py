"""One checkpoint of several: the mean of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vistrain.checkpoints import save_durably
from vistrain.checkpoints.schema import PREFIX
from vistrain.config import without_pretrained
from vistrain.errors import ConfigError
from vistrain.run.folders import differences
from vistrain.run.networks import load_checkpoint

OF_A_RUN = ("state_dict", "progress", "samples", "optimized")  # what `load_checkpoint` says that is no fact of the mean
ALIKE = ("labels", "preprocessing", "channels")


def average_checkpoints(paths: Sequence[Path], output: Path) -> int:
    """Average the networks of checkpoints of ours (Wortsman et al. 2022, "Model soups", arXiv 2203.05482, equation of
    the uniform soup) and write the mean as a checkpoint that is tested, predicted with and started from like any other.

    Args:
        paths: one or more, of one network; read one after the other. Sums are float64; whole numbers are the first's.
        output: the file to write.

    Returns:
        How many tensors it holds.

    Raises:
        ConfigError: the networks differ, or the output is one of them.
        WeightsError: a file cannot be read or written.
    """
    if output.resolve() in [path.resolve() for path in paths]:
        raise ConfigError("--output", f"{output} is one of the checkpoints", "name another file")
    first = load_checkpoint(paths[0])
    kinds = {name: value.dtype for name, value in first["state_dict"].items()}
    sums: dict[str, Tensor] = {
        name: value.to(torch.float64) if value.is_floating_point() else value
        for name, value in first["state_dict"].items()
    }
    for path in paths[1:]:
        other = load_checkpoint(path)
        _refuse_others(first, other, path, paths[0])
        for name, value in other["state_dict"].items():
            if value.is_floating_point():
                sums[name] += value
    mean = {
        PREFIX + name: (value / len(paths)).to(kinds[name]) if value.is_floating_point() else value
        for name, value in sums.items()
    }
    facts = {key: value for key, value in first.items() if key not in OF_A_RUN}
    save_durably({"vistrain": {**facts, "averaged": [str(path) for path in paths]}, "state_dict": mean}, output)
    return len(mean)


def _refuse_others(first: Mapping[str, Any], other: Mapping[str, Any], path: Path, named: Path) -> None:
    """Refuse a checkpoint of another network.

    Raises:
        ConfigError: saying where it differs.
    """
    remedy = "average checkpoints of one network"
    for key in ALIKE:
        if first.get(key) != other.get(key):
            raise ConfigError(str(path), f"has other {key} than {named}", remedy)
    was, now = (without_pretrained(facts["config"]).get("model") for facts in (first, other))
    differing = next(differences(was, now, "model"), None)
    if differing is not None:
        raise ConfigError(str(path), f"is of another network than {named}: {differing} differs", remedy)
    shapes = [{name: tuple(t.shape) for name, t in facts["state_dict"].items()} for facts in (first, other)]
    wrong = next((n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n)), None)
    if wrong is not None:
        raise ConfigError(str(path), f"has other weights than {named}, such as {wrong}", remedy)
