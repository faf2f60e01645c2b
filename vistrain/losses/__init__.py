"""Losses and criteria. Pure torch."""
