"""Boxes of objects: the task, its predictor, and the analysis of its errors."""
