"""Segmentation networks, one file per paper. Pure torch."""

from vistrain.segmentation.agunet import AGUNet, DAUNet
from vistrain.segmentation.attention_block import AttentionBlock
from vistrain.segmentation.bevanet import BEVANet
from vistrain.segmentation.daformer import DAFormerHead
from vistrain.segmentation.eco_m2f import ECOMask2Former, GatedPixelDecoder
from vistrain.segmentation.espnet import ESPNet, ESPNetC
from vistrain.segmentation.fcn import FCNHead
from vistrain.segmentation.lane_network import LaneDecoder
from vistrain.segmentation.mask2former import Mask2Former, MaskedDecoder
from vistrain.segmentation.mfm import MFM
from vistrain.segmentation.multi_scale_attention import MultiScaleAttention
from vistrain.segmentation.pem import PEM, PEMDecoder, PEMPixelDecoder
from vistrain.segmentation.pixel_decoder import DeformablePixelDecoder
from vistrain.segmentation.scnn import SCNN
from vistrain.segmentation.segformer import SegFormerHead
from vistrain.segmentation.self_training import SelfTrainedSegmenter
from vistrain.segmentation.semantic import SemanticSegmenter
from vistrain.segmentation.semantic_fpn import FPNHead
from vistrain.segmentation.slice_encoder import SliceEncoder
from vistrain.segmentation.unet import UNet2d, UNet3d
from vistrain.segmentation.unet_head import UNetHead
from vistrain.segmentation.upernet import UPerHead
from vistrain.segmentation.volume import SliceNetwork, Slices, VolumeNetwork, VolumeSegmenter
from vistrain.segmentation.vwformer import VWCityHead, VWHead
from vistrain.segmentation.wnet import WNet

__all__ = [
    "MFM",
    "PEM",
    "SCNN",
    "AGUNet",
    "AttentionBlock",
    "BEVANet",
    "DAFormerHead",
    "DAUNet",
    "DeformablePixelDecoder",
    "ECOMask2Former",
    "ESPNet",
    "ESPNetC",
    "FCNHead",
    "FPNHead",
    "GatedPixelDecoder",
    "LaneDecoder",
    "Mask2Former",
    "MaskedDecoder",
    "MultiScaleAttention",
    "PEMDecoder",
    "PEMPixelDecoder",
    "SegFormerHead",
    "SelfTrainedSegmenter",
    "SemanticSegmenter",
    "SliceEncoder",
    "SliceNetwork",
    "Slices",
    "UNet2d",
    "UNet3d",
    "UNetHead",
    "UPerHead",
    "VWCityHead",
    "VWHead",
    "VolumeNetwork",
    "VolumeSegmenter",
    "WNet",
]
