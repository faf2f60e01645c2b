"""Feature pyramids and channel mappers. Pure torch."""

from vistrain.necks.channel_mapper import ChannelMapper
from vistrain.necks.fpn import FPN
from vistrain.necks.simple_pyramid import SimplePyramid, default_neck

__all__ = ["FPN", "ChannelMapper", "SimplePyramid", "default_neck"]
