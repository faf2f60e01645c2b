"""Feature pyramids and channel mappers. Pure torch."""

from vistrain.necks.channel_mapper import ChannelMapper
from vistrain.necks.fpn import FPN
from vistrain.necks.selective_attention import SelectiveDenseAttention
from vistrain.necks.simple_pyramid import SimplePyramid, default_neck

__all__ = ["FPN", "ChannelMapper", "SelectiveDenseAttention", "SimplePyramid", "default_neck"]
