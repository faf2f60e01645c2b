"""PIDray (Wang et al. 2021, arXiv 2108.07020): prohibited items in X-ray pictures of luggage, in COCO's format.

Classes and files as github.com/bywang2018/security-dataset gives them out; the data is for academic use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vistrain.data.base.module import data_root

NAMES = (
    "Baton", "Pliers", "Hammer", "Powerbank", "Scissors", "Wrench", "Gun", "Bullet", "Sprayer", "HandCuffs", "Knife",
    "Lighter",
)  # fmt: skip
IDS = tuple(range(1, len(NAMES) + 1))
Subset = Literal["easy", "hard", "hidden"]
REMEDY = "PIDray's folders train/, easy/, hard/, hidden/ and annotations/ belong into"


def pidray_folder(root: str | None) -> Path:
    """The folder of the set: `pidray/` in the root, or the root itself."""
    folder = data_root(root)
    return folder if (folder / "annotations").is_dir() else folder / "pidray"


def pidray_files(subset: Subset | None) -> tuple[str, str]:
    """Folder of images and annotation file of a subset of the test images, or of the training images."""
    name = "xray_train" if subset is None else f"xray_test_{subset}"
    return subset or "train", f"annotations/{name}.json"
