"""Backbones: timm models behind one dense wrapper, and ours registered with timm. Pure torch."""
