"""Pairs of images, and where each pixel of the first is in the second."""
