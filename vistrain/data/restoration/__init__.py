"""Data of degraded and true pictures: pairs, degradations, generated textures."""
