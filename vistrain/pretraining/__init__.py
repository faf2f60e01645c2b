"""Self-supervised pre-training: networks that learn from images without labels. Pure torch, one file per method."""

from vistrain.pretraining.cae import CAE
from vistrain.pretraining.color_masks import ColorMasking
from vistrain.pretraining.croco import CroCo
from vistrain.pretraining.croco_matching import CroCoMatcher
from vistrain.pretraining.gmml import GMML, BlockCorruption
from vistrain.pretraining.hpm import HPM
from vistrain.pretraining.hybrid import HybridDistillation
from vistrain.pretraining.lut import LUT
from vistrain.pretraining.mae import MAE
from vistrain.pretraining.maskalign import MaskAlign
from vistrain.pretraining.minilm import MiniLM
from vistrain.pretraining.mp3 import MP3
from vistrain.pretraining.mto import MTO
from vistrain.pretraining.patch_encoder import PatchEncoder
from vistrain.pretraining.pretrainer import Pretrainer
from vistrain.pretraining.self_distillation import SelfDistillation
from vistrain.pretraining.selfie import PatchResNet, Selfie
from vistrain.pretraining.teachers import FrozenViT
from vistrain.pretraining.token_masks import BlockMasking, Masking, RandomMasking, TokenSplit
from vistrain.pretraining.videomae import TubeMasking, VideoMAE
from vistrain.pretraining.visual_words import RandomWords, VisualWords

__all__ = [
    "CAE",
    "GMML",
    "HPM",
    "LUT",
    "MAE",
    "MP3",
    "MTO",
    "BlockCorruption",
    "BlockMasking",
    "ColorMasking",
    "CroCo",
    "CroCoMatcher",
    "FrozenViT",
    "HybridDistillation",
    "MaskAlign",
    "Masking",
    "MiniLM",
    "PatchEncoder",
    "PatchResNet",
    "Pretrainer",
    "RandomMasking",
    "RandomWords",
    "SelfDistillation",
    "Selfie",
    "TokenSplit",
    "TubeMasking",
    "VideoMAE",
    "VisualWords",
]
