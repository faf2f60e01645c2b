"""Photographs denoised or enlarged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from vistrain.data.base.images import read_alpha
from vistrain.layers.imresize import imresize_uint8
from vistrain.layers.padding import to_unit
from vistrain.network import Network
from vistrain.restoration import RestorationModel
from vistrain.tasks.base.inputs import InputFile, save_picture
from vistrain.tasks.base.predictor import ImagePredictor

TILE = 512  # pixels; what is larger is cut into tiles of this side, unless the network says otherwise


class RestorationPredictor(ImagePredictor[np.ndarray]):
    """Any picture in, the restored picture out, uint8 `[H * scale, W * scale, 3]`.

    A network for grey images restores the three colours one by one. Of files, alpha channels are kept (enlarged by
    MATLAB's bicubic), and grey pictures stay grey.

    Args:
        model: a `RestorationModel`.
        device, base: see `Predictor`.
        tile: side of the tiles of large pictures, in pixels, without seams; 0: whole, which may need much memory; by
            default the network's own, or 512.
    """

    lossless = True

    def __init__(self, model: Network, device: str = "auto", *, tile: int | None = None, **base: Any) -> None:
        super().__init__(model, device, **base)
        self.network = cast(RestorationModel, model)
        self.scale, self.channels = self.network.scale, self.network.channels
        if tile is not None:
            self.network.set_tile(tile or None)
        elif self.network.tile is None:
            self.network.set_tile(TILE)

    @torch.inference_mode()
    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Restored pictures; one after the other, as they may be large."""
        return [self._restore(image) for image in inputs]

    def _restore(self, image: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.channels == 1:
            is_grey = bool((planes[0] == planes[1]).all() and (planes[0] == planes[2]).all())
            stack = [planes[:1]] if is_grey else [planes[c : c + 1] for c in range(3)]
            restored = torch.cat([self._run(plane) for plane in stack]).expand(3, -1, -1)
        else:
            restored = self._run(planes)
        return np.ascontiguousarray((restored.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())

    def _run(self, planes: Tensor) -> Tensor:
        return self.network.restore(to_unit(planes.to(self.device))[None])[0].float().cpu()

    def describe(self, image: np.ndarray, result: np.ndarray) -> dict[str, Any]:
        """Sides, also of the restored picture."""
        sides = {"restored_width": result.shape[1], "restored_height": result.shape[0]}
        return {**super().describe(image, result), **sides}

    def draw(self, image: np.ndarray, result: np.ndarray) -> np.ndarray:
        """The restored picture itself."""
        return result

    def write_picture(self, file: InputFile, image: np.ndarray, result: np.ndarray, target: Path) -> None:
        """See `Predictor` and the class."""
        channels = [result]
        if (image[..., :1] == image).all():  # a network for colours tints grey a little
            channels = [cv2.cvtColor(result, cv2.COLOR_RGB2GRAY)[..., None]]
        alpha = read_alpha(file.path)
        if alpha is not None:
            channels.append(alpha if self.scale == 1 else imresize_uint8(alpha, self.scale))
        made = np.concatenate(channels, 2)
        save_picture(made[..., 0] if made.shape[2] == 1 else made, target)

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """What was done."""
        what = f"enlarged {self.scale} times" if self.scale > 1 else "restored"
        return f"{what} (by a network for grey images, colours one by one)" if self.channels == 1 else what

    def header(self) -> dict[str, Any]:
        """The factor."""
        return {"scale": self.scale}
