"""Degraded pictures restored: the task and its predictor."""
