"""Keras's `.h5` files: the arrays below a file's own groups, under the paths that they have in it.

HDF5 can name other files (links, external storage, virtual arrays) and pack arrays; nothing of another file is read,
and no more is unpacked than weights are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vistrain.errors import WeightsError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MODEL = "model_weights/"  # where a file of a whole model keeps the layers; its optimizer stands beside


def arrays(path: Path, most: int) -> dict[str, np.ndarray]:
    """The arrays of numbers in a file, by path, such as `conv3d_28/conv3d_28/kernel:0`.

    Args:
        path: the file.
        most: bytes that they may have together, unpacked.

    Raises:
        WeightsError: h5py is not installed, or an array lies in another file, or they are too large.
        Exception: of many kinds, for damaged files.
    """
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(str(path), "is an HDF5 file, which h5py reads", "pip install 'vistrain[keras]'") from error
    found: list[tuple[str, Any]] = []

    def keep(name: str, item: Any) -> None:  # visits each object once, and follows no link that leaves the file
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and item.shape is not None:
            found.append((name, item))

    with h5py.File(path, "r") as file:
        file.visititems(keep)
        outside = next((name for name, item in found if item.is_virtual or item.external), None)
        if outside is not None:
            raise WeightsError(str(path), f"{outside} lies in another file, which is not read")
        total = sum(item.size * item.dtype.itemsize for _, item in found)
        if total > most:
            raise WeightsError(str(path), f"unpacks to {total / 2**30:.1f} GiB: no weights do", "download it again")
        whole = any(name.startswith(_MODEL) for name, _ in found)
        kept = [(name.removeprefix(_MODEL), item) for name, item in found if not whole or name.startswith(_MODEL)]
        unnamed = next((name for name, _ in kept if "/vars/" in f"/{name}"), None)
        if unnamed is not None:
            problem = f"is of Keras 3, whose files do not say what their arrays are ({unnamed})"
            raise WeightsError(
                str(path), problem, "save it there with model.save_weights('x.h5') of tf_keras, or as .npz"
            )
        return {name: item[()] for name, item in kept}
