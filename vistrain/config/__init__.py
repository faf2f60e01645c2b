"""From files to plain dicts and from these to objects: composing, building, and the index of names. No torch."""

from vistrain.config.builder import build
from vistrain.config.compose import compose, locate, merge, read_file, to_yaml, without_pretrained

__all__ = ["build", "compose", "locate", "merge", "read_file", "to_yaml", "without_pretrained"]
