"""Pictures that an annotation file lists: which one a path is, and how it was annotated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vistrain.data.base.images import read_listed_image
from vistrain.data.coco.reader import checked, read_content
from vistrain.errors import DataError
from vistrain.metrics.coco_files import FileNames


class ListedImages:
    """The images of a file in COCO's format, its panoptic one included; annotations are not looked at.

    Args:
        annotations: the file.

    Raises:
        DataError: it is missing or refused.
    """

    def __init__(self, annotations: Path) -> None:
        self.annotations = annotations
        content = {**read_content(annotations), "annotations": []}  # panoptic ones are of another form
        images = checked(content, annotations, annotations=False).images
        self._images = {image["id"]: image for image in images}
        self._names = FileNames({image["file_name"]: image["id"] for image in images})

    def id_of(self, path: Path) -> int:
        """The id of a picture.

        Raises:
            DataError: it is none of them, or may be several.
        """
        found = self._names.find(path.as_posix())
        if found is None:
            problem = f"is not one picture of {self.annotations}"
            raise DataError(str(path), problem, "leave it out, or complete the list")
        return found

    def read(self, path: str | Path) -> np.ndarray:
        """uint8 `[H, W, 3]`, turned as the list says that it was annotated.

        Raises:
            DataError: see `id_of`; or it cannot be read, or has another size.
        """
        image = self._images[self.id_of(Path(path))]
        return read_listed_image(path, int(image["height"]), int(image["width"]))
