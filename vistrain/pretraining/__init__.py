"""Self-supervised pre-training: networks that learn from images without labels. Pure torch, one file per method."""

from vistrain.pretraining.color_masks import ColorMasking
from vistrain.pretraining.hpm import HPM
from vistrain.pretraining.lut import LUT
from vistrain.pretraining.mae import MAE
from vistrain.pretraining.maskalign import MaskAlign
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer
from vistrain.pretraining.teachers import FrozenViT
from vistrain.pretraining.token_masks import BlockMasking, Masking, RandomMasking, TokenSplit

__all__ = [
    "HPM",
    "LUT",
    "MAE",
    "BlockMasking",
    "ColorMasking",
    "FrozenViT",
    "MaskAlign",
    "Masking",
    "PatchEncoder",
    "Pretrainer",
    "RandomMasking",
    "TokenSplit",
]
