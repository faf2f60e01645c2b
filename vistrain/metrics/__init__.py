"""Metrics and their named protocols."""
