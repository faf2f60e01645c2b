"""Pixels classified: the task, its predictor, its pictures and its analysis."""
