"""The DETR family's toolbox: deformable layers, query selection, denoising. Pure torch."""

from vistrain.detr.attention import QuerySelfAttention
from vistrain.detr.box_decoder import BoxDecoder
from vistrain.detr.deformable import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    encoder_reference_points,
    valid_extents,
)
from vistrain.detr.denoising import ContrastiveDenoising, DenoisingNoise, DenoisingQueries
from vistrain.detr.pyramid import Pyramid, flatten_pyramid
from vistrain.detr.two_stage import box_position, token_proposals, top_proposals

__all__ = [
    "BoxDecoder",
    "ContrastiveDenoising",
    "DeformableDecoder",
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "DenoisingNoise",
    "DenoisingQueries",
    "Pyramid",
    "QuerySelfAttention",
    "box_position",
    "encoder_reference_points",
    "flatten_pyramid",
    "token_proposals",
    "top_proposals",
    "valid_extents",
]
