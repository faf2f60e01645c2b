"""Parts of checkpoints under the names that other programs know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vistrain.backbones.create import OURS
from vistrain.checkpoints import save_durably
from vistrain.errors import ConfigError, WeightsError
from vistrain.run.networks import load_checkpoint

FORMATS = {"backbone": ("timm",)}  # part -> namings


def export(checkpoint: Path, output: Path, part: str = "backbone", naming: str = "timm") -> str:
    """Write a part of a checkpoint as a plain state dict.

    Args:
        checkpoint: that a run wrote.
        output: the file, for `timm.create_model(..., checkpoint_path=output)` or `model.backbone.pretrained=output`.
        part: `backbone`.
        naming: `timm`.

    Returns:
        A line that says what was written, and how timm takes it.

    Raises:
        ConfigError: there is no such part or naming.
        WeightsError: the checkpoint cannot be read or has no such part, or the file cannot be written.
    """
    if part not in FORMATS:
        raise ConfigError("--part", f"{part!r} is no part that can be written", f"use {', '.join(FORMATS)}")
    if naming not in FORMATS[part]:
        raise ConfigError("--as", f"{naming!r} is no naming of a {part}", f"use {', '.join(FORMATS[part])}")
    facts = load_checkpoint(checkpoint)
    weights = {k.removeprefix(OURS): v.clone() for k, v in facts["state_dict"].items() if k.startswith(OURS)}
    if not weights:
        raise WeightsError(str(checkpoint), "has no backbone of timm's in it", "its network has one of another kind")
    save_durably(weights, output)
    node: Any = facts["config"].get("model", {}).get("backbone", {})
    node = node if isinstance(node, dict) else {"name": str(node)}
    given = "".join(f", {key}={value!r}" for key, value in (node.get("args") or {}).items())
    has_head = any(key.startswith(("head.", "fc.")) for key in weights)
    given += "" if has_head else ", num_classes=0"
    return (
        f"{len(weights)} tensors: timm.create_model({str(node.get('name'))!r}{given}, checkpoint_path={str(output)!r})"
    )
