"""Feature pyramids and channel mappers. Pure torch."""

from vistrain.necks.channel_mapper import ChannelMapper

__all__ = ["ChannelMapper"]
