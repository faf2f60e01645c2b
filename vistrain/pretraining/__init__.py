"""Self-supervised pre-training: networks that learn from images without labels. Pure torch, one file per method."""

from vistrain.pretraining.mae import MAE
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer
from vistrain.pretraining.token_masks import BlockMasking, Masking, RandomMasking, TokenSplit

__all__ = ["MAE", "BlockMasking", "Masking", "PatchEncoder", "Pretrainer", "RandomMasking", "TokenSplit"]
