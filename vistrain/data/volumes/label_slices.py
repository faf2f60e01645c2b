"""Label maps as a picture for each axial slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vistrain.data.base.images import read_image
from vistrain.data.volumes.nifti import Geometry
from vistrain.errors import DataError


def read_label_slices(files: Sequence[Path], geometry: Geometry) -> np.ndarray:
    """Label values of pictures as radiologists look at slices: above is the front, the patient's right is left.

    Args:
        files: grey pictures, from below to above; of black and white ones white is 255.
        geometry: of the image that they belong to.

    Returns:
        int32 `[z, y, x]`, as `nifti.read_labels` turns axes.

    Raises:
        DataError: there are more or fewer pictures than slices, one cannot be read, has another size, or colours.
    """
    depth, height, width = geometry.sides
    if len(files) != depth:
        problem = f"{len(files)} pictures, and the image has {depth} slices"
        raise DataError(str(files[0].parent), problem, "convert all slices of one series, and no other")
    found = np.empty(geometry.sides, np.int32)
    for index, file in enumerate(files):
        picture = read_image(file, apply_exif=False)
        if picture.shape[:2] != (height, width):
            problem = f"is {picture.shape[1]}x{picture.shape[0]} pixels, and a slice {width}x{height}"
            raise DataError(str(file), problem, "a label map has the grid of its image")
        if (picture != picture[..., :1]).any():
            raise DataError(str(file), "has colours", "label maps are grey pictures")
        found[index] = picture[::-1, ::-1, 0]
    return found
