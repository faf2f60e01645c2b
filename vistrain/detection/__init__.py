"""Detectors, one file per paper. Pure torch."""
