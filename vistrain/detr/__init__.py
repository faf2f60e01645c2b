"""The DETR family's toolbox: query selection, denoising, and in its files deformable layers. Pure torch."""

from vistrain.detr.deformable import encoder_reference_points, valid_extents
from vistrain.detr.denoising import ContrastiveDenoising, DenoisingNoise, DenoisingQueries
from vistrain.detr.pyramid import Pyramid, flatten_pyramid
from vistrain.detr.two_stage import box_position, token_proposals, top_proposals

__all__ = [
    "ContrastiveDenoising",
    "DenoisingNoise",
    "DenoisingQueries",
    "Pyramid",
    "box_position",
    "encoder_reference_points",
    "flatten_pyramid",
    "token_proposals",
    "top_proposals",
    "valid_extents",
]
