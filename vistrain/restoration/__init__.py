"""Networks that restore images: super-resolution, denoising, deblurring. Pure torch, one file per paper."""

from vistrain.restoration.model import RestorationModel

__all__ = ["RestorationModel"]
