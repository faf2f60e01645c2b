"""What a file or folder of predictions is, for whoever gave one of another kind than was wanted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vistrain.data.base.images import SUFFIXES
from vistrain.data.base.storage import read_json
from vistrain.errors import DataError

# What `vistrain predict` leaves in its folder, in words.
LEFT = {
    "pictures/masks": "label files (pictures/masks)",
    "pictures/panoptic.json": "segments (pictures/panoptic.json)",
    "pictures/lanes": "lanes (pictures/lanes)",
    "coco_results.json": "objects (coco_results.json)",
}
ENDINGS = {
    ".ckpt": "a checkpoint", ".pth": "a checkpoint", ".pt": "a checkpoint", ".safetensors": "a checkpoint",
    ".yaml": "a config", ".yml": "a config", ".csv": "a table", **dict.fromkeys(SUFFIXES, "a picture"),
}  # fmt: skip


def kind_of(path: Path) -> str:
    """What a file or folder is, in words; empty: nobody knows, or it is not there."""
    if path.is_dir():
        found = [words for name, words in LEFT.items() if (path / name).exists()]
        if not found and (path / "predictions.json").is_file():
            return "a folder with predictions.json alone"
        return f"a folder with {' and '.join(found)}" if found else ""
    if path.suffix.lower() != ".json":
        return ENDINGS.get(path.suffix.lower(), "") if path.is_file() else ""
    with suppress(DataError):
        return _of_json(read_json(path))
    return ""


def _of_json(content: Any) -> str:
    if isinstance(content, list):
        first = content[0] if content else None
        if not isinstance(first, Mapping) or "image_id" not in first:
            return "an empty list" if not content else ""
        return (
            f"a file of objects with {'masks' if 'segmentation' in first else 'boxes alone'}, in COCO's results format"
        )
    if not isinstance(content, Mapping):
        return ""
    annotated, images = (content.get(key) for key in ("annotations", "images"))
    first = annotated[0] if isinstance(annotated, list) and annotated else None
    if isinstance(first, Mapping):
        return "a panoptic file" if "segments_info" in first else "a file of annotations in COCO's format, not results"
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(first, Mapping) and "detections" in first:
        return "a predictions.json of objects"
    return "a predictions.json, which describes pictures" if isinstance(first, Mapping) and "file" in first else ""


def refuse_other_kind(path: Path, wanted: str, remedy: str) -> None:
    """Refuse a file or folder that is known to be something else; does nothing if nobody knows what it is.

    Args:
        path: what was given.
        wanted: what is evaluated, in words.
        remedy: what to give.

    Raises:
        DataError: naming its kind.
    """
    if kind := kind_of(path):
        raise DataError(str(path), f"is {kind}; this evaluates {wanted}", remedy)
